"""Environments whose observations end with the budget of their episode, and a policy held at one budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saddlepoint.envs.batch import EnvBatch, EnvStep
from saddlepoint.types import ActMode, EnvShape, Metrics, Policy

GOLDEN = (5**0.5 - 1) / 2
"""multiples of it fill [0, 1) more evenly than random numbers do"""


class DialledEnvs:
    """``envs``, each episode with a budget of its own between ``low`` and ``high``, which its observations end with.

    Budget n of a run is  low (high/low)^frac(s + n GOLDEN),  s from the seed: any few episodes in a row cover the range, and a resumed run only needs n.
    """

    def __init__(self, envs: EnvBatch, span: tuple[float, float], seed: int) -> None:
        self.envs, self.span = envs, span
        self.num_envs, self.setup, self.spec = envs.num_envs, envs.setup, envs.spec
        self.shape = envs.shape._replace(observation=envs.shape.observation + 1, budget_range=span)
        self._start = float(np.random.default_rng(seed).random())
        self._drawn = 0
        self._limit = np.zeros(envs.num_envs)

    @property
    def observation(self) -> np.ndarray:
        """(envs, observation + 1): what to act on next."""
        return self._seen(self.envs.observation)

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        return np.concatenate([observation, self._limit[:, None].astype(np.float32)], -1)

    def _draw(self, which: np.ndarray) -> None:
        low, high = self.span
        for i in np.flatnonzero(which):
            self._limit[i] = low * (high / low) ** ((self._start + self._drawn * GOLDEN) % 1.0)
            self._drawn += 1

    def reset(self, seed: int | None = None) -> np.ndarray:
        observation = self.envs.reset(seed)
        self._draw(np.ones(self.num_envs, bool))
        return self._seen(observation)

    def step(self, action: np.ndarray) -> EnvStep:
        step = self.envs.step(action)
        following = self._seen(step.next_observation)  # of the episode that was played, under its own budget
        self._draw(step.terminated | step.truncated)
        return step._replace(next_observation=following, observation=self._seen(step.observation))

    def notes(self) -> list[str]:
        low, high = self.span
        return [*self.envs.notes(), f"each training episode has a budget of its own, from {low:g} to {high:g}"]

    def snapshot(self) -> dict[str, Any]:
        return {"inner": self.envs.snapshot(), "drawn": self._drawn, "limit": self._limit.copy()}

    def restore(self, state: dict[str, Any]) -> bool:
        self._drawn, self._limit = int(state["drawn"]), np.array(state["limit"], float)
        return self.envs.restore(state["inner"])

    def render(self) -> np.ndarray:
        return self.envs.render()

    def close(self) -> None:
        self.envs.close()


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

    def predict(self, observation: Tensor, action: Tensor) -> Metrics:
        """What the learner's critics expect (``train.foresight.Foresees``)."""
        return self.learner.predict(self.seen(observation), action)


def plain_shape(shape: EnvShape) -> EnvShape:
    """The shape of the environment itself: without the budget at the end of an observation."""
    return shape if shape.budget_range is None else shape._replace(observation=shape.observation - 1, budget_range=None)


def at_budget(learner: Any, limit: float | None, shape: EnvShape) -> Policy:
    """``learner`` as a policy of plain observations: itself, or where its observations end with a budget, at ``limit``."""
    return learner if shape.budget_range is None or limit is None else AtBudget(learner, limit)
