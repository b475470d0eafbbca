"""The three trainings of the tiny world's models, each a loss on a batch of scenes and a measure of how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from saddlepoint.safediffusion.families import Request
from saddlepoint.safediffusion.rollout import Noise, build_studio
from saddlepoint.safediffusion.tiny.captions import TRAINED_PHRASES, read_caption, write_captions
from saddlepoint.safediffusion.tiny.checker import fits, read_pictures
from saddlepoint.safediffusion.tiny.models import TOKENS, assemble, build_scheduler
from saddlepoint.safediffusion.tiny.scenes import HAZARDS, Scenes, draw, sample_scenes

POOL = 24_576
"""scenes drawn once, that all stages learn from; their captions are written anew each time"""
HAZARD_SHARE = 0.4
CHUNK = 512
BATCHES = {"clip": 256, "vae": 64, "unet": 128}
FALSE_CAPTIONS = 0.5
"""share of the UNet's clean scenes whose caption calls for a marking: captions from the web are not to be trusted
either, and a pipeline that always obeys draws groups of pictures with nothing to compare (of I2P's prompts about half
give an unsafe picture)"""
NO_CAPTION = 0.1
"""share of the UNet's batch that is told nothing, for classifier-free guidance"""
SNR_CAP = 5.0
"""of min-SNR weighting (Hang et al. 2023): nearly clean latents count less"""
KL_WEIGHT = 1e-3
STEPS, GUIDANCE = 20, 2.0
"""denoising steps and guidance of the measures"""
MEASURED = 96
"""pictures of a measure"""


class Pool:
    """Scenes with their pictures, kept as bytes."""

    def __init__(self, seed: int, size: int = POOL) -> None:
        rng = np.random.default_rng([seed, 1])
        self.scenes = sample_scenes(rng, size, HAZARD_SHARE)
        parts = [self.scenes.take(np.arange(first, min(first + CHUNK, size))) for first in range(0, size, CHUNK)]
        self.pictures = torch.from_numpy(
            np.concatenate([(255 * draw(part)).round().astype(np.uint8) for part in parts])
        )

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Scenes, np.ndarray]:
        """Pictures (size, 3, 32, 32) in [0, 1], their scenes and their places."""
        rows = rng.integers(0, len(self.scenes), size)
        return self.pictures[rows].float() / 255, self.scenes.take(rows), rows


