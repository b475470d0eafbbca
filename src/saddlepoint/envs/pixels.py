"""Pictures as observations: the last three of 64 x 64 pixels (TD-MPC2, arXiv 2310.16828; DrQ-v2, arXiv 2107.09645)."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from saddlepoint.envs.drawing import first_picture, require_picture

SIDE = 64
FRAMES = 3


@runtime_checkable
class DrawsAtSize(Protocol):
    """An environment that draws at any size."""

    def picture(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8: the scene as it is now."""
        ...


class PixelObservation(gym.Wrapper[np.ndarray, Any, Any, Any]):
    """``env``, made with render mode ``rgb_array``, seen through its pictures instead of its own observations.

    Observation (observation,) uint8: the entries of ``image`` (channels, height, width), the RGB of the last three
    pictures, the newest last. An episode begins with three times its first. One that ``DrawsAtSize`` is drawn so; what
    another renders is reduced to it (``resized``). Rewards, ends and ``info`` pass through. ``name`` is what errors
    call the environment. ``reset`` raises ``UserError`` where it cannot be drawn.
    """

    image = (3 * FRAMES, SIDE, SIDE)

    def __init__(self, env: gym.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        self._name = name
        self._pictures = np.zeros(self.image, np.uint8)
        self.observation_space = Box(0, 255, (self._pictures.size,), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        first = require_picture(first_picture(self._draw, self._name), self._name)
        self._pictures[:] = np.tile(_planes(first), (FRAMES, 1, 1))
        return self._pictures.flatten(), info

    def step(self, action: Any) -> Any:
        _, *others = self.env.step(action)
        return self.look(), *others

    def look(self) -> np.ndarray:
        """(observation,): the environment as it is now, and the two pictures seen before. To be called once a step."""
        self._pictures[:-3] = self._pictures[3:]
        self._pictures[-3:] = _planes(require_picture(self._draw(), self._name))
        return self._pictures.flatten()

    def _draw(self) -> Any:
        base = self.env.unwrapped
        return base.picture(SIDE, SIDE) if isinstance(base, DrawsAtSize) else self.env.render()


def _planes(picture: np.ndarray) -> np.ndarray:
    """(height, width, 3) -> (3, 64, 64)."""
    return resized(picture, SIDE, SIDE).transpose(2, 0, 1)


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture (h, w, 3) uint8 as (height, width, 3): each new pixel is the mean of the area that it covers.
    Proportions are not kept.
    """
    if picture.shape[:2] == (height, width):
        return picture
    rows = (_areas(len(picture), height) @ picture.reshape(len(picture), -1).astype(np.float32)).reshape(height, -1, 3)
    return np.rint(_areas(picture.shape[1], width) @ rows).astype(np.uint8)


@cache
def _areas(old: int, new: int) -> np.ndarray:
    """(new, old): which share of new pixel i lies on old pixel j, along one side."""
    edges = np.arange(new + 1) * (old / new)
    begin, end = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)
    overlap = np.clip(np.minimum(end, pixel + 1) - np.maximum(begin, pixel), 0, None)
    return (overlap * (new / old)).astype(np.float32)
