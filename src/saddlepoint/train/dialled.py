"""Environments whose observations end with the budget of their episode."""

from __future__ import annotations

from typing import Any

import numpy as np

from saddlepoint.envs.batch import EnvBatch, EnvStep

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
