"""A planar arm of two joints that reaches for a target; a step costs where its torques exceed what the motors like."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from saddlepoint import CostBudget
from saddlepoint.envs.snapshot import load_rng, rng_state

DT, LINKS, TORQUE = 0.05, (0.5, 0.4), 2.0


class Arm(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Observation: a Dict of joint angles, velocities and the target. Action: two torques. Two constraints."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, friction: float = 0.3, render_mode: str | None = None) -> None:
        self.friction, self.render_mode = friction, render_mode
        self.action_space = spaces.Box(-TORQUE, TORQUE, (2,), np.float32)
        self.observation_space = spaces.Dict({
            "angles": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "velocities": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "target": spaces.Box(-1.0, 1.0, (2,), np.float32),
        })

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)  # seeds self.np_random, the only generator that is drawn from
        self.angles, self.velocities = self.np_random.uniform(-1, 1, 2), np.zeros(2)
        self.target = self.np_random.uniform(-0.6, 0.6, 2)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.velocities += DT * (action - self.friction * self.velocities)
        self.angles += DT * self.velocities
        distance = float(np.linalg.norm(self._hand() - self.target))
        cost = [float(np.square(action).sum()), float(np.abs(self.velocities).max() > 2.0)]  # effort, and too fast
        # The time limit is the registration's: `terminated` means that the task itself ended, and here it never does.
        return self._observation(), -distance, False, False, {"cost": cost}

    def snapshot(self) -> dict[str, Any]:
        """All that the future depends on, for exact resume: arrays, numbers, texts, None, dicts and lists of them."""
        physics = {"angles": self.angles.copy(), "velocities": self.velocities.copy(), "target": self.target.copy()}
        return physics | {"rng": rng_state(self.np_random)}  # the next reset draws from it

    def restore(self, state: dict[str, Any]) -> bool:
        """Put a fresh environment where the other was; False where that is impossible."""
        self.angles, self.velocities, self.target = (np.array(state[name]) for name in ("angles", "velocities", "target"))
        self.np_random = load_rng(state["rng"])
        return True

    def _hand(self) -> np.ndarray:
        first, second = self.angles[0], self.angles.sum()
        return np.array([
            LINKS[0] * np.cos(first) + LINKS[1] * np.cos(second), LINKS[0] * np.sin(first) + LINKS[1] * np.sin(second),
        ])  # fmt: skip

    def _observation(self) -> dict[str, np.ndarray]:
        parts = {"angles": self.angles, "velocities": self.velocities, "target": self.target}
        return {name: np.asarray(value, np.float32) for name, value in parts.items()}


gym.register("Arm-v0", Arm, max_episode_steps=100)
BUDGETS = (CostBudget(60.0), CostBudget(1.0))  # effort, and steps that are too fast, an episode
