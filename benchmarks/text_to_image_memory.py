"""What post-training takes on one GPU, on paper: weights, adapters and activations of each family in its published
size, counted without a GPU.

    python benchmarks/text_to_image_memory.py

Networks are built without storage (PyTorch's meta device) from the published configs. One training pass runs through
each, and what autograd keeps for its backward pass is added up. The result is in
benchmarks/results/text_to_image_memory.json; docs/text-to-image-memory.md shows it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
GIB = 2**30
RANK = 16
TEXT = {"CLIP ViT-L": 0.123, "CLIP ViT-bigG": 0.695, "T5-XXL encoder": 4.762, "VAE": 0.084}
"""billions of parameters of frozen parts"""


def networks() -> dict[str, tuple[Callable[[], Any], Callable[[int, int], dict[str, Any]], list[str], int, int]]:
    """By model: how its network is built, the arguments of a pass by (rows, latents of a side), its frozen parts,
    passes a row and its native side."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

    xl = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    medium = {
        "sample_size": 128,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    }
    large = {
        "sample_size": 128,
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    }

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    def unet(
        width: int, more: Callable[[int], dict[str, Any]] = lambda rows: {}
    ) -> Callable[[int, int], dict[str, Any]]:
        return lambda rows, side: (
            {
                "sample": tensor(rows, 4, side, side),
                "timestep": tensor(rows),
                "encoder_hidden_states": tensor(rows, 77, width),
            }
            | more(rows)
        )

    def sd3(rows: int, side: int) -> dict[str, Any]:
        return {
            "hidden_states": tensor(rows, 16, side, side),
            "timestep": tensor(rows),
            "encoder_hidden_states": tensor(rows, 77 + 256, 4096),
            "pooled_projections": tensor(rows, 2048),
        }

    def flux(rows: int, side: int) -> dict[str, Any]:
        tokens = (side // 2) ** 2
        return {
            "hidden_states": tensor(rows, tokens, 64),
            "timestep": tensor(rows),
            "guidance": tensor(rows),
            "encoder_hidden_states": tensor(rows, 512, 4096),
            "pooled_projections": tensor(rows, 768),
            "txt_ids": tensor(512, 3),
            "img_ids": tensor(tokens, 3),
        }

    def ids(rows: int) -> dict[str, Any]:
        return {"added_cond_kwargs": {"text_embeds": tensor(rows, 1280), "time_ids": tensor(rows, 6)}}

    clip, both = ["CLIP ViT-L", "VAE"], ["CLIP ViT-L", "CLIP ViT-bigG", "VAE"]
    return {
        "Stable Diffusion 1.5": (
            lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            unet(768),
            clip,
            2,
            64,
        ),
        "SDXL": (lambda: UNet2DConditionModel(**xl), unet(2048, ids), both, 2, 128),
        "SD 3.5 Medium": (lambda: SD3Transformer2DModel(**medium), sd3, [*both, "T5-XXL encoder"], 2, 128),
        "SD 3.5 Large": (lambda: SD3Transformer2DModel(**large), sd3, [*both, "T5-XXL encoder"], 2, 128),
        "FLUX.1 dev": (lambda: FluxTransformer2DModel(guidance_embeds=True), flux, [*clip, "T5-XXL encoder"], 1, 128),
    }


class Fused(torch.autograd.Function):
    """Attention as fused kernels keep it for the backward pass: queries, keys, values and the output, and no matrix of
    weights."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> None:
        raise NotImplementedError("nothing is learnt here")


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """In the place of PyTorch's own, which takes the plain path without a device."""
    return Fused.apply(query, key, value)


def count(name: str, network: Any, arguments: dict[str, Any], checkpointing: bool) -> int:
    """Bytes that one pass keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    if checkpointing:
        network.enable_gradient_checkpointing()
        inner = next(
            own
            for module in network.modules()
            if (own := getattr(module, "_gradient_checkpointing_func", None)) is not None
        )

        def remember(function: Any, *args: Any) -> Any:
            for value in args:
                if isinstance(value, torch.Tensor):
                    keep(value)
            return inner(function, *args)

        for module in network.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = remember
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(**arguments).sample
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def main() -> None:
    from peft import LoraConfig

    from interleave import provenance
    from saddlepoint.safediffusion.families.base import ATTENTION, JOINT_ATTENTION

    torch.nn.functional.scaled_dot_product_attention = fused
    found: dict[str, Any] = {}
    for name, (build, arguments, frozen, passes, native) in networks().items():
        with torch.device("meta"):
            network = build().to(torch.bfloat16).requires_grad_(False)
        parameters = sum(p.numel() for p in network.parameters())
        layers = JOINT_ATTENTION if "Transformer" in type(network).__name__ else ATTENTION
        with torch.device("meta"):
            network.add_adapter(
                LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(layers)), adapter_name="default"
            )
        network.train()
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        row: dict[str, Any] = {
            "network_billion": parameters / 1e9,
            "frozen_billion": sum(TEXT[part] for part in frozen),
            "adapters_million": trained / 1e6,
            "weights_gib": 2 * (parameters + 1e9 * sum(TEXT[part] for part in frozen)) / GIB,
            "adapters_gib": 16 * trained / GIB,
            "activations_gib": {},
        }
        for side in sorted({64, native}):
            for checkpointing in (False, True):
                each = count(name, network, arguments(passes, side), checkpointing) / GIB
                row["activations_gib"][f"{8 * side}{', checkpointed' if checkpointing else ''}"] = each
            for module in network.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = False
        found[name] = row
        print(name, json.dumps(row), flush=True)
    result = {"command": "python benchmarks/text_to_image_memory.py", **provenance(), "rank": RANK, "models": found}
    (HERE / "results" / "text_to_image_memory.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
