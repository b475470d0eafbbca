"""lambda of Safe MBDPO: what moves it, and what it is counted in. The control is ALGD's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget, cost_units, violation_ceiling
from saddlepoint.constrained.lagrangian import MultiplierUpdate
from saddlepoint.constrained.units import ValueSize
from saddlepoint.mbdpo.config import MBDPOConfig
from saddlepoint.mbdpo.imagine import Constraint
from saddlepoint.types import Metrics, per_constraint


class CostControl:
    """The multiplier by its rule, the budgets it holds costs to, and the size of values that it is a share of. Without budgets it does nothing."""

    def __init__(self, config: MBDPOConfig, budgets: tuple[CostBudget, ...]) -> None:
        """``budgets`` are at the cost critics' discount."""
        c = self.config = config
        self.budget = torch.tensor([b.critic for b in budgets], dtype=torch.float64)
        self.unit = cost_units(budgets, c.cost_unit)
        self.ceiling = violation_ceiling(budgets, c.largest_violation)
        self.rule = MultiplierUpdate(c.multiplier_rule, c.multiplier_rate, c.rho, c.multiplier_interval, c.proportional, c.derivative, c.smoothing)
        self.state = self.rule.start(c.multiplier, len(budgets))
        self.value_size = ValueSize(bool(budgets) and c.price_unit == "value")

    @property
    def multiplier(self) -> Tensor:
        """lambda, (constraints,) float64."""
        return self.rule.value(self.state)

    def constraint(self, device: torch.device) -> Constraint | None:
        """What imagined costs are held to now, priced in units of reward; None without budgets."""
        c = self.config
        if not len(self.budget):
            return None
        size = self.value_size.value
        rho = c.rho if c.penalty == "relative" else c.rho * size
        multiplier, budget, unit = (each.to(device) for each in (self.multiplier * size, self.budget, self.unit))
        return Constraint(multiplier, budget, rho, c.risk_std, unit, c.penalty == "relative")

    def move(self, risk: Tensor, episode_cost: Tensor | None) -> Metrics:
        """One step of lambda. ``risk`` (constraints,) of the TD target's actions, or the measured cost of recent episodes, as ``multiplier_actions`` says.

        Returns the multiplier that was in force, the slope of the penalty at the risk, the risk and the violation.
        """
        if not len(self.budget):
            return {}
        recent = self.config.multiplier_actions == "recent"
        if recent and episode_cost is None:
            raise AssertionError("multiplier_actions 'recent' needs the recent cost")
        cost = episode_cost if recent and episode_cost is not None else risk
        violation = cost - self.config.budget_share * self.budget
        found = self.constraint(torch.device("cpu"))
        assert found is not None
        slope = found.slope((risk - self.budget) / self.unit) / self.value_size.value
        metrics = per_constraint({"multiplier": self.multiplier, "effective_multiplier": slope, "risk": risk, "violation": violation})
        self.state = self.rule.step(self.state, violation.minimum(self.ceiling) / self.unit)
        return metrics | self.value_size.metrics()

    def state_dict(self) -> dict[str, Tensor]:
        return {f"multiplier.{name}": value for name, value in self.state.items()} | self.value_size.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Undo ``state_dict``. Raises ``KeyError`` where the state is of another rule or unit."""
        self.state = {name: state[f"multiplier.{name}"].clone() for name in self.state}
        self.value_size.load(state)
