"""The families of text-to-image pipelines that can be post-trained, by diffusers' class of pipeline. A new one is one
file and one entry."""

from __future__ import annotations

from typing import Any

from saddlepoint.safediffusion.families.base import Conditioning, PipelineFamily, Predict, Request
from saddlepoint.safediffusion.families.flux import Flux
from saddlepoint.safediffusion.families.sd3 import StableDiffusion3
from saddlepoint.safediffusion.families.sdxl import StableDiffusionXL
from saddlepoint.safediffusion.families.stable_diffusion import StableDiffusion

FAMILIES: dict[str, PipelineFamily] = {
    family.pipeline_class: family for family in (StableDiffusion(), StableDiffusionXL(), StableDiffusion3(), Flux())
}


def family_of(pipeline: Any) -> PipelineFamily:
    """That of a loaded pipeline."""
    return FAMILIES[type(pipeline).__name__]


def configs_of(pipeline: Any) -> dict[str, dict[str, Any]]:
    """Configs of a loaded pipeline's network, VAE and scheduler, the last as its file states it: what another class of
    schedulers is made from it must take its own defaults for the rest."""
    parts = (family_of(pipeline).network, "vae", "scheduler")
    configs = {part: dict(getattr(pipeline, part).config) for part in parts}
    unstated = {"_use_default_values", *configs["scheduler"].get("_use_default_values", ())}
    return configs | {
        "scheduler": {name: value for name, value in configs["scheduler"].items() if name not in unstated}
    }


__all__ = ["FAMILIES", "Conditioning", "PipelineFamily", "Predict", "Request", "configs_of", "family_of"]
