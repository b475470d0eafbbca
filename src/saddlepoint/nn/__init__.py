"""Networks, optimisers and operations on them."""

from saddlepoint.machine import usable_compiler_cache

usable_compiler_cache()  # before PyTorch looks
