"""What the user allows, and what the cost critic is held to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from saddlepoint.options import conform
from saddlepoint.types import UserError

if TYPE_CHECKING:  # tasks are registered with Gymnasium without PyTorch
    from torch import Tensor


def geometric_sum(gamma: float, horizon: int) -> float:
    """sum_{t<horizon} gamma^t = (1 - gamma^horizon) / (1 - gamma); ``horizon`` at gamma = 1."""
    return float(horizon) if gamma == 1.0 else (1.0 - gamma**horizon) / (1.0 - gamma)


def discounted_budget(limit: float, gamma: float, horizon: int) -> float:
    """h = limit * (1 - gamma^T) / (1 - gamma) / T: the discounted sum of a cost spread evenly over an episode.

    ``limit`` bounds the undiscounted sum over ``horizon`` = T steps; at gamma = 1 the budget is the limit itself. ALGD, "Budget semantics":
    (10, 0.99, 400) -> 2.4551...
    """
    return limit * geometric_sum(gamma, horizon) / horizon


MOST_HORIZON = 2**53
"""a float counts no further"""
DEFAULT_HORIZON = 1000
"""steps of an episode where nothing says otherwise, as in Safety-Gymnasium"""


@dataclass(frozen=True)
class CostBudget:
    """A limit on the cost of an episode, with its semantics as part of the type.

    ======== ============ ==========================================================================================
    per      discounted   the user states
    ======== ============ ==========================================================================================
    episode  no           sum_t c_t <= limit over an episode of ``horizon`` steps (Safety-Gymnasium: 25 in 1000)
    step     no           mean_t c_t <= limit
    episode  yes          sum_t gamma^t c_t <= limit (the paper's velocity tasks: Hopper 82.748)
    step     yes          the same divided by sum_t gamma^t: a discounted mean cost
    ======== ============ ==========================================================================================

    All are turned into one another by spreading the cost evenly over the episode. Raises ``UserError`` for an impossible budget.
    """

    limit: float
    """the bound itself, in the units of ``info["cost"]``"""
    per: Literal["episode", "step"] = "episode"
    discounted: bool = False
    horizon: int | None = None
    """steps of a whole episode, T; None stands for the environment's own time limit, which ``train`` fills in (1000 where there is no environment)"""
    gamma: float = 0.99
    """discount of the cost critic, gamma_c"""

    def __post_init__(self) -> None:
        fitted = conform(self)  # a NumPy number would do the sums below in its own few bits
        for name, value in vars(fitted).items():
            object.__setattr__(self, name, value)
        if not np.isfinite(self.limit) or self.limit < 0:
            raise UserError(
                f"a cost limit must be a finite number >= 0, not {self.limit}: give --cost-limit such a number."
            )
        if self.horizon is not None and not 1 <= self.horizon < MOST_HORIZON:
            raise UserError(
                f"a budget needs a horizon of at least one step, and of fewer than {MOST_HORIZON:,}, not {self.horizon!s:.20}:"
                " give --cost-horizon the length of an episode."
            )
        if not 0.0 < self.gamma <= 1.0:
            raise UserError(f"the cost discount must lie in (0, 1], not {self.gamma}: change --cost-gamma.")

    @property
    def steps(self) -> int:
        """T as a number."""
        return DEFAULT_HORIZON if self.horizon is None else self.horizon

    @property
    def critic(self) -> float:
        """h: the bound on the expected discounted sum of costs, which the cost critic estimates."""
        if self.discounted:
            return self.limit * (1.0 if self.per == "episode" else geometric_sum(self.gamma, self.steps))
        return discounted_budget(self.episode, self.gamma, self.steps)

    @property
    def episode(self) -> float:
        """The same bound on the undiscounted sum over an episode."""
        if self.discounted:
            return self.critic * self.steps / geometric_sum(self.gamma, self.steps)
        return self.limit * (1 if self.per == "episode" else self.steps)

    @property
    def step(self) -> float:
        """The same bound on the mean cost of a step."""
        return self.episode / self.steps

    def equivalents(self) -> dict[str, float]:
        """Every way to say this budget, for logs."""
        return {
            "critic": self.critic,
            "episode": self.episode,
            "step": self.step,
            "horizon": float(self.steps),
            "gamma": self.gamma,
        }

    def describe(self) -> str:
        return (
            f"at most {self.limit:g} per {self.per}, {'discounted' if self.discounted else 'undiscounted'}"
            f" = {self.episode:.4g} an episode of {self.steps} steps = {self.step:.4g} a step"
            f" = {self.critic:.4g} discounted by {self.gamma:g}"
        )

    def violated(self, episode_cost: np.ndarray, discounted_cost: np.ndarray) -> np.ndarray:
        """Which episodes went over the limit as the user stated it. Both arguments (episodes,); returns (episodes,) bool.

        A step budget is checked as the equivalent episode sum: an episode that ends early has not overspent.
        """
        if self.discounted:
            return discounted_cost > self.critic * (1 + 1e-9)
        return episode_cost > self.episode * (1 + 1e-9)


def at_discount(budgets: tuple[CostBudget, ...], gamma: float) -> tuple[CostBudget, ...]:
    """Plain sums as a critic with discount ``gamma`` sees them; a budget that is a discounted sum keeps its own discount."""
    return tuple(budget if budget.discounted else replace(budget, gamma=gamma) for budget in budgets)


def spent(budgets: tuple[CostBudget, ...], cost: Tensor, age: Tensor, cut: bool = False) -> Tensor:
    """The measured cost of recent episodes, in the units of each budget's h = ``CostBudget.critic``: (constraints,) float64.

    ``cost`` (rows, envs, constraints) and ``age`` (rows, envs), the steps of its episode before each, of the last steps. As the budget states it: sum_t
    gamma^t c_t, or the plain sum times h / limit, over the number of episodes that began in these steps. Those still running lack their end and
    those begun earlier lend theirs, which cancels on average. Before that can be, when the steps are fewer than a whole episode's and not every
    environment has ended one, the mean step stands for what is to come of a plain sum. Where episodes are ``cut`` it stands for all of a whole one.
    """
    import torch

    began = max(age.numel() - int(torch.count_nonzero(age)), 1)
    ended = all(len(age) >= budget.steps for budget in budgets) or bool((age[1:] == 0).any(0).all())
    sums = []
    for budget, of_one in zip(budgets, cost.unbind(-1), strict=True):
        if cut:
            sums.append(of_one.mean(dtype=torch.float64) * geometric_sum(budget.gamma, budget.steps))
        elif budget.discounted:
            sums.append((budget.gamma**age * of_one).sum(dtype=torch.float64) / began)
        else:
            episode = of_one.sum(dtype=torch.float64) / began if ended or len(age) >= budget.steps else of_one.mean(dtype=torch.float64) * budget.steps
            sums.append(episode * geometric_sum(budget.gamma, budget.steps) / budget.steps)
    return torch.stack(sums).cpu()


def cost_units(budgets: tuple[CostBudget, ...], unit: Literal["budget", "one"]) -> Tensor:
    """What multipliers count costs in, (constraints,) float64: each h, or one; a budget of nothing has no unit but one."""
    import torch

    return torch.tensor([b.critic or 1.0 if unit == "budget" else 1.0 for b in budgets], dtype=torch.float64)


def violation_ceiling(budgets: tuple[CostBudget, ...], most: float | None) -> Tensor:
    """The largest violation that moves a multiplier, (constraints,) float64: ``most`` budgets; no bound for None, and for a budget of nothing."""
    import torch

    return torch.tensor([most * b.critic if most is not None and b.critic else math.inf for b in budgets], dtype=torch.float64)


def require_fitting(budgets: tuple[CostBudget, ...], constraints: int, cost_gamma: float) -> tuple[CostBudget, ...]:
    """The budgets at the cost critic's discount. Raises ``UserError`` unless there is one for each constraint, or where one is a sum discounted otherwise."""
    budgets = at_discount(budgets, cost_gamma)
    if len(budgets) != constraints:
        raise UserError(
            f"the environment has {constraints} constraint(s) but {len(budgets)} budget(s) were given: give one each."
        )
    for budget in budgets:
        if budget.gamma != cost_gamma:
            raise UserError(
                f"the cost budget is discounted by {budget.gamma:g} and the cost critic by {cost_gamma:g}:"
                " give CostBudget(gamma=...) and --cost-gamma the same number."
            )
    return budgets
