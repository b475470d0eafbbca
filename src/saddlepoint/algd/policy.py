"""The diffusion policy: a score network, a reverse process as data, and the squash into the action box."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.diffusion.kernel import ReverseProcess, ancestral_reverse, euler_reverse, guided_ddpm_reverse
from saddlepoint.diffusion.network import (
    Conditioned,
    Evaluation,
    Pulled,
    ScoreNetwork,
    chain_weight_gradients,
    stack,
    weight_gradients,
)
from saddlepoint.diffusion.sample import sample_chain
from saddlepoint.diffusion.schedule import Schedule, linear_betas, prior_reaching_betas, ve_schedule, vp_schedule
from saddlepoint.nn.fused import FusedNet
from saddlepoint.nn.layers import ActionBox, log_tanh_slope


class ChainNoise(NamedTuple):
    """Standard normal draws of one chain: ``start`` (batch, action), ``steps`` (K, batch, action)."""

    start: Tensor
    steps: Tensor


class Level(NamedTuple):
    """What the schedule and the score have at some steps, (batch,) each: x_k = alpha x_0 + sigma eps, and score = gain * output + shift * x_k."""

    alpha: Tensor
    sigma: Tensor
    gain: Tensor
    shift: Tensor


class Record(NamedTuple):
    """What the backward pass of a chain needs: the evaluations in their order, the guided chain's noise prediction after its score; or, from the C++ chain,
    the hidden layers' outputs (K + 1, batch, hidden) with room for one more evaluation."""

    evaluations: list[Evaluation]
    kept: list[Tensor]


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
        self.schedule, self.process = make_process(config)
        self.network = ScoreNetwork(
            state,
            len(box.scale),
            config.steps,
            config.policy_hidden,
            config.time_embedding,
            config.prediction == "guided",
            generator,
        )
        # score = gain_k * output + shift_k * x_k; the guided chain takes the score's direction alone, and its output is the score.
        self.gain, self.shift = score_of_output(config, self.schedule)
        self.chain = self.process.of_output(self.gain, self.shift)
        self.place(torch.device("cpu"), torch.float32)

    def place(self, device: torch.device, dtype: torch.dtype) -> DiffusionPolicy:
        """Move everything, tables included, to ``device`` and ``dtype``."""
        self.alpha, self.sigma = (t.to(device, dtype) for t in self.schedule)
        self.gains, self.shifts = (torch.tensor(table, device=device, dtype=dtype) for table in (self.gain, self.shift))
        self.levels = torch.stack([self.alpha, self.sigma, self.gains, self.shifts])
        # Of the path entropy: the variance that each noising step adds, what it keeps of the latent, and all that does not depend on the path.
        previous = self.schedule.previous()
        ratio = self.schedule.alpha / previous.alpha
        added = self.schedule.sigma.square() - ratio.square() * previous.sigma.square()
        self.ratio, self.added = (t.to(device, dtype).view(-1, 1, 1) for t in (ratio, added))
        if self.config.entropy != "none":
            self.log_ratio = sum(math.log(std) for std in self.process.std) - float(added.log().sum()) / 2
        self.box = self.box.to(device, dtype)
        return self.to(device, dtype)

    # ------------------------------------------------------------------------------------------------ forward

    def level(self, k: Tensor) -> Level:
        """That of the steps k (batch,)."""
        return Level(*self.levels.index_select(1, k).unbind())

    def point(self, x: Tensor) -> Tensor:
        """Where the network looks for the latent x (..., action): there, or (released) at the action [6]."""
        return self.box.squash(x) if self.config.score_space == "action" else x

    def score(self, at: Conditioned, x: Tensor, k: int | Tensor) -> Tensor:
        """Estimate of grad log p(x_k | s) at the latent x (batch, action); ``k`` a step or (batch,) of them."""
        output = at.evaluate(self.point(x), k, "score").output
        gain, shift = (table[k] if isinstance(k, int) else table[k].unsqueeze(-1) for table in (self.gains, self.shifts))
        return gain * output + shift * x

    def recorded(self, state: Tensor, noise: ChainNoise, rows: int) -> tuple[Tensor, Conditioned, Record]:
        """The latents of chains at ``state``, the network there, and what the backward pass needs, both from row ``rows`` on."""
        at, start = self.network.condition(state, learning=True), self.process.start * noise.start
        net = self._fused(at)
        if net is not None:
            kept = [start.new_empty(self.config.steps + 1, len(state) - rows, width, dtype=net.dtype) for width in net.widths]
            latents = net.chain_forward(at.shared, at.times, start, noise.steps, self._table, kept)
            return latents, at.rows(rows), Record([], kept)
        record: list[Evaluation] = []
        latents = self.latents(state, start, noise.steps, at, record)
        return latents, at.rows(rows), Record([evaluation.rows(rows) for evaluation in record], [])

    def _fused(self, at: Conditioned) -> FusedNet | None:
        """What runs whole chains in C++, where that is possible."""
        plain = self.config.prediction != "guided" and self.config.score_space == "latent"
        return at.nets["score"] if at.nets and plain else None

    @property
    def _table(self) -> tuple[tuple[float, ...], ...]:
        return self.chain.keep, self.chain.drift, self.chain.std

    def latents(
        self, state: Tensor, start: Tensor, noise: Tensor | None, at: Conditioned | None = None, record: list[Evaluation] | None = None
    ) -> Tensor:  # fmt: skip
        """All latents (K + 1, batch, action) of the chains from ``start`` (batch, action); see ``sample_chain``.

        The network's evaluations are added to ``record``, in the order of the steps.
        """
        network = at or self.network.condition(state)
        guided, net = self.config.prediction == "guided", self._fused(network)
        if net is not None and record is None:
            return net.chain_forward(network.shared, network.times, start, noise, self._table)

        def evaluate(u: Tensor, k: int, head: str) -> Tensor:
            evaluation = network.evaluate(u, k, head)
            if record is not None:
                record.append(evaluation)
            return evaluation.output

        def estimate(x: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
            output = evaluate(self.point(x), k, "score")
            if not guided:
                return output, None
            # The released guidance throws the score's length away: (lambda, rho) reach it through the direction only [5]. Its noise head sees the latent.
            return output / (output.norm(dim=-1, keepdim=True) + 1e-8), evaluate(x, k, "eps")

        return sample_chain(estimate, self.chain, start, noise)

    # ------------------------------------------------------------------------------------------------ backward

    def gradients(
        self, state: Tensor, at: Conditioned, latents: Tensor, record: Record, upstream: Tensor, matched: Evaluation, of_score: Tensor, row: Tensor,
        level: Level,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Gradients of the parameters, by name, for a loss with gradients ``upstream`` (K + 1, batch, action) at the chain's latents.

        ``record`` is what ``latents`` left; ``matched`` is the evaluation at the latents of rows ``row`` (batch,), whose score, that of ``level``, the loss
        has the gradient ``of_score`` (batch, action) at. The chain rule by hand, from x_0 to x_K, where x_{k-1} = keep_k x_k + drift_k output(x_k) + std_k eps.
        """
        gain, shift = level.gain.unsqueeze(-1), level.shift.unsqueeze(-1)
        grads = [torch.empty_like(kept) for kept in record.kept]
        pulled = at.backward(matched, gain * of_score, [grad[-1:] for grad in grads])
        if not self.config.detach_point:
            place = row.view(1, -1, 1).expand(1, -1, latents.shape[-1])
            below = self._to_latent(at.below(pulled), latents.gather(0, place)[0]) + shift * of_score
            upstream = upstream.scatter_add(0, place, below.unsqueeze(0))
        if grads:
            found = self._fused_back(state, at.nets["score"], latents, record, upstream, pulled, grads)
        else:
            found = weight_gradients(self.network, state, stack([pulled, *self._back(at, latents, record, upstream)]))
        return {f"network.{name}": gradient for name, gradient in found.items()}

    def _back(self, at: Conditioned, latents: Tensor, record: Record, upstream: Tensor) -> list[Pulled]:
        found, pull, guided, evaluations = [], upstream[0], self.config.prediction == "guided", record.evaluations
        for k, of_step in enumerate(reversed(list(zip(evaluations[::2], evaluations[1::2]) if guided else zip(evaluations)))):
            drift, score = self.chain.drift[k] * pull, of_step[0]
            found.append(at.backward(score, _through_direction(drift, score.output) if guided else drift))
            below = torch.add(self._to_latent(at.below(found[-1]), latents[k + 1]), pull, alpha=self.chain.keep[k])
            if guided:
                found.append(at.backward(of_step[1], self.chain.denoise[k] * pull))
                below = below + at.below(found[-1])
            pull = upstream[k + 1] + below
        return found

    def _fused_back(
        self, state: Tensor, net: FusedNet, latents: Tensor, record: Record, upstream: Tensor, pulled: Pulled, grads: list[Tensor]
    ) -> dict[str, Tensor]:
        of_output = torch.empty_like(upstream)
        of_output[-1] = pulled.upstream
        net.chain_backward(upstream, self._table, record.kept, grads, of_output)
        return chain_weight_gradients(self.network, net, state, latents[1:], pulled.evaluation, record.kept, grads, of_output)

    def _to_latent(self, below: Tensor, x: Tensor) -> Tensor:
        """The gradient at the latent for one where the network looked."""
        return below * self.box.slope(self.box.squash(x)) if self.config.score_space == "action" else below

    # ------------------------------------------------------------------------------------------------ acting

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

    def path_entropy(self, latents: Tensor, noise: ChainNoise) -> tuple[Tensor, Tensor]:
        """A lower bound on the entropy of the action, scaled to [-1, 1], from the chain's own path, (batch,); and its gradient at the latents, shaped as these.

        H(a) >= E[ sum_k log q(x_k | x_{k-1}) - log p(x_{k-1} | x_k) ] - E log p(x_K) + E log|da/dx|, where q is the noising process and p the
        reverse chain: the data-processing inequality, as in maximum-entropy diffusion policies (DIME, arXiv 2502.02316).
        """
        log_start = math.log(self.process.start) + 0.5 * math.log(2 * math.pi)
        residual = latents[1:] - self.ratio * latents[:-1]  # what noising would have added on the way
        pull = residual / self.added
        path = (noise.steps.square() - residual * pull).sum((0, 2)) + noise.start.square().sum(-1)
        entropy = 0.5 * path + (log_tanh_slope(latents[0]) + latents.shape[-1] * (self.log_ratio + log_start))
        slope = torch.cat([self.ratio * pull, torch.zeros_like(latents[:1])])
        slope[1:] -= pull
        slope[0] -= 2 * torch.tanh(latents[0])
        return entropy, slope


def score_of_output(config: ALGDConfig, schedule: Schedule) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(gain, shift) of each step: score = gain * output + shift * x, by what the network predicts (``ALGDConfig.prediction``)."""
    one, zero, variance = torch.ones_like(schedule.sigma), torch.zeros_like(schedule.sigma), schedule.sigma.square()
    gain, shift = {
        "score": (one, zero), "guided": (one, zero), "noise": (-1 / schedule.sigma, zero), "clean": (schedule.alpha / variance, -1 / variance),
    }[config.prediction or ("noise" if config.schedule == "ve" else "clean")]  # fmt: skip
    return tuple(gain.tolist()), tuple(shift.tolist())


def _through_direction(upstream: Tensor, score: Tensor) -> Tensor:
    """The gradient at v of upstream . v/(|v| + 1e-8): (batch, action) each."""
    norm = score.norm(dim=-1, keepdim=True)
    length = norm + 1e-8
    return upstream / length - score * (score * upstream).sum(-1, keepdim=True) / (norm * length.square()).clamp(min=1e-30)
