"""Environments of other APIs as ordinary Gymnasium ones."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class SafetyGymnasiumAdapter(gym.Env[np.ndarray, np.ndarray]):
    """An environment of Safety-Gymnasium's API, whose ``step`` returns (observation, reward, cost, terminated,
    truncated, info).

    The cost moves into ``info["cost"]``; everything else passes through. Nothing of Safety-Gymnasium is imported:
    ``env`` is made by the user.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.action_space, self.observation_space = env.action_space, env.observation_space
        self.metadata, self.render_mode = env.metadata, env.render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, cost, terminated, truncated, info = self.env.step(action)
        return observation, float(reward), bool(terminated), bool(truncated), {**info, "cost": cost}

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()
