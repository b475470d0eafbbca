"""Rollouts: pictures sampled step by step, with the latents of every step and their log-probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saddlepoint.diffusion.kernel import FlowSDE, Gaussian
from saddlepoint.foreign import first_line
from saddlepoint.safediffusion.config import LogProbReduction
from saddlepoint.safediffusion.families import Conditioning, Predict, Request, configs_of, family_of
from saddlepoint.safediffusion.families.stable_diffusion import predict_with_unet
from saddlepoint.safediffusion.grpo import step_log_prob
from saddlepoint.safediffusion.tables import Table
from saddlepoint.types import NonFiniteError, UserError


class Rollout(NamedTuple):
    """Sampled pictures and how they came about."""

    images: Tensor  # (batch, 3, height, width) float32 in [0, 1]
    latents: Tensor  # (batch, steps + 1, channels, height, width), from noise to picture, in the stored precision
    # (batch, steps - 1) float32: of latents[:, k + 1] as stored, given latents[:, k]; 0 for steps without noise
    log_probs: Tensor
    # (batch, steps - 1, channels, height, width) float32: of those steps, where they are asked for
    means: Tensor | None = None


LEAST_LEFT = 0.02
"""noise left after a ``ddim`` step from which it is learnt from. The noise that such a step adds is a part of what it leaves: below, it cannot be seen in
a picture, while the gradient of its log-probability grows as one over it and would drown the others'."""


