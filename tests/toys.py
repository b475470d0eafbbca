"""A tiny environment and a tiny learner to test the training loop: any lost state shows in what they do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.replay import Replay
from saddlepoint.types import ActMode, EnvShape, Metrics, NonFiniteError

ENV = "tests/Drift-v0"
AIMING = "tests/Aiming-v0"
BUDGET = CostBudget(limit=2.0, horizon=12)


class Drift(gym.Env[np.ndarray, np.ndarray]):
    """x drifts with the action and noise; the reward is -|x|, the cost is 1 where x > 0; ends at |x| > 3."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(np.array([-1.0], np.float32), np.array([0.5], np.float32))

    def __init__(self, poison_at: int = -1) -> None:
        self.poison_at, self.steps, self.x = poison_at, 0, 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = float(self.np_random.normal())
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.x += float(action[0]) + 0.3 * float(self.np_random.normal())
        reward = float("nan") if self.steps == self.poison_at else -abs(self.x)
        return self._observation(), reward, abs(self.x) > 3, False, {"cost": float(self.x > 0)}

    def _observation(self) -> np.ndarray:
        return np.array([self.x, np.sin(self.x)], np.float32)

    def snapshot(self) -> dict[str, Any]:
        return {"x": self.x, "steps": self.steps, "rng": self.np_random.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self.x, self.steps = state["x"], state["steps"]
        self.np_random.bit_generator.state = state["rng"]


class Forgetful(Drift):
    """The same, holding something that cannot be saved."""

    snapshot = None  # type: ignore[assignment]
    restore = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.handle = object()


class Broken(Drift):
    """The same, with an error of its own while ``breaks``."""

    breaks = False

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if Broken.breaks:
            raise ZeroDivisionError("the motor\nstalled")
        return super().step(action)


class Aiming(Drift):
    """The same, which reports whether x is below 0."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = super().step(action)
        return seen, reward, terminated, truncated, info | {"success": self.x < 0}


gym.register(AIMING, Aiming, max_episode_steps=12)
gym.register(ENV, Drift, max_episode_steps=12)
gym.register("tests/Poison-v0", Drift, max_episode_steps=12, kwargs={"poison_at": 330})
gym.register("tests/Broken-v0", Broken, max_episode_steps=12)
gym.register("tests/Forgetful-v0", Forgetful, max_episode_steps=12)


@dataclass(frozen=True)
class TinyConfig:
    rate: float = 0.05
    poison_after: int = -1
    """report a loss that is not finite after so many updates"""

    def validate(self) -> None:
        pass


class Tiny:
    """A linear policy that moves its weights by what it samples and by what it has seen."""

    system = "tiny"
    needs_cost = True

    def __init__(
        self, config: TinyConfig, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int, device: torch.device,
        *, compile: bool = False,
    ) -> None:  # fmt: skip
        self.config = config
        self.low, self.high = torch.tensor(shape.action_low), torch.tensor(shape.action_high)
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(shape.action, shape.observation, generator=self.generator)
        self.seen = torch.zeros(shape.observation + 1)
        self.updates = 0

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(observation), len(self.low), generator=generator) if mode != "deterministic" else 0.0
        return (observation @ self.weight.T + 0.3 * noise).clamp(self.low, self.high)

    def observe(self, observation: Tensor) -> None:
        self.seen = self.seen + torch.cat([observation.sum(0), torch.tensor([float(len(observation))])])

    def update(self, replay: Replay, updates: int) -> Metrics:
        for _ in range(updates):
            batch = replay.sample(8, self.generator)
            step = (batch.reward - batch.cost[:, 0])[:, None] * batch.observation + 0.01 * self.seen[:2] / self.seen[2]
            self.weight = 0.99 * self.weight + self.config.rate * step.mean(0)
            self.updates += 1
            if self.updates == self.config.poison_after:
                raise NonFiniteError("weight_loss is not finite: lower the rate.")
        return {"weight_norm": self.weight.norm(), "multiplier": float(self.updates)}

    def state_dict(self) -> dict[str, Tensor]:
        counters = {"updates": torch.tensor(self.updates), "rng": self.generator.get_state()}
        return {"weight": self.weight, "seen": self.seen} | counters

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.weight, self.seen, self.updates = state["weight"], state["seen"], int(state["updates"])
        self.generator.set_state(state["rng"])
