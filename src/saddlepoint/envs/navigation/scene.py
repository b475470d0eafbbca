"""What the worlds look like at the end of a step: what objectives and costs are functions of."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from saddlepoint.envs.navigation.objects import Kind
from saddlepoint.types import UserError


class Scene:
    """Arrays over ``envs`` worlds; objects of a kind in the order of its names. Metres, metres a second."""

    BINS: ClassVar[int] = 16
    """readings of a lidar"""

    def __init__(self, task: str, kinds: tuple[Kind, ...], envs: int) -> None:
        self._task = task
        self._kinds: dict[str, slice] = {}
        self._solid = {kind.name for kind in kinds if kind.motion != "ghost"}
        for kind in kinds:
            start = sum(part.stop - part.start for part in self._kinds.values())
            self._kinds[kind.name] = slice(start, start + kind.count)
        count = sum(kind.count for kind in kinds)
        self.rows = np.arange(envs)
        self.agent = np.zeros((envs, 3))
        """the robot's origin"""
        self.rotation = np.zeros((envs, 3, 3))
        """of the robot, body to world"""
        self.xyz = np.zeros((envs, count, 3))
        """origins of all objects, kind after kind"""
        self.velocity = np.zeros((envs, count, 3))
        """of all objects; zero of those that cannot be pushed"""
        self.touch = np.zeros((envs, count))
        """contacts between the robot and each object"""
        self.target = np.zeros(envs, np.int64)
        """which object of the objective's kind is the goal"""
        self.paused = np.zeros(envs, bool)
        """within the pause after a goal"""

    def columns(self, kind: str) -> slice:
        """Where the objects of ``kind`` are among all objects; raises ``UserError`` where there are none."""
        if kind not in self._kinds:
            raise UserError(f"{self._task} has no kind called {kind!r}, only {', '.join(self._kinds)}.")
        return self._kinds[kind]

    def positions(self, kind: str) -> np.ndarray:
        """(envs, count, 3)"""
        return self.xyz[:, self.columns(kind)]

    def distances(self, kind: str) -> np.ndarray:
        """(envs, count): from the robot's origin, seen from above."""
        away = self.xyz[:, self.columns(kind), :2] - self.agent[:, None, :2]
        return np.sqrt(np.square(away).sum(axis=2))

    def velocities(self, kind: str) -> np.ndarray:
        """(envs, count, 3)"""
        return self.velocity[:, self.columns(kind)]

    def contacts(self, kind: str) -> np.ndarray:
        """(envs, count): numbers of contacts with the robot. Raises ``UserError`` for ghosts, which have none."""
        if kind not in self._solid:
            raise UserError(f"{kind} of {self._task} cannot be touched: use their distances.")
        return self.touch[:, self.columns(kind)]
