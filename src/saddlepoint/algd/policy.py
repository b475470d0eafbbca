"""The diffusion policy: a score network, a reverse process as data, and the squash into the action box."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.diffusion.kernel import ReverseProcess, ancestral_reverse, euler_reverse, guided_ddpm_reverse
from saddlepoint.diffusion.network import make_score_network
from saddlepoint.diffusion.schedule import Schedule, linear_betas, prior_reaching_betas, ve_schedule, vp_schedule
from saddlepoint.nn import ops
from saddlepoint.nn.layers import ActionBox, log_tanh_slope


class ChainNoise(NamedTuple):
    """Standard normal draws of one chain."""

    start: Tensor
    """(batch, action)"""
    steps: Tensor
    """(K, batch, action), row k for step k"""


class StepCoefficients(NamedTuple):
    """alpha, sigma, gain and shift at the sampled steps, (batch, 1) each: x_k = alpha x_0 + sigma eps, score = gain * output + shift * x_k."""

    alpha: Tensor
    sigma: Tensor
    gain: Tensor
    shift: Tensor


def make_process(config: ALGDConfig) -> tuple[Schedule, ReverseProcess]:
    """The noising schedule and the reverse process that the config names, in float64."""
    if config.schedule == "ve":
        schedule = ve_schedule(config.steps, config.sigma_min, config.sigma_max)
    else:
        released = config.vp_betas == "released"
        betas = (
            linear_betas(config.steps, config.beta_first, config.beta_last)
            if released
            else prior_reaching_betas(config.steps, config.sigma_min)
        )
        schedule = vp_schedule(betas)
        if config.prediction == "guided":
            return schedule, guided_ddpm_reverse(betas, config.guidance)
    if config.step_noise == "euler":
        return schedule, euler_reverse(schedule)
    # With an entropy bonus the last step keeps noise of sigma_min, so that the path has a density.
    final_std = float(schedule.sigma[0]) if config.entropy != "none" else 0.0
    return schedule, ancestral_reverse(schedule, final_std=final_std)


class DiffusionPolicy(nn.Module):
    """pi(a|s): x_K ~ start * N(0, I), then K reverse steps, then a = squash(x_0)."""

    def __init__(self, config: ALGDConfig, state: int, box: ActionBox, generator: torch.Generator):
        """``state`` numbers an observation; weights are drawn from ``generator``."""
        super().__init__()
        self.config, self.box = config, box
        self.schedule, self.process = make_process(config)
        self.guided = config.prediction == "guided"
        sizes = (state, len(box.scale), config.steps, config.policy_hidden, config.time_embedding)
        self.network = make_score_network(config.score_network, *sizes, self.guided, generator)
        self.gain, self.shift = score_of_output(config, self.schedule)
        self.table = self.process.of_output(self.gain, self.shift).table
        self.place(box.scale.device, box.scale.dtype)

    def place(self, device: torch.device, dtype: torch.dtype) -> DiffusionPolicy:
        """Move everything, tables included, to ``device`` and ``dtype``."""
        columns = (*self.schedule, torch.tensor(self.gain, dtype=torch.float64), torch.tensor(self.shift, dtype=torch.float64))
        self.coefficients = torch.stack([column.to(device, dtype) for column in columns]).unsqueeze(-1)  # (4, steps, 1)
        # Of the path entropy: what a noising step keeps of the latent, and the variance that it adds.
        previous = self.schedule.previous()
        ratio = self.schedule.alpha / previous.alpha
        added = self.schedule.sigma.square() - ratio.square() * previous.sigma.square()
        self.ratio, self.added = (t.to(device, dtype).view(-1, 1, 1) for t in (ratio, added))
        if self.config.entropy != "none":
            self.log_ratio = sum(math.log(std) for std in self.process.std) - float(added.log().sum()) / 2
        self.box = self.box.to(device, dtype)
        return self.to(device, dtype)

    def at_steps(self, k: Tensor) -> StepCoefficients:
        """The coefficients of the steps k (batch,)."""
        return StepCoefficients(*self.coefficients.index_select(1, k).unbind())

    def point(self, x: Tensor) -> Tensor:
        """Where the network looks for the latent x (..., action): there, or (released) at the action [6]."""
        return self.box.squash(x) if self.config.score_space == "action" else x

    def score(self, state: Tensor, x: Tensor, k: Tensor) -> Tensor:
        """Estimate of grad log p(x_k | s) at the latents x (batch, action) and their steps k (batch,)."""
        at = self.at_steps(k)
        return at.gain * self.network(state, self.point(x), k) + at.shift * x

    def latents(self, state: Tensor, start: Tensor, noise: Tensor | None) -> Tensor:
        """All latents (K + 1, batch, action) of the chains from ``start`` (batch, action); row K is the start, row 0 the sample.

        ``noise`` (K, batch, action), row k for step k; None runs the chain at its means. Gradients flow through every step.
        """
        if self.guided:
            # The released guidance throws the score's length away: (lambda, rho) reach it through the direction only [5].
            score_at, noise_at = self.network.given(state), self.network.given(state, "eps")

            def output(x: Tensor, k: int) -> Tensor:
                score = score_at(self.point(x), k)
                direction = score / (score.norm(dim=-1, keepdim=True) + 1e-8)
                return self.config.guidance * direction + self.process.denoise[k] * noise_at(x, k)

            table = ops.ReverseTable(self.process.keep, (1.0,) * self.process.steps, self.process.std)
            return ops.reverse_chain(output, start, noise, table)
        if self.config.score_space == "action":
            score_at = self.network.given(state)
            return ops.reverse_chain(lambda x, k: score_at(self.point(x), k), start, noise, self.table)
        return self.network.chain(state, start, noise, self.table)

    def path(self, state: Tensor, noise: ChainNoise) -> Tensor:
        """All latents (K + 1, batch, action) of the chains that ``noise`` draws."""
        return self.latents(state, self.process.start * noise.start, noise.steps)

    def normal(self, batch: int, generator: torch.Generator) -> Tensor:
        """The draws of ``batch`` chains, (K + 1, batch, action): row 0 starts them, row 1 + k is that of step k."""
        shape = (self.config.steps + 1, batch, len(self.box.scale))
        return torch.randn(shape, generator=generator, device=self.box.scale.device, dtype=self.box.scale.dtype)

    def draw(self, batch: int, generator: torch.Generator) -> ChainNoise:
        """The noise of ``batch`` chains."""
        noise = self.normal(batch, generator)
        return ChainNoise(noise[0], noise[1:])

    def sample(self, state: Tensor, noise: ChainNoise) -> Tensor:
        """Actions (batch, action) from given noise."""
        return self.box.squash(self.path(state, noise)[0])

    def mean_action(self, state: Tensor) -> Tensor:
        """The noise-free chain from latent 0: the released evaluation. (batch, action)."""
        start = state.new_zeros(state.shape[0], len(self.box.scale))  # shape[0]: len() would fix the batch of an export
        return self.box.squash(self.latents(state, start, None)[0])

    def path_entropy(self, latents: Tensor, noise: ChainNoise) -> Tensor:
        """A lower bound on the entropy of the action, scaled to [-1, 1], from the chain's own path: (batch,).

        H(a) >= E[ sum_k log q(x_k | x_{k-1}) - log p(x_{k-1} | x_k) ] - E log p(x_K) + E log|da/dx|, where q is the noising process and p the
        reverse chain: the data-processing inequality, as in maximum-entropy diffusion policies (DIME, arXiv 2502.02316).
        """
        log_start = math.log(self.process.start) + 0.5 * math.log(2 * math.pi)
        added = latents[1:] - self.ratio * latents[:-1]  # what noising would have added on the way
        path = (noise.steps.square() - added.square() / self.added).sum((0, 2)) + noise.start.square().sum(-1)
        return 0.5 * path + log_tanh_slope(latents[0]) + latents.shape[-1] * (self.log_ratio + log_start)


def score_of_output(config: ALGDConfig, schedule: Schedule) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(gain, shift) of each step: score = gain * output + shift * x, by what the network predicts (``ALGDConfig.prediction``)."""
    one, zero, variance = torch.ones_like(schedule.sigma), torch.zeros_like(schedule.sigma), schedule.sigma.square()
    gain, shift = {
        "score": (one, zero), "guided": (one, zero), "noise": (-1 / schedule.sigma, zero), "clean": (schedule.alpha / variance, -1 / variance),
    }[config.prediction or ("noise" if config.schedule == "ve" else "clean")]  # fmt: skip
    return tuple(gain.tolist()), tuple(shift.tolist())
