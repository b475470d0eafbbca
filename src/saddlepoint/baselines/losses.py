"""The losses of soft actor-critic and of its constrained forms: pure functions of values, under ordinary autograd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.baselines.config import ConstrainedConfig, SACConfig
from saddlepoint.baselines.policy import GaussianPolicy, Sample
from saddlepoint.constrained.risk import cautious, ensemble_risk
from saddlepoint.nn.critics import Critic
from saddlepoint.replay import Ahead
from saddlepoint.types import Batch


class UpdateNoise(NamedTuple):
    """Every random draw of one update: standard normal, (batch, action) each."""

    next: Tensor
    """for a' ~ pi(s')"""
    policy: Tensor
    """for a ~ pi(s)"""


def reward_loss(config: SACConfig, critic: Critic, target: Critic, batch: Batch, following: Sample, beta: Tensor) -> Tensor:
    """Squared errors of both heads against  r + gamma (1 - terminated) (min_j Q'_j(s', a') - beta log pi(a'|s')).

    Summed over the heads, mean over the batch. ``following`` is a' ~ pi(s').
    """
    with torch.no_grad():
        value = target(batch.next_observation, following.action[None])[:, 0].amin(0) - beta * following.log_prob
        wanted = batch.reward + config.gamma * (1 - batch.terminated) * value
    return critic.loss(batch.observation, batch.action, wanted, 1 / len(wanted))


def cost_loss(
    config: ConstrainedConfig, critic: Critic, target: Critic, batch: Batch, ahead: Ahead, following: Sample
) -> Tensor:  # fmt: skip
    """Squared errors of each cost member against  sum_{k<m} gamma_c^k c_k + gamma_c^m (1 - terminated) Qc'(s_m, a_m).

    ``ahead`` is what followed, m steps of it (``cost_steps``), and ``following`` is a_m ~ pi(s_m). The members bootstrap as ``cost_bootstrap`` says.

    Mean over each constraint's members and the batch, summed over the constraints.
    """
    with torch.no_grad():
        value = target(ahead.observation, following.action[None])[:, 0].unflatten(0, (batch.cost.shape[-1], -1))
        if config.cost_bootstrap != "own":
            value = cautious(value, config.cost_bootstrap == "pair").unsqueeze(1).expand_as(value)
        value = value.clamp(min=0) if config.nonnegative_costs else value
        goes_on = ahead.discount if config.cost_through_termination else ahead.discount * (1 - ahead.terminated)
        wanted = (ahead.cost.T.unsqueeze(1) + goes_on * value).flatten(0, 1)
    return critic.loss(batch.observation, batch.action, wanted, 1 / (len(batch.reward) * config.cost_members))


def soft_loss(policy: GaussianPolicy, critic: Critic, state: Tensor, noise: Tensor, beta: Tensor) -> tuple[Tensor, Sample, Tensor]:
    """mean[ beta log pi(a|s) - min_j Q_j(s, a) ],  a ~ pi(s), 0-d; the sample; and min_j Q_j, (batch,), without a gradient."""
    sample = policy.sample(state, noise)
    least = critic(state, sample.action[None])[:, 0].amin(0)
    return (beta * sample.log_prob - least).mean(), sample, least.detach()


def risks(critic: Critic, state: Tensor, action: Tensor, constraints: int, k: float) -> Tensor:
    """R_c(s, a) = mean_m Qc + k std_m Qc at (batch, state), (batch, action): (constraints, batch)."""
    return ensemble_risk(critic(state, action[None])[:, 0].unflatten(0, (constraints, -1)).transpose(0, 1), k)
