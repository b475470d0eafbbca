"""FLUX.1: a transformer that predicts a velocity, told the text of a T5, the pooled embedding of a CLIP and, in the dev
models, the guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saddlepoint.safediffusion.families.base import (
    JOINT_ATTENTION,
    Conditioning,
    PipelineFamily,
    Request,
    require_latents,
)
from saddlepoint.safediffusion.tables import FlowTable, flow_table, require_flow, shift_of
from saddlepoint.types import UserError

MOST_SHIFT = 1.15
"""diffusers' default of max_shift for this family"""
SIDE = 128
"""latents of a side that diffusers draws by default: the transformer states none"""
PACK = 2
"""latents of a side that make one token"""


class Flux(PipelineFamily):
    title, pipeline_class, network = "FLUX.1", "FluxPipeline", "transformer"
    encoders = ("text_encoder", "text_encoder_2")
    flow, adapted, guidance, text_tokens = True, JOINT_ATTENTION, 3.5, 512

    def check(self, configs: dict[str, dict[str, Any]], source: str) -> None:
        require_flow(configs["scheduler"], source)
        if configs["transformer"].get("in_channels", 64) % PACK**2:
            raise UserError(
                f"the transformer of {source} takes tokens of {configs['transformer']['in_channels']} numbers, which"
                " are not 2 x 2 latents."
            )
        require_latents(configs, self, source)

    def table(self, configs: dict[str, dict[str, Any]], request: Request) -> FlowTable:
        settings = configs["scheduler"]
        _, height, width = self.shape(configs, request)
        sigmas = (
            None if settings.get("use_flow_sigmas") else np.linspace(1.0, 1 / request.steps, request.steps).tolist()
        )
        return flow_table(
            settings, request.steps, shift_of(settings, (height // PACK) * (width // PACK), MOST_SHIFT), sigmas
        )

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], device: torch.device, request: Request) -> Conditioning:
        most = self.tokens(request)
        text, pooled, _ = pipeline.encode_prompt(list(prompts), None, device=device, max_sequence_length=most)
        return text.float(), pooled.float()

    def predict(
        self, network: Any, x: Tensor, t: Tensor, told: Conditioning, empty: Conditioning, guidance: float
    ) -> Tensor:
        """``guidance`` is an input of the dev models; the others (schnell) have none."""
        text, pooled = told
        height, width = x.shape[-2] // PACK, x.shape[-1] // PACK
        rows, columns = torch.meshgrid(
            torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij"
        )
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(x.dtype)
        level = (
            torch.full((len(x),), guidance, device=x.device, dtype=torch.float32)
            if network.config.guidance_embeds
            else None
        )
        answer = network(
            hidden_states=pack(x),
            timestep=t / 1000,
            guidance=level,
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=x.new_zeros(text.shape[1], 3),
            img_ids=places,
        ).sample
        return unpack(answer.float(), height, width)

    def guidance_is_input(self, configs: dict[str, dict[str, Any]]) -> bool:
        return True

    def channels(self, configs: dict[str, dict[str, Any]]) -> int:
        return (configs["transformer"].get("in_channels") or 64) // PACK**2

    def patch(self, configs: dict[str, dict[str, Any]]) -> int:
        return PACK

    def sample_size(self, configs: dict[str, dict[str, Any]]) -> tuple[int, int]:
        return SIDE, SIDE

    def limits(self, pipeline: Any, request: Request) -> list[tuple[str, Any, int]]:
        found = super().limits(pipeline, request)
        return [
            (part, words, self.tokens(request) if part == "text_encoder_2" else pipeline.tokenizer_max_length)
            for part, words, _ in found
        ]


def pack(x: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, height/2 * width/2, 4 channels)."""
    batch, channels, height, width = x.shape
    tiles = x.view(batch, channels, height // PACK, PACK, width // PACK, PACK).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(batch, (height // PACK) * (width // PACK), channels * PACK**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo ``pack``; ``height`` and ``width`` count tokens."""
    tiles = tokens.unflatten(1, (height, width)).unflatten(3, (-1, PACK, PACK)).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(len(tokens), -1, height * PACK, width * PACK)
