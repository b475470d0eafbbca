"""The energy that guides the denoising: a Lagrangian of the critics' values. Values only; autograd takes the slopes.

An energy of one's own is a function of the same signature, chosen by ``--energy module:name``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from saddlepoint.constrained.lagrangian import augmented_penalty, penalty_of_slope, plain_penalty
from saddlepoint.constrained.risk import ensemble_risk
from saddlepoint.nn.choice import choose, require_answer


class Constraint(NamedTuple):
    """What costs are held to; tensors are (constraints,), or (constraints, batch) where each state has a budget of its own (``--budget-range``)."""

    multiplier: Tensor
    """lambda, the price of one ``unit`` of cost"""
    budget: Tensor
    """h, the bound on the discounted cost"""
    unit: Tensor
    """what costs are counted in, in the units of h"""
    rho: float
    """penalty weight of the augmented Lagrangian"""
    risk_std: float
    """k in the risk"""

    def risk(self, cost: Tensor) -> Tensor:
        """R = mean_m Qc_m + k std_m Qc_m: (constraints * members, ...) -> (constraints, ...)."""
        return ensemble_risk(cost.unflatten(0, (len(self.budget), -1)).transpose(0, 1), self.risk_std)

    def violation(self, cost: Tensor) -> Tensor:
        """(R - h) / unit: (constraints * members, ...) -> (constraints, ...)."""
        risk = self.risk(cost)
        return (risk - per_value(self.budget, risk)) / per_value(self.unit, risk)


Energy = Callable[[Tensor, Tensor, Constraint], Tensor]
"""reward values (heads, ...), cost values (constraints * members, ...), constraint -> energy (...)"""


def augmented(reward: Tensor, cost: Tensor, constraint: Constraint) -> Tensor:
    """L_A = -min_j Q_j + sum_c ([lambda + rho v_c]_+^2 - lambda^2) / (2 rho),  v = (R - h)/unit.  ALGD, Eq. for L_A."""
    violation = constraint.violation(cost)
    penalty = augmented_penalty(violation, per_value(constraint.multiplier, violation), constraint.rho)
    return penalty.sum(0) - reward.amin(0)


def relative(reward: Tensor, cost: Tensor, constraint: Constraint) -> Tensor:
    """``augmented`` with a penalty weight of rho lambda:  -min_j Q_j + sum_c lambda ([1 + rho v_c]_+^2 - 1) / (2 rho).

    Its slope in v is lambda [1 + rho v]_+, so that one rho serves a lambda of any size: with rho = 1 and costs in budgets it is lambda R/h, nothing where
    no cost is in sight.
    """
    violation = constraint.violation(cost)
    slope = (1 + constraint.rho * violation).clamp(min=0)
    penalty = per_value(constraint.multiplier, violation) * penalty_of_slope(slope, violation.new_ones(()), constraint.rho)
    return penalty.sum(0) - reward.amin(0)


def plain(reward: Tensor, cost: Tensor, constraint: Constraint) -> Tensor:
    """L = -min_j Q_j + sum_c lambda v_c: the ordinary Lagrangian, the paper's unstable case."""
    violation = constraint.violation(cost)
    return plain_penalty(violation, per_value(constraint.multiplier, violation)).sum(0) - reward.amin(0)


def none(reward: Tensor, cost: Tensor, constraint: Constraint) -> Tensor:
    """-min_j Q_j: reward alone."""
    return -reward.amin(0)


ENERGIES: dict[str, Energy] = {"augmented": augmented, "relative": relative, "plain": plain, "none": none}
"""choices of ``--energy``"""


def make_energy(name: str, constraint: Constraint, cost_members: int) -> Energy:
    """The energy that a config names: an entry of ``ENERGIES``, or ``module:name``. Raises ``UserError`` for another, or one that does not fit."""
    found = choose(name, ENERGIES, "--energy")
    if name not in ENERGIES:
        rows = constraint.budget.shape[1] if constraint.budget.ndim > 1 else 5
        heads = [constraint.budget.new_ones(n, 3, rows, requires_grad=True) for n in (2, len(constraint.budget) * cost_members)]
        require_answer(f"--energy {name}", (3, rows), found, *heads, constraint)
    return found


def per_value(value: Tensor, like: Tensor) -> Tensor:
    """(constraints,) or (constraints, batch) as something that broadcasts against (constraints, ..., batch)."""
    return value.to(like).view(len(value), *[1] * (like.ndim - value.ndim), *value.shape[1:])
