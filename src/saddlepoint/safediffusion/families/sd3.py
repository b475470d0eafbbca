"""Stable Diffusion 3 and 3.5: a transformer that predicts a velocity, told the text of two CLIP encoders and a T5,
which may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saddlepoint.safediffusion.families.base import (
    JOINT_ATTENTION,
    Conditioning,
    PipelineFamily,
    Request,
    classifier_free,
    require_latents,
)
from saddlepoint.safediffusion.tables import FlowTable, flow_table, require_flow, shift_of

MOST_SHIFT = 1.16
"""diffusers' default of max_shift for this family"""


class StableDiffusion3(PipelineFamily):
    title, pipeline_class, network = "Stable Diffusion 3/3.5", "StableDiffusion3Pipeline", "transformer"
    encoders, optional = ("text_encoder", "text_encoder_2", "text_encoder_3"), ("text_encoder_3", "tokenizer_3")
    flow, adapted, guidance, text_tokens = True, JOINT_ATTENTION, 7.0, 256

    def check(self, configs: dict[str, dict[str, Any]], source: str) -> None:
        require_flow(configs["scheduler"], source)
        require_latents(configs, self, source)

    def table(self, configs: dict[str, dict[str, Any]], request: Request) -> FlowTable:
        settings = configs["scheduler"]
        _, height, width = self.shape(configs, request)
        tokens = (height // self.patch(configs)) * (width // self.patch(configs))
        mu = shift_of(settings, tokens, MOST_SHIFT) if settings.get("use_dynamic_shifting") else None
        return flow_table(settings, request.steps, mu)

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], device: torch.device, request: Request) -> Conditioning:
        text, _, pooled, _ = pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.tokens(request),
        )
        return text.float(), pooled.float()

    def predict(
        self, network: Any, x: Tensor, t: Tensor, told: Conditioning, empty: Conditioning, guidance: float
    ) -> Tensor:
        def call(x: Tensor, t: Tensor, told: Conditioning) -> Tensor:
            return network(
                hidden_states=x, timestep=t, encoder_hidden_states=told[0], pooled_projections=told[1]
            ).sample

        return classifier_free(call, x, t, told, empty, guidance)

    def channels(self, configs: dict[str, dict[str, Any]]) -> int:
        return configs["transformer"].get("in_channels", 16)

    def patch(self, configs: dict[str, dict[str, Any]]) -> int:
        return configs["transformer"].get("patch_size", 2)

    def limits(self, pipeline: Any, request: Request) -> list[tuple[str, Any, int]]:
        found = super().limits(pipeline, request)
        return [
            (part, words, self.tokens(request) if part == "text_encoder_3" else pipeline.tokenizer_max_length)
            for part, words, _ in found
        ]
