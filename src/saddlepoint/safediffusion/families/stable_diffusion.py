"""Stable Diffusion 1 and 2: a UNet that is told the text of one CLIP encoder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saddlepoint.safediffusion.families.base import (
    ATTENTION,
    Conditioning,
    PipelineFamily,
    Request,
    classifier_free,
    require_latents,
)
from saddlepoint.safediffusion.families.halves import halves_alike
from saddlepoint.safediffusion.tables import DenoisingTable, denoising_table, require_betas
from saddlepoint.types import UserError

UNET_OPTIONS: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
"""options of a UNet that call for further arguments, and the values with which it is called as here"""


def require_unet_options(configs: dict[str, dict[str, Any]], known: dict[str, tuple[Any, ...]], source: str) -> None:
    """Raises ``UserError`` for a UNet that must be told more than the text."""
    for name, values in known.items():
        value = configs["unet"].get(name)
        if value not in values:
            raise UserError(
                f"the UNet of {source} has {name} {value}, which needs an input that text-to-image pipelines do not"
                " give: use another."
            )


def guidance_embedding(guidance: float, width: int, like: Tensor) -> Tensor:
    """(batch, width): sines and cosines of 1000 (g - 1), as consistency-distilled UNets are told the guidance (Luo et
    al. 2023)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = 1000 * (guidance - 1) * frequencies
    embedding = torch.cat([angles.sin(), angles.cos(), angles.new_zeros(width % 2)])
    return embedding.to(like.device).expand(len(like), -1)


def predict_with_unet(
    network: Any, x: Tensor, t: Tensor, told: Conditioning, empty: Conditioning, guidance: float
) -> Tensor:
    """A UNet's guided answer; one that takes the guidance as an input needs one pass."""
    width = getattr(getattr(network, "config", None), "time_cond_proj_dim", None)
    if width is not None:
        return network(
            x, t, encoder_hidden_states=told[0], timestep_cond=guidance_embedding(guidance, width, x)
        ).sample.float()

    def call(x: Tensor, t: Tensor, told: Conditioning) -> Tensor:
        return network(x, t, encoder_hidden_states=told[0]).sample

    with contextlib.nullcontext() if guidance <= 1.0 else halves_alike(network):
        return classifier_free(call, x, t, told, empty, guidance)


class StableDiffusion(PipelineFamily):
    title, pipeline_class, network = "Stable Diffusion 1/2", "StableDiffusionPipeline", "unet"
    encoders, flow, adapted, guidance = ("text_encoder",), False, ATTENTION, 7.5

    def check(self, configs: dict[str, dict[str, Any]], source: str) -> None:
        require_betas(configs["scheduler"], source)
        require_latents(configs, self, source)
        require_unet_options(configs, UNET_OPTIONS, source)
        width, told = configs["text_encoder"].get("hidden_size"), configs["unet"].get("cross_attention_dim", 1280)
        if (
            configs["unet"].get("encoder_hid_dim_type") is None
            and isinstance(told, int)
            and width is not None
            and told != width
        ):
            raise UserError(
                f"the UNet of {source} is told text of width {told} and its text encoder gives {width}: they are not"
                " of one pipeline."
            )

    def table(self, configs: dict[str, dict[str, Any]], request: Request) -> DenoisingTable:
        # diffusers' pipeline sets these two whatever the file says.
        return denoising_table(configs["scheduler"] | {"steps_offset": 1, "clip_sample": False}, request.steps)

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], device: torch.device, request: Request) -> Conditioning:
        return (pipeline.encode_prompt(list(prompts), device, 1, False)[0].float(),)

    def predict(
        self, network: Any, x: Tensor, t: Tensor, told: Conditioning, empty: Conditioning, guidance: float
    ) -> Tensor:
        return predict_with_unet(network, x, t, told, empty, guidance)

    def guidance_is_input(self, configs: dict[str, dict[str, Any]]) -> bool:
        return configs["unet"].get("time_cond_proj_dim") is not None

    def channels(self, configs: dict[str, dict[str, Any]]) -> int:
        return configs["unet"].get("in_channels", 4)