class Stage(Protocol):
    """One model's training."""

    name: str
    rate: float
    """peak of AdamW's step"""
    model: nn.Module

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Of a fresh batch, 0-d."""
        ...

    def measure(self) -> dict[str, float]:
        """How good the model is now, on scenes that are not learnt from."""
        ...


class ClipStage:
    """Pictures and captions that belong together are more alike than others of the batch (Radford et al. 2021)."""

    name, rate = "clip", 1e-3

    def __init__(self, clip: Any, tokenizer: Any, pool: Pool) -> None:
        self.model, self.tokenizer, self.pool = clip, tokenizer, pool

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        pictures, scenes, _ = self.pool.batch(rng, BATCHES["clip"])
        logits = self._logits(pictures, write_captions(scenes, rng))
        target = torch.arange(len(logits))
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Share of pictures whose own caption is the nearest of 256."""
        rng = np.random.default_rng(10_001)
        scenes = sample_scenes(rng, 256, HAZARD_SHARE)
        logits = self._logits(torch.from_numpy(draw(scenes)), write_captions(scenes, rng, whole=True))
        return {"caption_of_256": float((logits.argmax(1) == torch.arange(256)).float().mean())}

    def _logits(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        text = self.model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        image = self.model.get_image_features(pixel_values=2 * pictures - 1).pooler_output
        scale = self.model.logit_scale.clamp(max=np.log(100.0)).exp()
        return scale * functional.normalize(image.float(), dim=-1) @ functional.normalize(text.float(), dim=-1).T


class VaeStage:
    """Pictures come back from a few numbers, which are kept near a standard normal."""

    name, rate = "vae", 2e-3

    def __init__(self, vae: Any, pool: Pool) -> None:
        self.model, self.pool = vae, pool

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        pictures, _, _ = self.pool.batch(rng, BATCHES["vae"])
        posterior = self.model.encode(2 * pictures - 1).latent_dist
        output = self.model.decode(posterior.sample(generator)).sample.float()
        difference = output - (2 * pictures - 1)
        return (
            difference.abs().mean()
            + difference.square().mean()
            + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        )

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Error of reconstructions, and the share of them that the checker still reads as the scene."""
        rng = np.random.default_rng(10_002)
        scenes = sample_scenes(rng, MEASURED, HAZARD_SHARE)
        pictures, captions = torch.from_numpy(draw(scenes)), write_captions(scenes, rng, whole=True)
        output = (
            self.model.decode(self.model.encode(2 * pictures - 1).latent_dist.mean).sample.float() / 2 + 0.5
        ).clamp(0, 1)
        readings = read_pictures(output)
        right = [
            fits(one, read_caption(caption)) and one.unsafe == bool(h)
            for one, caption, h in zip(readings, captions, scenes.hazard, strict=True)
        ]
        return {
            "psnr_db": float(-10 * (output - pictures).square().mean().log10()),
            "read_right": float(np.mean(right)),
        }


@torch.no_grad()
def fit_scale(vae: Any, pool: Pool) -> Tensor:
    """Latents of the whole pool (posterior means), brought to unit standard deviation; the factor goes into the VAE's
    config."""
    parts = [vae.encode(2 * part.float() / 255 - 1).latent_dist.mean for part in pool.pictures.split(CHUNK)]
    latents = torch.cat(parts)
    factor = 1 / float(latents.std())
    vae.register_to_config(scaling_factor=factor)
    return latents * factor


class Measured(NamedTuple):
    """What generated pictures are like, of how many."""

    accuracy: float
    """share that shows the objects asked for, and nothing else but markings"""
    unsafe: float
    """share with a marking"""


Generate = Callable[[Sequence[str], int], tuple[Measured, Tensor]]
"""prompts and a seed -> what is measured, and the pictures"""


def read_sample(images: Tensor, prompts: Sequence[str]) -> Measured:
    """The checker's reading of pictures (prompts, 3, 32, 32)."""
    readings = read_pictures(images)
    right = [fits(one, read_caption(prompt)) for one, prompt in zip(readings, prompts, strict=True)]
    return Measured(float(np.mean(right)), float(np.mean([one.unsafe for one in readings])))


def sample_measures(generate: Generate) -> dict[str, float]:
    """Accuracy and unsafe rate of harmless prompts and of prompts that ask for a sign."""
    rng = np.random.default_rng(10_003)
    found: dict[str, float] = {}
    for name, share in (("harmless", 0.0), ("hazard", 1.0)):
        scenes = sample_scenes(rng, MEASURED, share, kinds=("sign",))
        result, _ = generate(write_captions(scenes, rng, TRAINED_PHRASES, whole=True), 10_003)
        found |= {f"{name}_accuracy": result.accuracy, f"{name}_unsafe": result.unsafe}
    return found


def misdescribe(scenes: Scenes, rng: np.random.Generator) -> Scenes:
    """``scenes`` for their captions alone: a share of the clean ones is said to bear some marking."""
    false = (scenes.hazard == 0) & (rng.random(len(scenes)) < FALSE_CAPTIONS)
    return replace(scenes, hazard=np.where(false, rng.integers(1, len(HAZARDS) + 1, len(scenes)), scenes.hazard))


class UnetStage:
    """Velocity prediction with scaled-linear betas, min-SNR weights, and captions that are left out (for guidance) or
    call for a marking in vain."""

    name, rate = "unet", 1.5e-3

    def __init__(self, unet: Any, clip: Any, vae: Any, tokenizer: Any, pool: Pool, compiled: bool = False) -> None:
        self.model, self.clip, self.pool = unet, clip, pool
        self.denoise: Any = torch.compile(unet) if compiled else unet
        self.pipeline = assemble(clip, vae, unet, tokenizer)
        self.text = self.pipeline.text_encoder.requires_grad_(False)
        self.tokenizer = tokenizer
        self.latents = fit_scale(vae, pool)
        self.alpha_bar = build_scheduler().alphas_cumprod

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """mean over the batch of  min(SNR, 5) / (SNR + 1) * mean |v_hat - v|^2,  v = sqrt(a) noise - sqrt(1 - a)
        latent."""
        rows = rng.integers(0, len(self.latents), BATCHES["unet"])
        captions = write_captions(misdescribe(self.pool.scenes.take(rows), rng), rng)
        told = [
            "" if silent else caption
            for caption, silent in zip(captions, rng.random(len(rows)) < NO_CAPTION, strict=True)
        ]
        tokens = self.tokenizer(told, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        with torch.no_grad():
            text = self.text(input_ids=tokens.input_ids).last_hidden_state
        latents = self.latents[rows]
        t = torch.randint(len(self.alpha_bar), (len(rows),), generator=generator)
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=generator)
        output = self.denoise(a.sqrt() * latents + (1 - a).sqrt() * noise, t, encoder_hidden_states=text).sample.float()
        error = (output - (a.sqrt() * noise - (1 - a).sqrt() * latents)).square().flatten(1).mean(1)
        snr = (a / (1 - a)).flatten()
        return (snr.clamp(max=SNR_CAP) / (snr + 1) * error).mean()

    def measure(self) -> dict[str, float]:
        """The checker's reading of generated pictures, for harmless prompts and for prompts that ask for a sign."""
        return sample_measures(self.generate)

    def generate(self, prompts: Sequence[str], seed: int) -> tuple[Measured, Tensor]:
        """Pictures (prompts, 3, 32, 32) of the noise-free sampler, and what the checker reads in them."""
        studio = build_studio(self.pipeline, Request(STEPS), GUIDANCE, 0.0, torch.device("cpu"))
        paths = [(seed, i) for i in range(len(prompts))]
        images = torch.cat(
            [
                studio.render(
                    prompts[first : first + 48],
                    Noise(paths[first : first + 48], paths[first : first + 48], studio.shape, studio.device),
                )
                for first in range(0, len(prompts), 48)
            ]
        )
        return read_sample(images, prompts), images
