"""The energy that guides the denoising: a Lagrangian of the critics' values, with its slopes in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from saddlepoint.constrained.lagrangian import effective_multiplier, penalty_of_slope, plain_penalty
from saddlepoint.constrained.risk import ensemble_risk_gradient
from saddlepoint.nn.critics import Ensemble, Net, Trace, action_gradient, trace

EnergyKind = Literal["augmented", "plain", "none"]


class Lagrangian(NamedTuple):
    """L(s, a) and its slopes in the critics' values. ``...`` is (proposals, batch)."""

    value: Tensor  # (...)
    reward_slope: Tensor  # dL/dQ_j, (heads, ...)
    cost_slope: Tensor  # dL/dQc_m, (constraints * members, ...)
    risk: Tensor  # R, (constraints, ...)


class Penalty(NamedTuple):
    """What the constraints add to the energy; tensors are (constraints,)."""

    kind: EnergyKind
    multiplier: Tensor  # lambda, the price of one ``unit``
    budget: Tensor  # h
    unit: Tensor  # what costs are counted in, in the units of h
    rho: float
    risk_std: float


def lagrangian(reward: Tensor, cost: Tensor, penalty: Penalty) -> Lagrangian:
    """L = -min_j Q_j + sum_c penalty((R_c - h_c)/u_c), R_c = mean_m Qc + k std_m Qc.  ALGD, Eq. for L_A (``augmented``) or the plain Lagrangian.

    ``reward`` (heads, ...), ``cost`` (constraints * members, ...). The kind ``none`` leaves the penalty out.
    """
    constraints, rho = len(penalty.budget), penalty.rho
    # Of two heads by a comparison, which is ten times as fast as argmin.
    best = (reward[1:] < reward[:1]).long() if len(reward) == 2 else reward.argmin(0, keepdim=True)
    reward_slope = torch.zeros_like(reward).scatter_(0, best, -1.0)
    value = -reward.gather(0, best)[0]
    members = cost.unflatten(0, (constraints, -1)).transpose(0, 1)  # (members, constraints, ...)
    risk, risk_slope = ensemble_risk_gradient(members, penalty.risk_std)
    column = (constraints,) + (1,) * (risk.ndim - 1)
    multiplier, budget, unit = (each.to(risk).view(column) for each in (penalty.multiplier, penalty.budget, penalty.unit))
    violation = (risk - budget) / unit
    if penalty.kind == "augmented":
        slope = effective_multiplier(violation, multiplier, rho)
        value = value + penalty_of_slope(slope, multiplier, rho).sum(0)
    elif penalty.kind == "plain":
        value = value + plain_penalty(violation, multiplier).sum(0)
        slope = multiplier.expand_as(violation)
    else:
        slope = torch.zeros_like(violation)
    return Lagrangian(value, reward_slope, (risk_slope * (slope / unit)).transpose(0, 1).flatten(0, 1), risk)


class Evaluated(NamedTuple):
    """The energy at some actions, and what its gradient is made of."""

    energy: Lagrangian
    reward: Trace
    cost: Trace


def evaluate(
    critic: Ensemble, cost_critic: Ensemble, layers: tuple[Net, Net], state: Tensor, action: Tensor, penalty: Penalty,
    formula: Callable[[Tensor, Tensor, Penalty], Lagrangian] = lagrangian,
) -> Evaluated:  # fmt: skip
    """L at (batch, state), (proposals, batch, action): one pass forward."""
    reward = trace(layers[0], state, action, critic.activation, "slopes")
    cost = trace(layers[1], state, action, cost_critic.activation, "slopes")
    return Evaluated(formula(reward.values, cost.values, penalty), reward, cost)


def energy_gradient(critic: Ensemble, cost_critic: Ensemble, layers: tuple[Net, Net], at: Evaluated, penalty: Penalty) -> Tensor:
    """dL/da, (proposals, batch, action): one pass back to the action only, where that pays without the rows whose slopes are 0."""
    found = action_gradient(layers[0], at.reward, at.energy.reward_slope, critic.activation, critic.state)
    if penalty.kind != "none":
        found = found + action_gradient(layers[1], at.cost, at.energy.cost_slope, cost_critic.activation, critic.state)
    return found