class DenoisingPolicy:
    """pi(x_{k+1} | x_k, prompt): one guided stochastic step as a Gaussian, for sampling and for scoring a given next
    latent alike."""

    def __init__(
        self,
        network: Any,
        table: Table,
        guidance: float,
        eta: float,
        device: torch.device,
        low_precision: torch.dtype | None,
        *,
        predict: Predict = predict_with_unet,
        sde: FlowSDE = "ddim",
        noisy: tuple[int, ...] = (),
    ) -> None:
        """``low_precision`` is the dtype of the network's products and of the stored latents, None for float32. Steps
        from ``noisy[0]`` up to, without, ``noisy[1]`` have noise, all where it is empty; ``predict`` is the
        family's."""
        self.network, self.table, self.guidance, self.eta, self.device = network, table, guidance, eta, device
        self.low_precision, self.predict, self.sde = low_precision, predict, sde
        self.noisy = range(*noisy) if noisy else range(table.steps)
        self.learnt = [k for k in self.noisy if k < table.steps - 1 and (sde == "flow" or table.left(k) > LEAST_LEFT)]
        """the steps that have a log-probability to learn from"""
        self._table = table.to(device)
        self._eta = torch.tensor([eta if k in self.noisy else 0.0 for k in range(table.steps)], device=device)

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the latents that a rollout keeps."""
        return self.low_precision or torch.float32

    def answer(self, latents: Tensor, k: Tensor, told: Conditioning | Tensor, empty: Conditioning | Tensor) -> Tensor:
        """What the network says at the start of step ``k``, guided, in float32: noise, velocity or picture, as it was
        trained to.

        ``latents`` (batch, channels, height, width), ``k`` (batch,) int64; ``told`` is the prompts' conditioning and
        ``empty`` that of no prompt, without its batch (a tensor stands for a tuple of one).
        """
        told = (told,) if isinstance(told, Tensor) else told
        empty = (empty,) if isinstance(empty, Tensor) else empty
        lowered = (
            torch.autocast(self.device.type, self.low_precision) if self.low_precision else contextlib.nullcontext()
        )
        with lowered:
            return self.predict(self.network, latents.float(), self._table.timesteps[k], told, empty, self.guidance)

    def step(
        self,
        latents: Tensor,
        k: Tensor,
        told: Conditioning | Tensor,
        empty: Conditioning | Tensor,
        eta: float | None = None,
    ) -> Gaussian:
        """The Gaussian of step ``k`` in float32; arguments as of ``answer``. ``eta`` replaces the policy's own."""
        output = self.answer(latents, k, told, empty)
        etas = self._eta[k] if eta is None else torch.full_like(self._eta[k], eta)
        return self._table.kernel(output, latents.float(), k, etas, self.sde)

    def noised(self, clean: Tensor, noise: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents at the level where step ``k`` starts, and what the network should say there."""
        return self._table.noised(clean.float(), noise, k)


KEPT_BYTES = 2**29
"""of embeddings that are remembered: those of Stable Diffusion 1 take 0.24 MB a prompt, those of FLUX 8 MB"""


DECODED = 8
"""pictures decoded at once: in full size the decoder takes more memory than the network"""


class PromptEmbeddings:
    """The frozen text encoders' output, remembered for repeated prompts."""

    def __init__(self, pipeline: Any, device: torch.device, request: Request) -> None:
        self._pipeline, self._device, self._request, self._family = pipeline, device, request, family_of(pipeline)
        self._known: dict[str, Conditioning] = {}
        self.empty = self._family.empty(pipeline, device, request)
        self._room = max(1, KEPT_BYTES // sum(part.nbytes for part in self.empty))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """(batch,) -> tensors (batch, ...)."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            if len(self._known) + len(new) > self._room:
                self._known, new = {}, list(dict.fromkeys(prompts))
            encoded = self._family.encode(self._pipeline, new, self._device, self._request)
            self._known |= zip(new, zip(*encoded, strict=True), strict=True)
        return tuple(torch.stack(rows) for rows in zip(*(self._known[prompt] for prompt in prompts), strict=True))

    def cut(self, prompts: Sequence[str]) -> str | None:
        """One sentence when the ends of some prompts are not read by a text encoder."""
        found = []
        for part, tokenizer, limit in self._family.limits(self._pipeline, self._request):
            lengths = [len(tokens) for tokens in tokenizer(list(prompts), verbose=False).input_ids]
            if long := sum(length > limit for length in lengths):
                found.append(
                    f"{part} reads {limit} tokens and {long} of {len(prompts)} prompts have more (up to {max(lengths)})"
                )
        return f"{'; '.join(found)}: the ends of these are not seen" if found else None


class Noise:
    """Standard normal draws of a batch of images, each from a stream of its own: a picture does not depend on what it
    is batched with."""

    def __init__(
        self,
        starts: Sequence[Sequence[int]],
        steps: Sequence[Sequence[int]],
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        """``starts`` and ``steps`` hold a path of integers for each image; images with the same path share their first
        latent."""
        self.starts, self._streams = [tuple(path) for path in starts], [_stream(path) for path in steps]
        self._shape, self._device = shape, device

    def start(self) -> Tensor:
        """The first latents, (batch, channels, height, width)."""
        return torch.stack([torch.randn(self._shape, generator=_stream(path)) for path in self.starts]).to(self._device)

    def next(self) -> Tensor:
        """The noise of the next step, (batch, channels, height, width)."""
        return torch.stack([torch.randn(self._shape, generator=stream) for stream in self._streams]).to(self._device)


class Studio:
    """Prompts in, pictures out: the policy with its text encoders and its decoder."""

    def __init__(self, pipeline: Any, policy: DenoisingPolicy, request: Request) -> None:
        self.policy, self.device, self.family = policy, policy.device, family_of(pipeline)
        self.embeddings = PromptEmbeddings(pipeline, policy.device, request)
        self._vae = pipeline.vae
        self.shape = self.family.shape(configs_of(pipeline), request)
        """(channels, height, width) of the latents"""

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], noise: Noise, reduction: LogProbReduction, *, means: bool = False
    ) -> Rollout:
        """One batch. A next latent is drawn in float32 and stored; its log-probability is that of what was stored.

        Up to the first noise, pictures of one prompt and one first latent are the same: the network's answers there are
        computed once for them.
        """
        policy, told, empty = self.policy, self.embeddings(prompts), self.embeddings.empty
        keys = [*zip(prompts, noise.starts, strict=True)]
        first_of = {key: i for i, key in reversed([*enumerate(keys)])}
        alone = sorted(first_of.values())
        place = [alone.index(first_of[key]) for key in keys]
        latents = [noise.start().to(policy.stored)]
        log_probs: list[Tensor] = []
        centres: list[Tensor] = []
        for k in range(policy.table.steps):
            if k <= policy.noisy.start:
                one = policy.step(latents[-1][alone], self._at(k, len(alone)), tuple(part[alone] for part in told), empty)
                step = Gaussian(one.mean[place], one.std[place])
            else:
                step = policy.step(latents[-1], self._at(k, len(prompts)), told, empty)
            latents.append((step.sample(noise.next()) if k in policy.noisy else step.mean).to(policy.stored))
            if k < policy.table.steps - 1:
                learnt = k in policy.learnt and policy.eta > 0
                log_probs.append(
                    step_log_prob(step, latents[-1].float(), reduction)
                    if learnt
                    else torch.zeros(len(prompts), device=self.device)
                )
                centres += [step.mean] if means else []
        images = self.decode(latents[-1])
        return Rollout(
            images, torch.stack(latents, 1), torch.stack(log_probs, 1), torch.stack(centres, 1) if means else None
        )

    @torch.no_grad()
    def render(self, prompts: Sequence[str], noise: Noise) -> Tensor:
        """Pictures (batch, 3, height, width) of the noise-free chain (eta 0): what is compared over time depends on the
        weights alone."""
        told, empty = self.embeddings(prompts), self.embeddings.empty
        latents = noise.start().to(self.policy.stored)
        for k in range(self.policy.table.steps):
            latents = self.policy.step(latents, self._at(k, len(prompts)), told, empty, eta=0.0).mean.to(
                self.policy.stored
            )
        return self.decode(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (batch, channels, height, width) -> pictures (batch, 3, height, width), float32 in [0, 1]. Raises
        ``NonFiniteError``."""
        images = torch.cat([self.family.decode(self._vae, part) for part in latents.float().split(DECODED)]).clamp(0, 1)
        if not bool(images.isfinite().all()):
            raise NonFiniteError("the pictures are not finite: lower --guidance, or, in training, --learning-rate.")
        return images

    def _at(self, k: int, batch: int) -> Tensor:
        return torch.full((batch,), k, device=self.device)


def build_studio(
    pipeline: Any,
    request: Request,
    guidance: float,
    eta: float,
    device: torch.device,
    low_precision: torch.dtype | None = None,
    *,
    sde: FlowSDE = "ddim",
    noisy: tuple[int, ...] = (),
) -> Studio:
    """The studio of a loaded pipeline that is on ``device``, once one prompt, one step and one decoding have gone
    through it.

    Raises ``UserError`` when the parts do not fit together or the device has too little memory.
    """
    family = family_of(pipeline)
    table = family.table(configs_of(pipeline), request)
    network = getattr(pipeline, family.network)
    policy = DenoisingPolicy(
        network, table, guidance, eta, device, low_precision, predict=family.predict, sde=sde, noisy=noisy
    )
    try:
        studio = Studio(pipeline, policy, request)
        with torch.no_grad():
            x = torch.zeros(1, *studio.shape, device=device)
            studio.decode(
                policy.step(
                    x,
                    torch.zeros(1, dtype=torch.int64, device=device),
                    studio.embeddings([""]),
                    studio.embeddings.empty,
                    0.0,
                ).mean
            )
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"one picture does not fit into the memory of {device}: give a smaller --height and --width, or another"
            " device."
        ) from error
    except Exception as error:  # whatever a library says of shapes or arguments that are not its own
        raise UserError(
            f"the parts of this {family.title} pipeline do not fit together ({first_line(error)}): give a whole one."
        ) from error
    return studio


def _stream(path: Sequence[int]) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(list(path)).generate_state(1, np.uint64)[0] >> 1))
