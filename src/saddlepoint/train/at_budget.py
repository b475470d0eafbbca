"""A policy of every budget (``--budget-range``), held at one of them. What is imported here needs no environment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saddlepoint.types import ActMode, EnvShape, Metrics, Planner, Policy


class AtBudget:
    """A learner of ``DialledEnvs`` as a policy of plain observations, at the budget ``limit``."""

    def __init__(self, learner: Any, limit: float) -> None:
        self.learner, self.limit = learner, limit

    @property
    def config(self) -> Any:
        return self.learner.config

    def seen(self, observation: Tensor) -> Tensor:
        """(envs, observation) with the budget at its end."""
        return torch.cat([observation, observation.new_full((len(observation), 1), self.limit)], -1)

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        return self.learner.act(self.seen(observation), mode, generator)

    @property
    def memory_size(self) -> int:
        return self.learner.memory_size if isinstance(self.learner, Planner) else 0

    def act_on(self, observation: Tensor, memory: Tensor, mode: ActMode, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.learner.act_on(self.seen(observation), memory, mode, generator)

    def predict(self, observation: Tensor, action: Tensor) -> Metrics:
        """What the learner's critics expect (``train.foresight.Foresees``)."""
        return self.learner.predict(self.seen(observation), action)


def plain_shape(shape: EnvShape) -> EnvShape:
    """The shape of the environment itself: without the budget at the end of an observation."""
    return shape if shape.budget_range is None else shape._replace(observation=shape.observation - 1, budget_range=None)


def at_budget(learner: Any, limit: float | None, shape: EnvShape) -> Policy:
    """``learner`` as a policy of plain observations: itself, or where its observations end with a budget, at ``limit``."""
    return learner if shape.budget_range is None or limit is None else AtBudget(learner, limit)
