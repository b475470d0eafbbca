"""Several environments stepped together, in this process: one by one, or as one vectorised environment.

Every backend has the same methods, in terms of ``EnvStep``: ``shape``, ``reset``, ``step``, ``snapshot``, ``restore``,
``render``, ``close``. ``workers.py`` has the one that uses processes. All reset an environment in the step that ends
its episode.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from saddlepoint.envs.check import check_env
from saddlepoint.envs.make import make_env
from saddlepoint.envs.snapshot import restore, snapshot
from saddlepoint.foreign import foreign
from saddlepoint.types import EnvShape, ForeignFault


class EnvStep(NamedTuple):
    """One step of every environment."""

    observation: np.ndarray  # (envs, observation), of ``EnvShape.dtype``: what to act on next, of the new episode where one ended
    next_observation: np.ndarray  # (envs, observation), of the same type: the real successor, also at an episode's end
    reward: np.ndarray  # (envs,) float32
    cost: np.ndarray  # (envs, constraints) float32
    terminated: np.ndarray  # (envs,) bool: the task itself ended
    truncated: np.ndarray  # (envs,) bool: a time limit
    success: np.ndarray  # (envs,) float32: ``info["success"]``, NaN where a task says nothing of it


class Backend(Protocol):
    def shape(self, needs_cost: bool) -> EnvShape: ...
    def reset(self, seeds: list[int] | None) -> np.ndarray: ...
    def step(self, action: np.ndarray) -> EnvStep: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any], seeds: list[int]) -> dict[int, np.ndarray]: ...
    def render(self) -> np.ndarray: ...
    def close(self) -> None: ...


class LocalEnvs:
    """Ordinary environments, one after the other. Only the first one renders."""

    def __init__(self, id: str, num_envs: int, render_mode: str | None, env_kwargs: dict[str, Any]) -> None:
        self._id = id
        self._envs = [make_env(id, render_mode=render_mode if i == 0 else None, **env_kwargs) for i in range(num_envs)]
        self._constraints, self._dtype = 1, EnvShape(0, (), (), 1).dtype  # until ``shape`` has looked

    def shape(self, needs_cost: bool) -> EnvShape:
        shape = check_env(self._envs[0], needs_cost=needs_cost)
        self._constraints, self._dtype = shape.constraints, shape.dtype
        return shape

    def reset(self, seeds: list[int] | None) -> np.ndarray:
        own = seeds if seeds is not None else [None] * len(self._envs)
        return np.stack([foreign(self._id, env.reset, seed=seed)[0] for env, seed in zip(self._envs, own)]).astype(self._dtype)

    def step(self, action: np.ndarray) -> EnvStep:
        envs = len(self._envs)
        size = self._envs[0].observation_space.shape
        assert size is not None
        observation, successor = np.empty((envs, *size), self._dtype), np.empty((envs, *size), self._dtype)
        reward, cost = np.empty(envs, np.float32), np.empty((envs, self._constraints), np.float32)
        terminated, truncated, success = np.empty(envs, bool), np.empty(envs, bool), np.empty(envs, np.float32)
        for i, env in enumerate(self._envs):
            seen, reward[i], terminated[i], truncated[i], info = foreign(self._id, env.step, action[i])
            cost[i], success[i] = self._cost(info), _success(info)
            successor[i] = seen
            if terminated[i] or truncated[i]:
                seen, _ = foreign(self._id, env.reset)
            observation[i] = seen
        return EnvStep(observation, successor, reward, cost, terminated, truncated, success)

    def _cost(self, info: dict[str, Any]) -> Any:
        if self._constraints == 0:
            return ()
        try:
            cost = info["cost"]
        except KeyError as error:
            raise ForeignFault(f'{self._id} has left "cost" out of info: put it there in every step.') from error
        if self._constraints > 1 and np.shape(cost) != (self._constraints,):
            raise ForeignFault(
                f'{self._id} has changed the shape of info["cost"] to {np.shape(cost)}: it was ({self._constraints},).'
            )
        return cost

    def snapshot(self) -> dict[str, Any]:
        return {str(i): snapshot(env) for i, env in enumerate(self._envs)}

    def restore(self, state: dict[str, Any], seeds: list[int]) -> dict[int, np.ndarray]:
        """Observations of the environments that could not be restored and were reset with their ``seeds`` instead, by
        number.
        """
        fresh = {}
        for i, env in enumerate(self._envs):
            if not restore(env, state[str(i)]):
                fresh[i] = foreign(self._id, env.reset, seed=seeds[i])[0].astype(self._dtype)
        return fresh

    def render(self) -> np.ndarray:
        frame = self._envs[0].render()
        assert isinstance(frame, np.ndarray)
        return frame

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _success(info: dict[str, Any]) -> float:
    success = np.asarray(info.get("success"))
    return float(success.item()) if success.size == 1 and success.dtype.kind in "biuf" else np.nan


class VectorisedEnvs:
    """A task of ours that has a vectorised form: SAME_STEP autoreset, dense ``info["cost"]`` and ``info["final_obs"]``
    (see ``toy.py``).
    """

    def __init__(self, id: str, num_envs: int, render_mode: str | None, env_kwargs: dict[str, Any]) -> None:
        self._single = make_env(id, **env_kwargs)  # says what is wrong with the arguments, and is what ``shape`` checks
        self._env: Any = gym.make_vec(
            id, num_envs, vectorization_mode="vector_entry_point", render_mode=render_mode, **env_kwargs
        )

    def shape(self, needs_cost: bool) -> EnvShape:
        return check_env(self._single, needs_cost=needs_cost)

    def reset(self, seeds: list[int] | None) -> np.ndarray:
        return self._env.reset(seed=seeds)[0]

    def step(self, action: np.ndarray) -> EnvStep:
        observation, reward, terminated, truncated, info = self._env.step(action)
        successor = info["final_obs"] if "final_obs" in info else observation.copy()
        cost = info["cost"].astype(np.float32).reshape(len(reward), -1)
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
