"""Many worlds of a navigation task stepped in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from saddlepoint.envs.navigation.env import spaces, stream, task_of
from saddlepoint.envs.navigation.physics import ThreadedPhysics
from saddlepoint.envs.navigation.render import CAMERAS, Painter
from saddlepoint.envs.navigation.tasks import Task
from saddlepoint.envs.navigation.worlds import Worlds
from saddlepoint.types import UserError


class NavigationVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` worlds of ``task`` at once; world i equals a ``NavigationEnv`` of the same seed.

    Observations (envs, observation) are float32. Autoreset is SAME_STEP. The entries of ``info`` are those of
    ``NavigationEnv`` with an axis ``envs``, of the step just made also where an episode ended; ``info["final_obs"]``
    (envs, observation) is there when some episode ended and holds the real successor of every world. ``threads`` step
    the physics (None: as many as there are cores, and no more than worlds).
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"], "render_fps": 30, "autoreset_mode": AutoresetMode.SAME_STEP,
    }  # fmt: skip

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: Task | str,
        max_episode_steps: int,
        layout_seed: int | None = None,
        threads: int | None = None,
        render_mode: str | None = None,
        camera: str = "follow",
        width: int = 480,
        height: int = 480,
    ) -> None:
        self.task = task_of(task, layout_seed)
        if camera not in CAMERAS:
            raise UserError(f"there is no camera {camera!r}: use one of {', '.join(CAMERAS)}.")
        self.num_envs, self.max_episode_steps, self.render_mode = num_envs, max_episode_steps, render_mode
        self.camera, self._size = camera, (width, height)
        self._painter: Painter | None = None
        self.single_observation_space, self.single_action_space = spaces(self.task, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**self.metadata, "render_fps": round(1 / self.task.step_seconds)}
        self._physics = ThreadedPhysics(self.task, num_envs, threads)
        self.worlds = Worlds(self.task, self._physics)
        self.elapsed = np.zeros(num_envs, np.int64)
        self._seeded = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is None:
            seed = [None] * self.num_envs
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        for env, own in enumerate(seeds):
            if own is not None or not self._seeded[env]:
                self.worlds.rngs[env] = stream(own if own is not None else int(self.np_random.integers(2**32)))
                self._seeded[env] = True
        self._begin(np.arange(self.num_envs))
        return self.worlds.observe().astype(np.float32), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        outcome = self.worlds.step(np.asarray(actions, np.float64))
        self.elapsed += 1
        observation = self.worlds.observe().astype(np.float32)
        info: dict[str, Any] = {"cost": outcome.cost, "cost_sum": outcome.cost, "goal_met": outcome.reached}
        info.update(outcome.costs)
        truncated = self.elapsed >= self.max_episode_steps
        ended = np.flatnonzero(outcome.stuck | truncated)
        if len(ended):
            info["final_obs"] = observation
            self._begin(ended)
            observation = observation.copy()
            observation[ended] = self.worlds.observe()[ended]
        return observation, outcome.reward, outcome.stuck, truncated, info

    def _begin(self, which: np.ndarray) -> None:
        self.elapsed[which] = 0
        for env in which:
            self.worlds.begin(int(env))

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture (height, width, 3) uint8 of every world."""
        if self._painter is None:
            self._painter = Painter(self.task, *self._size)
        return tuple(self._painter.paint(self.worlds, env, self.camera) for env in range(self.num_envs))

    def snapshot(self) -> dict[str, Any]:
        return {"worlds": self.worlds.snapshot(), "elapsed": self.elapsed.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self.worlds.restore(state["worlds"])
        self.elapsed[...] = state["elapsed"]
        self._seeded[:] = True

    def close_extras(self, **kwargs: Any) -> None:
        self._physics.close()
        if self._painter is not None:
            self._painter.close()
            self._painter = None
