"""The losses of MBDPO's model, energy, score network and policy prior. Pure: model, data and noise in, tensors out.

Sequences are time-major: (horizon, batch, ...). Each loss names its reductions; ``by_time`` is the mean over the batch and (1/H) sum_t decay^t over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saddlepoint.constrained.units import between_percentiles
from saddlepoint.mbdpo.imagine import Constraint, policy_rollouts
from saddlepoint.mbdpo.planner import plan_mean, propose, score_of_mean
from saddlepoint.mbdpo.search import PlanNoise, Search, draw_critics
from saddlepoint.mbdpo.world_model import PolicySample, WorldModel


class Sequences(NamedTuple):
    """Sub-sequences of episodes, time-major."""

    observation: Tensor  # (horizon + 1, batch, observation), of any number type
    action: Tensor  # (horizon, batch, action), in [-1, 1]
    reward: Tensor  # (horizon, batch)
    cost: Tensor  # (constraints, horizon, batch)
    terminated: Tensor  # (horizon, batch) float
    task: Tensor | None  # (batch,)


class ScoreNoise(NamedTuple):
    """The draws of Monte-Carlo score targets; normal where nothing else is said."""

    level: Tensor  # (states,) int64 in 1 .. steps-1
    point: Tensor  # (states, horizon, action)
    begin: Tensor  # (states,) float: 1 where the point is about a replayed plan, 0 where about none, as at an episode's start
    proposals: Tensor  # (states, proposals, horizon, action)
    rollouts: Tensor  # (horizon, states, rollouts, action)
    terminal: Tensor  # (states, proposals, action)
    critics: Tensor  # (2,) int64


class UpdateNoise(NamedTuple):
    """Every random draw of one update; normal where nothing else is said."""

    target: Tensor  # (horizon, batch, action): of the TD target's action
    target_critics: Tensor  # (2,) int64
    negative_policy: Tensor  # (horizon, batch, action): of the prior's action as a negative
    negative_noise: Tensor  # (horizon, batch, action): added to it
    negative_uniform: Tensor  # (horizon, batch, action), uniform on [0, 1)
    policy: Tensor  # (horizon + 1, batch, action): of the prior in its own loss
    policy_critics: Tensor  # (2,) int64
    drop: Tensor | None  # the critics' ``NormedMLP.drop_mask`` for horizon * batch rows
    score: ScoreNoise | None  # None where the score network is not trained
    shift: Tensor | None = None  # (horizon + 1, batch, 2) int64: pixels by which pictures are moved; None where there are none
    plan: PlanNoise | None = None  # of the TD target's plans, for horizon * batch states; None where these are not searched for

    @classmethod
    def draw(cls, model: WorldModel, batch: int, generator: torch.Generator) -> UpdateNoise:
        c, action, like = model.config, model.action, model.energy_mean

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)

        score = None
        if c.trains_score:
            released = c.score_training == "released"
            states = 1 if released else min(c.score_states, batch)
            rollouts = 0 if released else c.score_rollouts
            level = torch.randint(1, c.steps, (states,), generator=generator, device=like.device)
            begin = (uniform(states) < BEGIN_SHARE).to(like.dtype)
            score = ScoreNoise(
                level, normal(states, c.horizon, action), begin, normal(states, c.score_proposals, c.horizon, action),
                normal(c.horizon, states, rollouts, action), normal(states, c.score_proposals, action), draw_critics(c.critics, 1, generator)[0],
            )  # fmt: skip
        shift = None
        if model.image is not None and c.random_shift:
            shift = torch.randint(-c.random_shift, c.random_shift + 1, (c.horizon + 1, batch, 2), generator=generator, device=like.device)
        plan = None
        if c.td_action == "plan":
            plan = PlanNoise.draw(c.td_search(), c.horizon * batch, action, like, generator, c.td_levels)
        shape = (c.horizon, batch, action)
        first = torch.arange(2, device=like.device)
        return cls(
            normal(*shape), first if c.target_critics == "first" else draw_critics(c.critics, 1, generator)[0],
            normal(*shape), normal(*shape), uniform(*shape), normal(c.horizon + 1, batch, action), draw_critics(c.critics, 1, generator)[0],
            model.critics.drop_mask(c.horizon * batch, generator), score, shift, plan,
        )  # fmt: skip


BEGIN_SHARE = 0.75
"""share of the score's training points that lie about a plan; the planner starts others from zeros, at an episode's start and for TD targets"""


def by_time(loss: Tensor, decay: float) -> Tensor:
    """(1/H) sum_t decay^t mean_b loss_tb. (horizon, batch) -> ()."""
    weights = decay ** torch.arange(len(loss), dtype=loss.dtype, device=loss.device)
    return (loss.mean(1) * weights).mean()


def plans_taken(actions: Tensor) -> Tensor:
    """The actions that follow each next state of a sub-sequence, zeros after its end: (horizon, batch, action) -> (horizon * batch, horizon, action)."""
    horizon, batch, size = actions.shape
    plans = actions.new_zeros(horizon, batch, horizon, size)
    for t in range(horizon - 1):
        plans[t, :, : horizon - 1 - t] = actions[t + 1 :].transpose(0, 1)
    return plans.flatten(0, 1)


def td_target(model: WorldModel, next_z: Tensor, reward: Tensor, terminated: Tensor, action: Tensor, critics: Sequence[int], task: Tensor | None) -> Tensor:
    """r + gamma (1 - terminated) min_j Q'_j(z', a') over two target critics. (horizon, batch)."""
    least = model.values(next_z, action, task, critics, target=True).amin(0)
    return reward + model.discount(task) * (1 - terminated) * least


