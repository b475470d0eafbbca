"""A navigation task as an ordinary Gymnasium environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from saddlepoint.envs.navigation.catalogue import find_task
from saddlepoint.envs.navigation.physics import SinglePhysics
from saddlepoint.envs.navigation.render import CAMERAS, Painter
from saddlepoint.envs.navigation.tasks import Task
from saddlepoint.envs.navigation.worlds import Worlds
from saddlepoint.types import UserError


class NavigationEnv(gym.Env[np.ndarray, np.ndarray]):
    """One world of ``task``, a ``Task`` or the name of one in the catalogue.

    Observation (observation,) float64 as ``task.parts`` says; action (2,) in [-1, 1]. ``info`` of a step: ``cost`` (and
    ``cost_sum``, the same), 1.0 for every key of ``task.costs`` that was positive else 0.0, ``goal_met``. An episode
    ends by itself only where no place is found for a new goal; the time limit is Gymnasium's wrapper.

    With a ``layout_seed`` every episode is the one drawn from that seed. ``camera`` is "follow" or "fixed".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(
        self,
        task: Task | str,
        *,
        layout_seed: int | None = None,
        render_mode: str | None = None,
        camera: str = "follow",
        width: int = 480,
        height: int = 480,
    ) -> None:
        self.task = task_of(task, layout_seed)
        self.render_mode = render_mode
        if camera not in CAMERAS:
            raise UserError(f"there is no camera {camera!r}: use one of {', '.join(CAMERAS)}.")
        self.camera, self._size = camera, (width, height)
        self._painter: Painter | None = None
        self.observation_space, self.action_space = spaces(self.task)
        # In a layout that is always the same the readings tell the place, and are worth learning by heart.
        self.lidar_entries = self.task.rings if self.task.layout_seed is None else ()
        self.metadata = {**self.metadata, "render_fps": round(1 / self.task.step_seconds)}
        self.worlds = Worlds(self.task, SinglePhysics(self.task))
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self.worlds.rngs[0] = stream(seed if seed is not None else int(self.np_random.integers(2**32)))
            self._seeded = True
        self.worlds.begin(0)
        return self.worlds.observe()[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        outcome = self.worlds.step(np.asarray(action, np.float64)[None])
        cost = float(outcome.cost[0])
        info: dict[str, Any] = {"cost": cost, "cost_sum": cost, "goal_met": bool(outcome.reached[0])}
        for key, value in outcome.costs.items():
            info[key] = float(value[0])
        return self.worlds.observe()[0], float(outcome.reward[0]), bool(outcome.stuck[0]), False, info

    def render(self) -> np.ndarray:
        """(height, width, 3) uint8 from ``camera``, with the readings of the lidars above the robot."""
        if self._painter is None:
            self._painter = Painter(self.task, *self._size)
        return self._painter.paint(self.worlds, 0, self.camera)

    def snapshot(self) -> dict[str, Any]:
        return self.worlds.snapshot()

    def restore(self, state: dict[str, Any]) -> None:
        self.worlds.restore(state)
        self._seeded = True

    def close(self) -> None:
        if self._painter is not None:
            self._painter.close()
            self._painter = None


def task_of(task: Task | str, layout_seed: int | None) -> Task:
    """The task meant, with another ``layout_seed`` where one is given."""
    found = find_task(task) if isinstance(task, str) else task
    return found if layout_seed is None else replace(found, layout_seed=layout_seed)


def stream(seed: int) -> np.random.RandomState:
    """The random stream of a world; the generator is the one that the published layouts were drawn with."""
    if not 0 <= seed < 2**32:
        raise UserError(f"a seed of a navigation task must lie between 0 and 2**32 - 1, not be {seed}.")
    return np.random.RandomState(seed)


def spaces(task: Task, dtype: Any = np.float64) -> tuple[Box, Box]:
    """Spaces of observations and actions."""
    size = sum(task.parts.values())
    return Box(-np.inf, np.inf, (size,), dtype), Box(-1.0, 1.0, (len(task.robot.motors),), np.float64)
