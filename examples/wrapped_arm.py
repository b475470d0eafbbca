"""The arm as a robot's program would see it: noisy encoders, and a reward for holding still at the target."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from arm import Arm

HOLD = 0.05
"""metres from the target within which the arm counts as there"""


class NoisyEncoders(gym.ObservationWrapper[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]):
    """Angles and velocities with Gaussian noise. It draws from the arm's own generator, which the arm's snapshot holds."""

    def __init__(self, env: gym.Env[Any, Any], std: float) -> None:
        super().__init__(env)
        self.std = std

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        noisy = {name: observation[name] + self.np_random.normal(0, self.std, 2) for name in ("angles", "velocities")}
        return observation | {name: value.astype(np.float32) for name, value in noisy.items()}


def make_arm(friction: float = 0.3, noise: float = 0.01, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """The arm in its wrappers."""
    env = NoisyEncoders(Arm(friction, render_mode), noise)
    return gym.wrappers.TransformReward(env, lambda reward: reward + (reward > -HOLD))


gym.register("WrappedArm-v0", make_arm, max_episode_steps=100)
