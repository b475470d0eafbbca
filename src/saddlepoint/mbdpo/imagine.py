"""What the world model says of action sequences: the return, and the cost, of imagined steps and of what follows
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.constrained.lagrangian import augmented_penalty, effective_multiplier
from saddlepoint.constrained.risk import ensemble_risk
from saddlepoint.mbdpo.world_model import ENERGY_STD_MIN, WorldModel
from saddlepoint.nn import ops


class Constraint(NamedTuple):
    """What imagined costs are held to."""

    multiplier: Tensor  # (constraints,)
    budget: Tensor  # (constraints,): h, the bound on the discounted sum
    rho: float
    risk_std: float
    unit: Tensor  # (constraints,): what costs are counted in, in the units of h
    relative: bool  # whether rho is counted in lambda

    def penalty(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """sum_c of the penalty of v_c = (R_c - h_c)/unit_c, and R, from the members' discounted costs.

        (constraints * members, ...) -> (...), (constraints, ...).

        Augmented: ([lambda + rho v]_+^2 - lambda^2)/(2 rho). Relative: the same with a weight of rho lambda, lambda ([1 + rho v]_+^2 - 1)/(2 rho).
        """
        risk = self.risk(cost)
        multiplier, budget, unit = (_column(each, risk) for each in (self.multiplier, self.budget, self.unit))
        violation = (risk - budget) / unit
        weight, slope = (multiplier, 1.0) if self.relative else (1.0, multiplier)
        return (weight * augmented_penalty(violation, slope, self.rho)).sum(0), risk

    def slope(self, violation: Tensor) -> Tensor:
        """Of the penalty in ``violation`` (constraints,), counted in ``unit``."""
        if self.relative:
            return self.multiplier * effective_multiplier(violation, 1.0, self.rho)
        return effective_multiplier(violation, self.multiplier, self.rho)

    def risk(self, cost: Tensor) -> Tensor:
        """R = mean_m + k std_m: (constraints * members, ...) -> (constraints, ...)."""
        return ensemble_risk(cost.unflatten(0, (len(self.budget), -1)).transpose(0, 1), self.risk_std)


def _column(value: Tensor, like: Tensor) -> Tensor:
    """(constraints,) as something that broadcasts against (constraints, ...)."""
    return value.to(like).view(-1, *[1] * (like.ndim - 1))


def roll(
    model: WorldModel, z: Tensor, actions: Tensor, task: Tensor | None, episodic: bool, costly: bool
) -> ops.Imagined:
    """``ops.imagine`` of ``actions`` (states, proposals, horizon, action) from ``z`` (states, 1, latent), with ``task``
    None or (states, 1)."""
    c = model.config
    nets = ops.Imagination(
        model.dynamics.whole(),
        model.reward_head.whole(),
        model.energy_head.whole() if c.energy_weight else None,
        model.cost_head.whole() if costly else None,
        model.termination_head.whole() if episodic else None,
        c.bins,
        c.bin_limit,
        model.discount(task).reshape(-1).expand(len(z)),
        c.cost_gamma,
        c.energy_weight,
        model.energy_mean,
        model.energy_std.clamp(min=ENERGY_STD_MIN),
        c.energy_clip,
    )
    embedding = None if task is None else model.embedding(task)[:, 0]
    return ops.imagine(nets, z[:, 0], embedding, actions)


class Prospects(NamedTuple):
    """What the world model says of action sequences; leading axes (...) are those of the sequences."""

    gain: Tensor  # (...): imagined rewards, and what the critics expect after them
    paid: Tensor | None  # (constraints * members, ...): imagined costs, discounted; None without constraints
    after: Tensor | None  # the same shape: gamma_c^H alive Qc_m, what the cost critics expect after them

    def value(self, constraint: Constraint | None) -> Tensor:
        """The return less the penalty of all costs."""
        if constraint is None or self.paid is None or self.after is None:
            return self.gain
        return self.gain - constraint.penalty(self.paid + self.after)[0]

    def cost_within(self, tail: Tensor) -> Tensor:
        """Costs of plans (batch, plans) with ``tail`` (constraints, batch) of what follows them: (constraints * members, batch, plans)."""
        assert self.paid is not None
        assert self.after is not None
        return self.paid + self.after * tail.to(self.after).repeat_interleave(len(self.after) // len(tail), 0).unsqueeze(-1)


def prospects(
    model: WorldModel,
    rolled: ops.Imagined,
    horizon: int,
    noise: Tensor,
    chosen: Sequence[int],
    task: Tensor | None,
) -> Prospects:
    """G + gamma^H alive * Q_avg(z_H, pi(z_H)), and costs likewise where they were imagined.

    ``noise`` (..., action) draws pi; Q_avg is the mean of the two ``chosen`` critics.
    """
    c = model.config
    action = model.policy(rolled.z, noise, task).action
    value = model.values(rolled.z, action, task, chosen).mean(0)
    alive = torch.ones_like(value) if rolled.alive is None else rolled.alive
    total = rolled.gain + model.discount(task) ** horizon * alive * value
    if rolled.cost is None:
        return Prospects(total, None, None)
    future = model.decode_cost(model.cost_value_logits(rolled.z, action, task))
    paid = rolled.cost.repeat_interleave(c.cost_members, 0)
    return Prospects(total, paid, c.cost_gamma**horizon * alive * future)


def policy_rollouts(model: WorldModel, z: Tensor, noise: Tensor, task: Tensor | None) -> Tensor:
    """The prior's own action sequences: ``z`` (batch, 1, latent), ``noise`` (horizon, batch, rollouts, action) ->
    (batch, rollouts, horizon, action)."""
    actions = []
    for t, draws in enumerate(noise):
        actions.append(model.policy(z, draws, task).action.clamp(-1, 1))
        if t + 1 < len(noise):
            z = model.next(z, actions[-1], task)
    return torch.stack(actions, dim=-2)
