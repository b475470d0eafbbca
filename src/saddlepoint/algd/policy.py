"""The diffusion policy: a score network, a reverse process as data, and the squash into the action box."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.diffusion.kernel import ReverseProcess, ancestral_reverse, euler_reverse, guided_ddpm_reverse
from saddlepoint.diffusion.network import Conditioned, ScoreNetwork, Tape
from saddlepoint.diffusion.sample import sample_chain
from saddlepoint.diffusion.schedule import Schedule, linear_betas, prior_reaching_betas, ve_schedule, vp_schedule
from saddlepoint.nn.layers import ActionBox


class ChainNoise(NamedTuple):
    """Standard normal draws of one chain: ``start`` (batch, action), ``steps`` (K, batch, action)."""

    start: Tensor
    steps: Tensor


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
    return schedule, ancestral_reverse(
        schedule, final_std=float(schedule.sigma[0]) if config.entropy != "none" else 0.0
    )


class DiffusionPolicy(nn.Module):
    """pi(a|s): x_K ~ start * N(0, I), then K reverse steps, then a = squash(x_0)."""

    def __init__(self, config: ALGDConfig, state: int, box: ActionBox, generator: torch.Generator):
        super().__init__()
        self.config, self.box = config, box
        self.schedule, process = make_process(config)
        self.network = ScoreNetwork(
            state,
            len(box.scale),
            config.steps,
            config.policy_hidden,
            config.time_embedding,
            config.prediction == "guided",
            generator,
        )
        self.place(torch.device("cpu"), torch.float32, process)

    def place(self, device: torch.device, dtype: torch.dtype, process: ReverseProcess | None = None) -> DiffusionPolicy:
        """Move everything, tables included, to ``device`` and ``dtype``."""
        process = process or make_process(self.config)[1]
        self.process = process.to(device, dtype)
        self.alpha, self.sigma = (t.to(device, dtype) for t in self.schedule)
        self.box = self.box.to(device, dtype)
        return self.to(device, dtype)

    def score(self, at: Conditioned, x: Tensor, k: int | Tensor, tape: Tape | None = None) -> Tensor:
        """Estimate of grad log p(x_k | s) at the latent x (batch, action); ``k`` a step or (batch,) of them; ``tape`` as in ``ScoreNetwork``."""
        kind = self.config.prediction
        u = self.box.squash(x) if self.config.score_space == "action" else x
        output = self.network(at, u, k, tape=tape)
        if kind in ("score", "guided"):
            return output
        sigma = self.sigma[k] if isinstance(k, int) else self.sigma[k].unsqueeze(-1)
        if kind == "noise":
            return -output / sigma
        alpha = self.alpha[k] if isinstance(k, int) else self.alpha[k].unsqueeze(-1)
        return (alpha * output - x) / sigma**2

    def latents(
        self,
        state: Tensor,
        start: Tensor,
        noise: Tensor | None,
        at: Conditioned | None = None,
        tape: Tape | None = None,
    ) -> Tensor:
        """All latents (K + 1, batch, action) of the chains from ``start`` (batch, action); see ``sample_chain`` and ``ScoreNetwork``."""
        at = at or self.network.condition(state)
        guided = self.config.prediction == "guided"

        def estimate(x: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
            score = self.score(at, x, k, tape)
            if not guided:
                return score, None
            # The released guidance throws the score's length away: (lambda, rho) reach it through the direction only [5].
            return score / (score.norm(dim=-1, keepdim=True) + 1e-8), self.network(at, x, k, "eps", tape)

        return sample_chain(estimate, self.process, start, noise)

    def draw(self, batch: int, generator: torch.Generator) -> ChainNoise:
        shape = (self.config.steps + 1, batch, len(self.box.scale))
        noise = torch.randn(shape, generator=generator, device=self.box.scale.device, dtype=self.box.scale.dtype)
        return ChainNoise(noise[0], noise[1:])

    def sample(self, state: Tensor, noise: ChainNoise) -> Tensor:
        """Actions (batch, action) from given noise."""
        return self.box.squash(self.latents(state, self.process.start * noise.start, noise.steps)[0])

    def mean_action(self, state: Tensor) -> Tensor:
        """The noise-free chain from latent 0: the released evaluation."""
        return self.box.squash(
            self.latents(state, torch.zeros(len(state), len(self.box.scale)).to(self.box.scale), None)[0]
        )

    def path_entropy(self, latents: Tensor, noise: ChainNoise) -> Tensor:
        """A lower bound on the entropy of the action, scaled to [-1, 1], from the chain's own path. (batch,).

        H(a) >= E[ sum_k log q(x_k | x_{k-1}) - log p(x_{k-1} | x_k) ] - E log p(x_K) + E log|da/dx|, where q is the noising process and p the
        reverse chain: the data-processing inequality, as in maximum-entropy diffusion policies (DIME, arXiv 2502.02316).
        """
        alpha, sigma = self.alpha, self.sigma
        ratio = torch.cat([alpha[:1], alpha[1:] / alpha[:-1]]).view(-1, 1, 1)
        added = torch.cat(
            [sigma[:1].square(), sigma[1:].square() - ratio[1:, 0, 0].square() * sigma[:-1].square()]
        ).view(-1, 1, 1)
        forward = -0.5 * ((latents[1:] - ratio * latents[:-1]).square() / added + added.log())
        reverse = -0.5 * noise.steps.square() - self.process.std.log().view(
            -1, 1, 1
        )  # log p of the drawn point: the constants cancel
        first = -0.5 * noise.start.square() - math.log(self.process.start) - 0.5 * math.log(2 * math.pi)
        unit = self.box.log_jacobian(latents[0]) - self.box.scale.log().sum()
        return (forward - reverse).sum((0, 2)) - first.sum(-1) + unit
