"""Several environments stepped together, in this process: one by one, or as one vectorised environment.

Every backend has the same methods, in terms of ``EnvStep``: ``shape``, ``horizon``, ``notes``, ``reset``, ``step``,
``snapshot``, ``restore``, ``render``, ``close``. ``workers.py`` has the one that uses processes. All reset an
environment in the step that ends its episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from saddlepoint.envs.check import check_guarded
from saddlepoint.envs.guarded import GuardedEnv
from saddlepoint.envs.make import inner_bounds, time_limit
from saddlepoint.types import EnvSetup, EnvShape, ForeignFault, NonFiniteError


class EnvStep(NamedTuple):
    """One step of every environment."""

    observation: (
        np.ndarray
    )  # (envs, observation), of ``EnvShape.dtype``: what to act on next, of the new episode where one ended
    next_observation: np.ndarray  # (envs, observation), of the same type: the real successor, also at an episode's end
    reward: np.ndarray  # (envs,) float32
    cost: np.ndarray  # (envs, constraints) float32
    terminated: np.ndarray  # (envs,) bool: the task itself ended
    truncated: np.ndarray  # (envs,) bool: a time limit
    success: np.ndarray  # (envs,) float32: ``info["success"]``, NaN where a task says nothing of it


class Backend(Protocol):
    def shape(self, needs_cost: bool) -> EnvShape: ...
    def horizon(self) -> int | None: ...
    def notes(self) -> list[str]: ...
    def reset(self, seeds: list[int] | None) -> np.ndarray: ...
    def step(self, action: np.ndarray) -> EnvStep: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any], seeds: list[int]) -> dict[int, np.ndarray]: ...
    def render(self) -> np.ndarray: ...
    def close(self) -> None: ...


class LocalEnvs:
    """Ordinary environments, one after the other. Only the first one renders. ``numbers`` are what errors call them."""

    def __init__(self, setup: EnvSetup, numbers: Sequence[int], render_mode: str | None) -> None:
        self._envs: list[GuardedEnv] = []
        try:
            for number in numbers:
                self._envs.append(GuardedEnv.open(setup, render_mode if number == 0 else None, number))
        except BaseException:
            self.close()
            raise
        self._size, self._constraints = 0, 1  # until ``shape`` has looked
        self._dtype: np.dtype[Any] = np.dtype(np.float32)

    def shape(self, needs_cost: bool) -> EnvShape:
        shape = check_guarded(self._envs[0], needs_cost)
        for env in self._envs:
            env.needs_cost, env.constraints = needs_cost, shape.constraints
            if env.shape != shape:
                raise ForeignFault(
                    f"{env.name} has other spaces each time that it is made: let them depend on its arguments only."
                )
        self._size, self._constraints, self._dtype = shape.observation, shape.constraints, np.dtype(shape.dtype)
        return shape

    def horizon(self) -> int | None:
        return time_limit(self._envs[0].env)

    def notes(self) -> list[str]:
        state = self._envs[0].snapshot()
        return [] if state["restorable"] else [str(state["reason"])]

    def reset(self, seeds: list[int] | None) -> np.ndarray:
        own = seeds if seeds is not None else [None] * len(self._envs)
        return np.stack([env.reset(seed) for env, seed in zip(self._envs, own)])

    def step(self, action: np.ndarray) -> EnvStep:
        envs = len(self._envs)
        observation, successor = np.empty((envs, self._size), self._dtype), np.empty((envs, self._size), self._dtype)
        reward, cost = np.empty(envs, np.float32), np.empty((envs, self._constraints), np.float32)
        terminated, truncated, success = np.empty(envs, bool), np.empty(envs, bool), np.empty(envs, np.float32)
        for i, env in enumerate(self._envs):
            answer = env.step(action[i])
            successor[i], reward[i], cost[i], terminated[i], truncated[i], success[i] = answer
            observation[i] = env.reset() if terminated[i] or truncated[i] else answer.observation
        return EnvStep(observation, successor, reward, cost, terminated, truncated, success)

    def snapshot(self) -> dict[str, Any]:
        return {str(i): env.snapshot() for i, env in enumerate(self._envs)}

    def restore(self, state: dict[str, Any], seeds: list[int]) -> dict[int, np.ndarray]:
        """Observations of the environments that could not be restored and were reset with their ``seeds`` instead, by
        number.
        """
        fresh = {}
        for i, env in enumerate(self._envs):
            if not env.restore(state[str(i)]):
                fresh[i] = env.reset(seeds[i])
        return fresh

    def render(self) -> np.ndarray:
        frame = self._envs[0].draw()
        assert isinstance(frame, np.ndarray)
        return frame

    def close(self) -> None:
        for env in self._envs:
            env.close()


class VectorisedEnvs:
    """A task of ours that has a vectorised form: SAME_STEP autoreset, dense ``info["cost"]`` and ``info["final_obs"]``
    (see ``toy.py``).
    """

    def __init__(self, setup: EnvSetup, num_envs: int, render_mode: str | None) -> None:
        self._single = GuardedEnv.open(setup)  # says what is wrong with the arguments, and is what ``shape`` checks
        try:
            self._env: Any = gym.make_vec(
                setup.name, num_envs, vectorization_mode="vector_entry_point", render_mode=render_mode, **setup.kwargs
            )
        except BaseException:
            self._single.close()
            raise
        self._name = setup.name
        self._low, self._high = inner_bounds(cast(Box, self._env.single_action_space))

    def shape(self, needs_cost: bool) -> EnvShape:
        return check_guarded(self._single, needs_cost)

    def horizon(self) -> int | None:
        return time_limit(self._single.env)

    def notes(self) -> list[str]:
        return []

    def reset(self, seeds: list[int] | None) -> np.ndarray:
        return self._env.reset(seed=seeds)[0]

    def step(self, action: np.ndarray) -> EnvStep:
        observation, reward, terminated, truncated, info = self._env.step(action.clip(self._low, self._high))
        successor = info["final_obs"] if "final_obs" in info else observation.copy()
        cost = info["cost"].astype(np.float32).reshape(len(reward), -1)
        # One number says whether all are finite: the sum of what is not is not; only then look which.
        if not np.isfinite(reward.sum() + cost.sum() + successor.sum() + observation.sum()):
            for what, values in (("reward", reward), ("cost", cost), ("observation", successor)):
                if not np.isfinite(values).all():
                    raise NonFiniteError(f"the {what} of {self._name} is not finite: look at the action it was given.")
        success = np.full(len(reward), np.nan, np.float32)  # none of ours speaks of it
        return EnvStep(observation, successor, reward.astype(np.float32), cost, terminated, truncated, success)

    def snapshot(self) -> dict[str, Any]:
        return {"vectorised": self._env.snapshot()}

    def restore(self, state: dict[str, Any], seeds: list[int]) -> dict[int, np.ndarray]:
        self._env.restore(state["vectorised"])
        return {}

    def render(self) -> np.ndarray:
        return self._env.render()[0]

    def close(self) -> None:
        self._env.close()
        self._single.close()
