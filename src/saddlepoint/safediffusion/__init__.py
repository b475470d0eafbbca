"""Post-training of text-to-image models with rewards that CLIP steers, or under an unsafe budget."""

from saddlepoint.machine import usable_compiler_cache

usable_compiler_cache()  # before PyTorch looks
