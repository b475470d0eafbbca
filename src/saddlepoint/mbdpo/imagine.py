"""What the world model says of action sequences: the return, and the cost, of imagined steps and of what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.constrained.lagrangian import augmented_penalty
from saddlepoint.constrained.risk import ensemble_risk
from saddlepoint.mbdpo.world_model import WorldModel


class Constraint(NamedTuple):
    """What imagined costs are held to."""

    multiplier: Tensor  # (constraints,)
    budget: Tensor  # (constraints,): h, the bound on the discounted sum
    rho: float
    risk_std: float

    def penalty(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """sum_c augmented_penalty(R_c - h_c) and R from the members' discounted costs. (constraints * members, ...) -> (...), (constraints, ...)."""
        members = cost.unflatten(0, (len(self.budget), -1)).transpose(0, 1)
        risk = ensemble_risk(members, self.risk_std)
        column = (-1,) + (1,) * (risk.ndim - 1)
        violation = risk - self.budget.to(risk).view(column)
        return augmented_penalty(violation, self.multiplier.to(risk).view(column), self.rho).sum(0), risk


class Rolled(NamedTuple):
    """Imagined steps, for leading axes (...)."""

    gain: Tensor  # (...): discounted, shaped reward
    cost: Tensor | None  # (constraints, ...): discounted cost
    alive: Tensor | None  # (...): 1 where the task goes on after the last step; None where it always does
    z: Tensor  # (..., latent): where the steps lead


def roll(model: WorldModel, z: Tensor, actions: Tensor, task: Tensor | None, episodic: bool, costly: bool) -> Rolled:
    """G = sum_t gamma^t alive_t (r_t + eta * F_norm(z_t, a_t)), z_{t+1} = d(z_t, a_t).  MBDPO, Eq. for G, without its last term.

    ``z`` broadcasts against ``actions`` (..., horizon, action) without its horizon. ``alive`` falls to 0 where the termination probability passes 1/2.
    """
    c = model.config
    gamma, gain, cost = model.discount(task), None, None
    factor, cost_factor = torch.ones_like(gamma), 1.0
    alive: Tensor | None = None
    for action in actions.unbind(-2):
        reward = model.reward(z, action, task)
        if c.energy_weight:
            reward = reward + c.energy_weight * model.normal_energy(model.energy(z, action, task))
        living = reward.new_ones(()) if alive is None else alive
        step = factor * living * reward
        gain = step if gain is None else gain + step
        if costly:
            paid = cost_factor * living * model.decode_cost(model.cost_logits(z, action, task))
            cost = paid if cost is None else cost + paid
        z = model.next(z, action, task)
        factor, cost_factor = factor * gamma, cost_factor * c.cost_gamma
        if episodic:
            alive = living * (model.termination_logit(z, task) <= 0)
    assert gain is not None
    return Rolled(gain, cost, alive, z)


def sequence_values(
    model: WorldModel, rolled: Rolled, horizon: int, noise: Tensor, chosen: Sequence[int], task: Tensor | None, constraint: Constraint | None
) -> Tensor:
    """G + gamma^H alive * Q_avg(z_H, pi(z_H)), less the penalty of the cost that is imagined likewise. (...).

    ``noise`` (..., action) draws pi; Q_avg is the mean of the two ``chosen`` critics.
    """
    c = model.config
    action = model.policy(rolled.z, noise, task).action
    value = model.values(rolled.z, action, task, chosen).mean(0)
    alive = torch.ones_like(value) if rolled.alive is None else rolled.alive
    total = rolled.gain + model.discount(task) ** horizon * alive * value
    if constraint is None or rolled.cost is None:
        return total
    future = model.decode_cost(model.cost_value_logits(rolled.z, action, task))
    paid = rolled.cost.repeat_interleave(c.cost_members, 0)
    return total - constraint.penalty(paid + c.cost_gamma**horizon * alive * future)[0]


def policy_rollouts(model: WorldModel, z: Tensor, noise: Tensor, task: Tensor | None) -> Tensor:
    """The prior's own action sequences: ``z`` (batch, 1, latent), ``noise`` (horizon, batch, rollouts, action) -> (batch, rollouts, horizon, action)."""
    actions = []
    for t, draws in enumerate(noise):
        actions.append(model.policy(z, draws, task).action.clamp(-1, 1))
        if t + 1 < len(noise):
            z = model.next(z, actions[-1], task)
    return torch.stack(actions, dim=-2)
