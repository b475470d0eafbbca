"""The networks of MBDPO: encoder, latent dynamics and heads on it. No update and no planning here."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.mbdpo.config import MBDPOConfig, heuristic_discount
from saddlepoint.mbdpo.encoder import make_encoder
from saddlepoint.nn.normed import NormedMLP
from saddlepoint.nn.twohot import two_hot_inverse, two_hot_loss
from saddlepoint.types import EnvShape

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
HALF_LOG_2PI = 0.9189385175704956  # rounded to float32, as the release has it; only a reported entropy depends on it
ENERGY_STD_MIN = 1e-6


class Tasks(NamedTuple):
    """Several tasks in one model: what each uses of the padded action, and the length of its episodes."""

    action_dims: tuple[int, ...]
    episode_lengths: tuple[int, ...]


class PolicySample(NamedTuple):
    """A sample of the policy prior. Leading axes as the latent's."""

    action: Tensor  # (..., action) in [-1, 1]
    mean: Tensor  # (..., action), the noise-free action
    log_std: Tensor  # (..., action)
    entropy: Tensor  # (...)
    scaled_entropy: Tensor  # (...)


class WorldModel(nn.Module):
    """z = h(o), z' = d(z, a), and heads: reward, termination, energy, reward and cost critics, policy prior, score network.

    Latents z are (..., latent), actions (..., action) in [-1, 1]; the leading axes of both broadcast. ``task`` is None or task numbers in a shape that
    broadcasts against those axes; their embedding joins every input.
    """

    gamma: Tensor
    mask: Tensor
    energy_mean: Tensor
    energy_std: Tensor
    value_scale: Tensor
    times: Tensor

    def __init__(self, config: MBDPOConfig, shape: EnvShape, tasks: Tasks | None, generator: torch.Generator) -> None:
        super().__init__()
        c = self.config = config
        action, constraints = self.action, self.constraints = shape.action, shape.constraints
        self.image = shape.image
        state = (c.latent,) if tasks is None else (c.latent, c.task_embedding)
        hidden = (c.width, c.width)

        def head(inputs: Sequence[int], outputs: int, members: int = 0, zero_last: bool = True, dropout: float = 0.0) -> NormedMLP:
            return NormedMLP(inputs, hidden, outputs, generator, members=members, zero_last=zero_last, dropout=dropout)

        self.encoder = make_encoder(c, shape.observation, shape.image, state[1:], generator)
        self.dynamics = NormedMLP((*state, action), hidden, c.latent, generator, simplex=c.simplex)
        self.reward_head = head((*state, action), c.bins)
        self.termination_head = head(state, 1, zero_last=False)
        self.energy_head = head((*state, action), 1)
        self.policy_head = head(state, 2 * action, zero_last=False)
        self.score_head = head((*state, c.horizon * action, c.time_embedding), c.horizon * action)
        self.critics = head((*state, action), c.bins, c.critics, dropout=c.dropout)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        if constraints:
            self.cost_head = head((*state, action), c.bins, constraints)
            self.cost_critics = head((*state, action), c.bins, constraints * c.cost_members)
            self.target_cost_critics = copy.deepcopy(self.cost_critics).requires_grad_(False)
        if tasks is not None:
            self.task_table = nn.Parameter(torch.empty(len(tasks.action_dims), c.task_embedding).uniform_(-0.02, 0.02, generator=generator))
            self.register_buffer("mask", (torch.arange(action) < torch.tensor(tasks.action_dims)[:, None]).float())
        self.multitask = tasks is not None
        gammas = [c.gamma] if tasks is None else [heuristic_discount(length) for length in tasks.episode_lengths]
        self.register_buffer("gamma", torch.tensor(gammas, dtype=torch.float64), persistent=False)
        self.register_buffer("energy_mean", torch.zeros(()))
        self.register_buffer("energy_std", torch.ones(()))
        self.register_buffer("value_scale", torch.ones(()))
        self.register_buffer("times", time_table(c.steps, c.time_embedding), persistent=False)
        self.low = False
        """whether all products are in bfloat16"""

    def lower(self) -> None:
        """Have all products in bfloat16 from now on."""
        self.low = True
        for net in self._nets():
            net.dtype = torch.bfloat16

    def accelerate(self) -> None:
        """Use native operations from now on where they fit. Whoever changes the weights says so by ``changed``."""
        for net in self._nets():
            net.accelerate()

    def changed(self) -> None:
        """Mark packed weights stale after a change of the weights that was not a load."""
        for net in self._nets():
            net.changed()

    def _nets(self) -> list[NormedMLP]:
        return [net for net in self.modules() if isinstance(net, NormedMLP)]

    # ------------------------------------------------------------------------------------------------ state and task

    def _state(self, z: Tensor, task: Tensor | None) -> tuple[Tensor, ...]:
        return (z,) if task is None else (z, self.embedding(task))

    def embedding(self, task: Tensor) -> Tensor:
        """(...) -> (..., embedding). Rows longer than 1 are first rescaled in the table itself, as TD-MPC2 has it."""
        return F.embedding(task, self.task_table, max_norm=1.0)

    def discount(self, task: Tensor | None) -> Tensor:
        """gamma: () or as ``task``, in the model's precision."""
        return self.gamma[0] if task is None else self.gamma[task]

    def masked(self, action: Tensor, task: Tensor | None) -> Tensor:
        """Zero what a task does not use of (..., action)."""
        return action if task is None else action * self.mask[task]

    def encode(self, observation: Tensor, task: Tensor | None = None) -> Tensor:
        """(..., observation), of any number type -> (..., latent)."""
        return self.encoder(*self._state(observation.to(self.energy_mean.dtype), task))

    def next(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """z' = d(z, a): (..., latent)."""
        return self.dynamics(*self._state(z, task), action)

    # ------------------------------------------------------------------------------------------------ heads

    def reward_logits(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        return self.reward_head(*self._state(z, task), action)

    def reward(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """(...): the decoded reward."""
        return self.decode(self.reward_logits(z, action, task))

    def termination_logit(self, z: Tensor, task: Tensor | None = None) -> Tensor:
        """(...): logit of "the task has ended in z"."""
        return self.termination_head(*self._state(z, task)).squeeze(-1)

    def energy(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """F(z, a), (...): logit of "the behaviour would do a in z"."""
        return self.energy_head(*self._state(z, task), action).squeeze(-1)

    def normal_energy(self, logits: Tensor) -> Tensor:
        """(F - mean)/std with the running statistics, clipped. Shape as ``logits``."""
        bound = self.config.energy_clip
        return ((logits - self.energy_mean) / self.energy_std.clamp(min=ENERGY_STD_MIN)).clamp(-bound, bound)

    def value_logits(
        self, z: Tensor, action: Tensor, task: Tensor | None = None, chosen: Sequence[int] | None = None,
        target: bool = False, frozen: bool = False, drop: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(chosen members, ..., bins) of the online or the target critics; see ``NormedMLP.forward`` for the options."""
        net = self.target_critics if target else self.critics
        return net(*self._state(z, task), action, chosen=chosen, frozen=frozen, drop=drop)

    def values(
        self, z: Tensor, action: Tensor, task: Tensor | None = None, chosen: Sequence[int] | None = None, target: bool = False, frozen: bool = False
    ) -> Tensor:
        """(chosen members, ...): decoded Q."""
        return self.decode(self.value_logits(z, action, task, chosen, target, frozen))

    def cost_logits(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """(constraints, ..., bins)."""
        return self.cost_head(*self._state(z, task), action)

    def cost_value_logits(self, z: Tensor, action: Tensor, task: Tensor | None = None, target: bool = False, frozen: bool = False) -> Tensor:
        """(constraints * members, ..., bins)."""
        net = self.target_cost_critics if target else self.cost_critics
        return net(*self._state(z, task), action, frozen=frozen)

    def decode(self, logits: Tensor) -> Tensor:
        """(..., bins) -> (...), in float32 or better."""
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        return two_hot_inverse(logits, -self.config.bin_limit, self.config.bin_limit).squeeze(-1)

    def decode_cost(self, logits: Tensor) -> Tensor:
        """As ``decode`` with negative estimates, which no cost has, taken as 0."""
        return self.decode(logits).clamp(min=0)

    def code_loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """(..., bins), (...) -> (...): cross-entropy against the two-hot code of x."""
        return two_hot_loss(logits, x, -self.config.bin_limit, self.config.bin_limit)

    def policy(self, z: Tensor, noise: Tensor, task: Tensor | None = None) -> PolicySample:
        """a = tanh(mu + std * noise), with log std in [-10, 2]; ``noise`` (..., action)."""
        mean, raw = self.policy_head(*self._state(z, task)).chunk(2, dim=-1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(raw) + 1)
        size: Tensor | float = float(self.action)
        if task is not None:
            mask = self.mask[task]
            mean, log_std, noise, size = mean * mask, log_std * mask, noise * mask, mask.sum(-1)
        gaussian = (-0.5 * noise.square() - log_std - HALF_LOG_2PI).sum(-1)
        action = torch.tanh(mean + noise * log_std.exp())
        log_prob = gaussian - ((1 - action.square()).relu() + 1e-6).log().sum(-1)
        scale = gaussian * size / (log_prob + 1e-8)
        return PolicySample(action, torch.tanh(mean), log_std, -log_prob, -log_prob * scale)

    def score_output(self, z: Tensor, x: Tensor, tau: Tensor, task: Tensor | None = None) -> Tensor:
        """The score network at noisy plans x (batch, horizon, action) and levels tau (batch,) or (): shape as ``x``."""
        return self.score_head(*self._state(z, task), x.flatten(-2), self.times[tau]).view_as(x)


def time_table(steps: int, width: int) -> Tensor:
    """[sin(tau f), cos(tau f)] with f_i = 10000^(-i/(k-1)), i < k = width // 2, padded with a zero where width is odd. (steps, width)."""
    k = width // 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(k, dtype=torch.float64) / max(k - 1, 1))
    angle = torch.arange(steps, dtype=torch.float64)[:, None] * frequency
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, width - 2 * k))
