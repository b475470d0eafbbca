"""A Stable-Diffusion pipeline: checked before any model is loaded, taken apart for training, and its denoising steps as a table."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from saddlepoint.diffusion.kernel import PredictionType
from saddlepoint.safediffusion.extras import NO_WEIGHTS, first_line, require_extra
from saddlepoint.types import UserError

PIPELINE = "StableDiffusionPipeline"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class DenoisingTable(NamedTuple):
    """The steps of DDIM, from noise to picture. All tensors (steps,)."""

    timesteps: Tensor  # int64, as the UNet is told them
    alpha_bar: Tensor  # float64, where a step starts
    alpha_bar_prev: Tensor  # float64, where it ends
    prediction: PredictionType

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def scheduler_config(source: str) -> dict[str, Any]:
    """The scheduler's settings of a pipeline folder or hub id, after all checks that need no model.

    Raises ``UserError`` when it is not a Stable-Diffusion pipeline, or when its scheduler has no Gaussian steps with a known density.
    """
    require_extra()
    from diffusers import DDIMScheduler, DiffusionPipeline

    folder = Path(source)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise UserError(f"{source} is not a pipeline in diffusers' layout (it has no model_index.json): give the folder of one.")
    if not folder.is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise UserError(f"there is no pipeline folder {source}: give a folder in diffusers' layout, or a hub id.")
    try:
        index = DiffusionPipeline.load_config(source)
        if index.get("_class_name") != PIPELINE:
            raise UserError(f"{source} is a {index.get('_class_name')}, not a {PIPELINE}: only Stable Diffusion 1 and 2 can be trained.")
        missing = [part for part in PARTS if not (index.get(part) or [None])[0] or (folder.is_dir() and not (folder / part).is_dir())]
        if missing:
            raise UserError(f"the pipeline {source} lacks its {', '.join(missing)}: give a whole one.")
        settings = DDIMScheduler.load_config(source, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise UserError(f"the pipeline {source} cannot be read ({first_line(error)}): {NO_WEIGHTS}") from error
    name, kind = settings.get("_class_name", "its scheduler"), settings.get("prediction_type", "epsilon")
    if ("beta_start" not in settings and settings.get("trained_betas") is None) or kind not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"{source} samples with {name} (prediction_type {kind}), whose steps have no log-probabilities:"
            " use a pipeline with a DDIM, DDPM, PNDM or another scheduler that is made of betas."
        )
    return settings


def noise_schedule(settings: dict[str, Any]) -> Tensor:
    """alpha_bar of every training step, (num_train_timesteps,), from a scheduler's settings."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(settings).alphas_cumprod


SAMPLES, SAMPLE_BYTES = 64, 65536
"""pieces of a file that tell it from another: all of a small one, a thousandth of a large one, which would take long to read"""


def weight_files(source: str) -> dict[str, str]:
    """A digest of the size and of pieces of each file of weights in a folder: what differs once it is replaced. Nothing of a hub id."""
    folder = Path(source)
    found = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.rglob(pattern)) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): _fingerprint(path) for path in found}


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(size * i // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def denoising_table(settings: dict[str, Any], steps: int) -> DenoisingTable:
    """DDIM's time steps and the alpha_bar at both ends of each, from a scheduler's settings. Clipping and thresholding are left out.

    Raises ``UserError`` when there are more steps than the scheduler has, or one that is learnt from has no noise at eta 1.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(settings)
    total = scheduler.config["num_train_timesteps"]
    if not 2 <= steps <= total:
        raise UserError(f"--steps {steps}: this pipeline's scheduler has from 2 to {total} steps.")
    scheduler.set_timesteps(steps)
    alpha_bar = scheduler.alphas_cumprod.double()
    # What DDIM as published calls the step before t: t minus the stride; before the first one lies the final alpha_bar.
    before = scheduler.timesteps - total // steps
    ends = torch.where(before >= 0, alpha_bar[before.clamp(min=0)], scheduler.final_alpha_cumprod.double())
    table = DenoisingTable(scheduler.timesteps, alpha_bar[scheduler.timesteps], ends, settings.get("prediction_type", "epsilon"))
    if bool((table.alpha_bar[:-1] >= table.alpha_bar_prev[:-1]).any()) or bool((table.alpha_bar_prev[:-1] >= 1).any()):
        raise UserError(f"--steps {steps} makes steps without noise with this pipeline's scheduler: choose another number.")
    if table.prediction == "epsilon" and bool((table.alpha_bar <= 0).any()):
        raise UserError("this pipeline's scheduler starts from a signal of 0, where a noise prediction says nothing: it needs v_prediction.")
    return table


def load_pipeline(source: str, *, whole: bool = False) -> Any:
    """The pipeline in float32 on the CPU, without its safety checker unless ``whole``. Raises ``UserError``; nothing is unpickled."""
    require_extra()
    from diffusers import StableDiffusionPipeline

    without = {} if whole else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(source, use_safetensors=True, **without)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the pipeline {source} cannot be loaded ({first_line(error)}): {NO_WEIGHTS}") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.float().requires_grad_(False).eval()
    return pipeline