def contrastive_loss(model: WorldModel, zs: Tensor, actions: Tensor, noise: UpdateNoise, task: Tensor | None) -> tuple[Tensor, Tensor]:
    """(BCE(F(z, a), 1) + BCE(F(z, a-), 0)) / 2 and all logits (2, horizon, batch).  MBDPO, Eq. for the energy.

    a- is that of three candidates with the highest F: a sample of the prior, the same with noise, a uniform one. Means are over horizon and batch; no gradient
    goes to ``zs`` (horizon, batch, latent).
    """
    c, zs = model.config, zs.detach()
    if c.energy_pairs == "released":  # latents count time first, actions and tasks batch first [1]
        actions = actions.transpose(0, 1).reshape(actions.shape)
        task = None if task is None else task.repeat_interleave(len(zs)).view(zs.shape[:2])
    with torch.no_grad():
        ours = model.policy(zs, noise.negative_policy, task).action
        noisy = (ours + c.negative_noise * noise.negative_noise).clamp(-1, 1)
        candidates = torch.stack([ours, noisy, (2 * noise.negative_uniform - 1).clamp(-1, 1)])
        if c.energy_pairs == "aligned":  # else noise in what a task does not use would give the negatives away
            candidates = model.masked(candidates, task)
        hard = model.energy(zs, candidates, task).argmax(0, keepdim=True)
        negative = candidates.gather(0, hard.unsqueeze(-1).expand(-1, -1, -1, candidates.shape[-1]))
    logits = model.energy(zs, torch.cat([actions[None], negative]), task)
    labels = torch.zeros_like(logits)
    labels[0] = 1
    return F.binary_cross_entropy_with_logits(logits, labels), logits.detach()


def running_energy(mean: Tensor, std: Tensor, logits: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """The energy's running mean and std after one more batch of logits."""
    new_std = logits.std(unbiased=False).clamp(min=1e-6)
    return momentum * mean + (1 - momentum) * logits.mean(), momentum * std + (1 - momentum) * new_std


def running_scale(scale: Tensor, values: Tensor, rate: float) -> Tensor:
    """The running range from the 5th to the 95th percentile of values (batch,), at least 1."""
    return scale + rate * (max(between_percentiles(values), 1.0) - scale)


def policy_loss(
    model: WorldModel, zs: Tensor, sample: PolicySample, value: Tensor, scale: Tensor, penalty: Tensor | None
) -> Tensor:
    """-mean_t decay^t mean_b[ (Q - penalty)/scale + entropy_weight * scaled entropy ], all (horizon + 1, batch)."""
    c = model.config
    wanted = value if penalty is None else value - penalty
    return -by_time(c.entropy_weight * sample.scaled_entropy + wanted / scale, c.temporal_decay)


def score_loss(
    search: Search, zs: Tensor, actions: Tensor, noise: ScoreNoise, task: Tensor | None, episodic: bool, constraint: Constraint | None
) -> Tensor:
    """Mean over states, horizon and action of the squared error of the score network's mean plan against the planner's. ``zs`` (batch, latent).

    The plan at (z, x, tau) is what the planner computes there from fewer proposals; x lies where the planner's own points do: about replayed action
    sequences ``actions`` (horizon, batch, action), or about zero, with the spread of that level's proposals.
    """
    model, c = search.model, search.config
    states = len(noise.level)
    z, task = zs[:states].detach(), None if task is None else task[:states]
    inner, outer = (None, None) if task is None else (task[:, None], task[:, None, None])
    alpha_bar = search.schedule.alpha_bar.to(z)[noise.level].view(-1, 1, 1)
    with torch.no_grad():
        centre = actions[:, :states].transpose(0, 1) * noise.begin.view(-1, 1, 1)
        spread = ((1 - alpha_bar) / alpha_bar).sqrt()
        x = alpha_bar.sqrt() * model.masked((centre + spread * noise.point).clamp(-1, 1), inner)
        plans = model.masked(propose(x, alpha_bar.unsqueeze(1), noise.proposals), outer)
        ours = policy_rollouts(model, z.unsqueeze(1), noise.rollouts, inner)
        plans = torch.cat([ours, plans[:, ours.shape[1] :]], dim=1)
        values = search.values(z.unsqueeze(1), plans, noise.terminal, noise.critics, inner, episodic, constraint, exact=True)
        wanted = plan_mean(plans, values, c.temperature, c.score_elites)
    return (model.score_output(z, x, noise.level, task) - wanted).square().mean()


def released_target(
    search: Search, z: Tensor, noise: ScoreNoise, task: Tensor | None, episodic: bool, constraint: Constraint | None
) -> Tensor:
    """The released score target at one state z (1, latent), level and N(0, I) point: no mask, rollouts or elites. (1, horizon, action)."""
    alpha_bar = search.alpha_bar[int(noise.level)]
    plans = propose(noise.point, alpha_bar, noise.proposals)
    inner = None if task is None else task[:, None]
    values = search.values(z.unsqueeze(1), plans, noise.terminal, noise.critics, inner, episodic, constraint, exact=True)
    standard = (values - values.mean(-1, keepdim=True)) / (values.std(-1, keepdim=True) + 1e-6)
    weights = (standard / search.config.temperature).softmax(-1)
    return score_of_mean(noise.point, torch.einsum("bn,bnha->bha", weights, plans), alpha_bar)


def released_score_loss(
    search: Search, z: Tensor, noise: ScoreNoise, task: Tensor | None, episodic: bool, constraint: Constraint | None
) -> Tensor:
    """Mean squared error of the score itself for the batch's first state alone, with its gradient into the encoder. ``z`` (batch, latent)."""
    task = None if task is None else task[:1]
    with torch.no_grad():
        wanted = released_target(search, z[:1].detach(), noise, task, episodic, constraint)
    return (search.model.score_output(z[:1], noise.point, noise.level, task) - wanted).square().mean()
