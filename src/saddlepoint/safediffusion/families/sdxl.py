"""SDXL: a UNet that is told the text of two CLIP encoders, the pooled embedding of the second, and six numbers on the
picture's size."""

from __future__ import annotations

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
    vae_factor,
)
from saddlepoint.safediffusion.families.stable_diffusion import (
    UNET_OPTIONS,
    guidance_embedding,
    require_unet_options,
)
from saddlepoint.safediffusion.tables import DenoisingTable, denoising_table, require_betas
from saddlepoint.types import UserError

CLIPPING = ("DDIMScheduler", "DDPMScheduler")
"""schedulers that clip what the network says unless they are told not to"""


class StableDiffusionXL(PipelineFamily):
    title, pipeline_class, network = "SDXL", "StableDiffusionXLPipeline", "unet"
    encoders = ("text_encoder", "text_encoder_2")
    flow, adapted, guidance = False, ATTENTION, 5.0

    def check(self, configs: dict[str, dict[str, Any]], source: str) -> None:
        settings = configs["scheduler"]
        require_betas(settings, source)
        if settings.get("_class_name") in CLIPPING and settings.get("clip_sample", True):
            raise UserError(
                f"{source} has a {settings['_class_name']} with clip_sample, which cuts latents off: set clip_sample"
                " to false in its scheduler_config.json."
            )
        require_latents(configs, self, source)
        require_unet_options(configs, UNET_OPTIONS | {"addition_embed_type": ("text_time",)}, source)
        ids = configs["unet"].get("addition_time_embed_dim") or 0
        wanted, pooled = (
            configs["unet"].get("projection_class_embeddings_input_dim"),
            configs["text_encoder_2"].get("projection_dim", 512),
        )
        if wanted != 6 * ids + pooled:
            raise UserError(
                f"the UNet of {source} is told {wanted} numbers beside the text, not 6 x {ids} + {pooled}: give an"
                " SDXL base pipeline, not a refiner."
            )

    def table(self, configs: dict[str, dict[str, Any]], request: Request) -> DenoisingTable:
        # Made from the config of an Euler scheduler, diffusers' DDIM would clip: Euler does not.
        return denoising_table(configs["scheduler"] | {"clip_sample": False}, request.steps)

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], device: torch.device, request: Request) -> Conditioning:
        text, _, pooled, _ = pipeline.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
        return text.float(), pooled.float(), self._ids(pipeline, request, device).expand(len(prompts), -1)

    def empty(self, pipeline: Any, device: torch.device, request: Request) -> Conditioning:
        """Zeros where the pipeline says so (force_zeros_for_empty_prompt); the ids stay."""
        text, pooled, ids = super().empty(pipeline, device, request)
        zero = pipeline.config.force_zeros_for_empty_prompt
        return (torch.zeros_like(text), torch.zeros_like(pooled), ids) if zero else (text, pooled, ids)

    def predict(
        self, network: Any, x: Tensor, t: Tensor, told: Conditioning, empty: Conditioning, guidance: float
    ) -> Tensor:
        width = network.config.time_cond_proj_dim
        level = None if width is None else guidance_embedding(guidance, width, x)

        def call(x: Tensor, t: Tensor, told: Conditioning) -> Tensor:
            text, pooled, ids = told
            more = {} if level is None else {"timestep_cond": level}
            return network(
                x, t, encoder_hidden_states=text, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}, **more
            ).sample

        return classifier_free(call, x, t, told, empty, 1.0 if level is not None else guidance)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return super().decode(vae, latents)
        rows = [latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std)]
        scaled = latents * rows[1] / vae.config.scaling_factor + rows[0]
        return vae.decode(scaled.to(vae.dtype)).sample.float() / 2 + 0.5

    def guidance_is_input(self, configs: dict[str, dict[str, Any]]) -> bool:
        return configs["unet"].get("time_cond_proj_dim") is not None

    def channels(self, configs: dict[str, dict[str, Any]]) -> int:
        return configs["unet"].get("in_channels", 4)

    def _ids(self, pipeline: Any, request: Request, device: torch.device) -> Tensor:
        """Original size, crop and target size: the picture's own, uncropped. (1, 6)."""
        configs = {"unet": dict(pipeline.unet.config), "vae": dict(pipeline.vae.config)}
        _, height, width = self.shape(configs, request)
        factor = vae_factor(configs)
        size = (float(height * factor), float(width * factor))
        return torch.tensor([[*size, 0.0, 0.0, *size]], device=device)
