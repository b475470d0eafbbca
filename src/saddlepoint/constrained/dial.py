"""One policy for every budget: what networks see of a budget, and a multiplier for each of them.

The budget of an episode is the last entry of its observations. What was collected under one budget teaches all others, because neither rewards nor
costs depend on it: a batch is relabelled with budgets drawn anew.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.types import Batch, UserError

if TYPE_CHECKING:
    from saddlepoint.replay import Ahead

KNOTS = 3
"""budgets at which a multiplier is kept: both ends and the geometric middle; in between log lambda is linear in the log of the budget"""


def hats(place: Tensor, count: int) -> Tensor:
    """Weights of linear interpolation at ``count`` even knots of [0, 1]: (...) -> (..., count). They are >= 0 and sum to 1."""
    knots = torch.arange(count, dtype=place.dtype, device=place.device)
    return (1 - (place.clamp(0, 1).unsqueeze(-1) * (count - 1) - knots).abs()).clamp(min=0)


class Dial(NamedTuple):
    """Budgets from ``low`` to ``high``, even in their logarithm; both in the units that the user states (``CostBudget.limit``)."""

    low: float
    high: float
    critic: float
    """h of a limit of 1: what a bound on the discounted sum is for each unit of the limit"""
    steps: int
    """of a whole episode"""
    step: float
    """the mean cost of a step that a limit of 1 allows"""

    @classmethod
    def of(cls, span: tuple[float, float], budgets: tuple[CostBudget, ...]) -> Dial:
        """Raises ``UserError`` where a range cannot be turned."""
        if len(budgets) != 1:
            raise UserError(f"--budget-range turns one budget, and there are {len(budgets)} constraints: leave it out.")
        low, high = require_range(span)
        budget = budgets[0]
        if budget.discounted:
            raise UserError("--budget-range turns plain sums of costs, not --cost-discounted ones: leave out one of them.")
        if not low <= budget.limit <= high:
            raise UserError(f"--cost-limit {budget.limit:g}, at which the run is evaluated, must lie within --budget-range {low:g} {high:g}.")
        unit = CostBudget(1.0, budget.per, horizon=budget.horizon, gamma=budget.gamma)
        return cls(low, high, unit.critic, unit.steps, unit.step)

    def place(self, limit: Tensor) -> Tensor:
        """log(limit / low) / log(high / low), elementwise: 0 at ``low``, 1 at ``high``; limits outside are taken for the nearer end."""
        return (limit.clamp(self.low, self.high) / self.low).log() / math.log(self.high / self.low)

    def limit(self, place: Tensor) -> Tensor:
        """The inverse of ``place``."""
        return self.low * (self.high / self.low) ** place

    def relabelled(self, batch: Batch, ahead: Ahead | None, generator: torch.Generator) -> tuple[Batch, Ahead | None]:
        """Transitions, and what followed them, under budgets drawn anew, evenly in their logarithm."""
        rows = len(batch.reward)
        limit = self.limit(torch.rand(rows, generator=generator, device=generator.device).to(batch.reward.device))
        batch = batch._replace(observation=under(batch.observation, limit), next_observation=under(batch.next_observation, limit))
        return batch, None if ahead is None else ahead._replace(observation=under(ahead.observation, limit))

    def overspent(self, cost: Tensor, limit: Tensor, share: float) -> Tensor:
        """By how many budgets recent steps were over ``share`` of theirs, at each knot: (KNOTS,) float64; 0 where no step was near a knot.

        sum_t w_g(b_t) (c_t / (b_t per step) - share) / sum_t w_g(b_t)  over the steps' costs c (steps,) and budgets b (steps,), w_g the hats. A step
        stands for its share of an episode, so an episode that ends early counts as if it went on like this.
        """
        weights = hats(self.place(limit.double()), KNOTS)
        excess = cost.double() / (self.step * limit.double()) - share
        total = weights.sum(0)
        return torch.where(total > 0, (weights * excess.unsqueeze(-1)).sum(0) / total.clamp(min=1e-9), 0.0)

    def at(self, limit: float, values: Tensor) -> Tensor:
        """``values`` (KNOTS,), interpolated at one budget: (1,)."""
        return (hats(self.place(torch.tensor([limit], dtype=torch.float64)), KNOTS) @ values).to(values)

    def price(self, multipliers: Tensor, limit: Tensor) -> Tensor:
        """lambda at each budget: exp of the interpolated log of ``multipliers`` (KNOTS,); (...) -> (...)."""
        return (hats(self.place(limit.double()), KNOTS) @ multipliers.log()).exp()


def require_range(span: tuple[float, float]) -> tuple[float, float]:
    """A range of budgets. Raises ``UserError`` unless 0 < low < high, both finite."""
    low, high = span
    if not (0 < low < high < math.inf):
        raise UserError(f"--budget-range must be two finite numbers with 0 < LOW < HIGH, not {low:g} {high:g}.")
    return low, high


def under(observation: Tensor, limit: Tensor) -> Tensor:
    """Observations (batch, observation), whose last entry is a budget, with that budget replaced by ``limit`` (batch,)."""
    return torch.cat([observation[:, :-1], limit.to(observation).unsqueeze(-1)], -1)
