"""Rollouts: pictures sampled with stochastic DDIM, with the latents of every step and their log-probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saddlepoint.diffusion.kernel import Gaussian, ddim_kernel
from saddlepoint.safediffusion.config import LogProbReduction
from saddlepoint.safediffusion.grpo import step_log_prob
from saddlepoint.safediffusion.pipeline import DenoisingTable
from saddlepoint.types import NonFiniteError


class Rollout(NamedTuple):
    """Sampled pictures and how they came about."""

    images: Tensor  # (batch, 3, height, width) float32 in [0, 1]
    latents: Tensor  # (batch, steps + 1, channels, height, width), from noise to picture, in the stored precision
    log_probs: Tensor  # (batch, steps - 1) float32: of latents[:, k + 1] as stored, given latents[:, k]; the last step may have no noise


class DenoisingPolicy:
    """pi(x_{k+1} | x_k, prompt): one step of guided stochastic DDIM as a Gaussian, for sampling and for scoring a given next latent alike."""

    def __init__(
        self, unet: Any, table: DenoisingTable, guidance: float, eta: float, device: torch.device, low_precision: torch.dtype | None
    ) -> None:
        """``low_precision`` is the dtype of the UNet's products and of the stored latents, None for float32."""
        self.unet, self.table, self.guidance, self.eta, self.device = unet, table, guidance, eta, device
        self.low_precision = low_precision
        self._timesteps = table.timesteps.to(device)
        self._alpha_bar = table.alpha_bar.to(device, torch.float32)
        self._alpha_bar_prev = table.alpha_bar_prev.to(device, torch.float32)

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the latents that a rollout keeps."""
        return self.low_precision or torch.float32

    def step(self, latents: Tensor, k: Tensor, text: Tensor, empty: Tensor, eta: float | None = None) -> Gaussian:
        """The Gaussian of step ``k`` in float32. ``latents`` (batch, channels, height, width), ``k`` (batch,) int64, ``text`` (batch, tokens, width),
        ``empty`` (tokens, width): the embedding of no prompt, for guidance  u + g (c - u). ``eta`` replaces the policy's own."""
        x, t = latents.float(), self._timesteps[k]
        lowered = torch.autocast(self.device.type, self.low_precision) if self.low_precision else contextlib.nullcontext()
        with lowered:
            if self.guidance == 1.0:
                output = self.unet(x, t, encoder_hidden_states=text).sample.float()
            else:
                both = self.unet(torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=torch.cat([empty.expand_as(text), text])).sample
                blank, told = both.float().chunk(2)
                output = blank + self.guidance * (told - blank)
        eta = self.eta if eta is None else eta
        return ddim_kernel(output, x, self._alpha_bar[k], self._alpha_bar_prev[k], eta, self.table.prediction)


KEPT_PROMPTS = 2048
"""prompts whose embeddings are remembered: those of Stable Diffusion 1 take 0.24 MB each"""


DECODED = 8
"""pictures decoded at once: in full size the decoder takes more memory than the UNet"""


class PromptEmbeddings:
    """The frozen text encoder's output, remembered for repeated prompts."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._pipeline, self._device = pipeline, device
        self._known: dict[str, Tensor] = {}
        self.empty = self([""])[0]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(batch,) -> (batch, tokens, width)."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            if len(self._known) + len(new) > KEPT_PROMPTS:
                self._known, new = {}, list(dict.fromkeys(prompts))
            encoded, _ = self._pipeline.encode_prompt(new, self._device, 1, False)
            self._known |= zip(new, encoded, strict=True)
        return torch.stack([self._known[prompt] for prompt in prompts])


class Noise:
    """Standard normal draws of a batch of images, each from a stream of its own: a picture does not depend on what it is batched with."""

    def __init__(self, starts: Sequence[Sequence[int]], steps: Sequence[Sequence[int]], shape: tuple[int, ...], device: torch.device) -> None:
        """``starts`` and ``steps`` hold a path of integers for each image; images with the same path share their first latent."""
        self._starts, self._streams = starts, [_stream(path) for path in steps]
        self._shape, self._device = shape, device

    def start(self) -> Tensor:
        """The first latents, (batch, channels, height, width)."""
        return torch.stack([torch.randn(self._shape, generator=_stream(path)) for path in self._starts]).to(self._device)

    def next(self) -> Tensor:
        """The noise of the next step, (batch, channels, height, width)."""
        return torch.stack([torch.randn(self._shape, generator=stream) for stream in self._streams]).to(self._device)


class Studio:
    """Prompts in, pictures out: the policy with its text encoder and its decoder."""

    def __init__(self, pipeline: Any, policy: DenoisingPolicy) -> None:
        self.policy, self.device = policy, policy.device
        self.embeddings = PromptEmbeddings(pipeline, policy.device)
        self._vae = pipeline.vae
        side = pipeline.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        self.shape = (pipeline.unet.config.in_channels, height, width)
        """(channels, height, width) of the latents"""

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], noise: Noise, reduction: LogProbReduction) -> Rollout:
        """One batch. A next latent is drawn in float32 and stored; its log-probability is that of what was stored."""
        text, empty = self.embeddings(prompts), self.embeddings.empty
        latents = [noise.start().to(self.policy.stored)]
        log_probs = []
        for k in range(self.policy.table.steps):
            step = self.policy.step(latents[-1], self._at(k, len(text)), text, empty)
            latents.append(step.sample(noise.next()).to(self.policy.stored))
            if k < self.policy.table.steps - 1:
                log_probs.append(step_log_prob(step, latents[-1].float(), reduction))
        return Rollout(self.decode(latents[-1]), torch.stack(latents, 1), torch.stack(log_probs, 1))

    @torch.no_grad()
    def render(self, prompts: Sequence[str], noise: Noise) -> Tensor:
        """Pictures (batch, 3, height, width) of the noise-free chain (eta 0): what is compared over time depends on the weights alone."""
        text, empty = self.embeddings(prompts), self.embeddings.empty
        latents = noise.start().to(self.policy.stored)
        for k in range(self.policy.table.steps):
            latents = self.policy.step(latents, self._at(k, len(text)), text, empty, eta=0.0).mean.to(self.policy.stored)
        return self.decode(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (batch, channels, height, width) -> pictures (batch, 3, height, width), float32 in [0, 1]. Raises ``NonFiniteError``."""
        parts = (latents.float() / self._vae.config.scaling_factor).split(DECODED)
        images = (torch.cat([self._vae.decode(part).sample for part in parts]) / 2 + 0.5).clamp(0, 1)
        if not bool(images.isfinite().all()):
            raise NonFiniteError("the pictures are not finite: lower --guidance, or, in training, --learning-rate.")
        return images

    def _at(self, k: int, batch: int) -> Tensor:
        return torch.full((batch,), k, device=self.device)


def _stream(path: Sequence[int]) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(list(path)).generate_state(1, np.uint64)[0] >> 1))
