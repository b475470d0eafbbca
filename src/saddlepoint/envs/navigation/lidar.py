"""The pseudo-lidar: for every kind of object a ring of readings that grow as an object of the kind comes nearer."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

TAU = 2 * np.pi


def lidar(
    position: np.ndarray,
    rotation: np.ndarray,
    centres: np.ndarray,
    ring: np.ndarray,
    rings: int,
    bins: int = 16,
    reach: float = 3.0,
) -> np.ndarray:
    """Readings (envs, rings, bins) in [0, 1] of objects at ``centres`` (envs, objects, 2), in metres.

    ``position`` (envs, 3) and ``rotation`` (envs, 3, 3), body to world, are the robot's; ``ring`` (objects,) says which
    ring each object is seen in. With e = rotation^T (x - px, y - py, -pz), d = |e_xy|, s = max(0, reach - d) / reach,
    angle u = bins (atan2(e_y, e_x) mod 2 pi) / 2 pi, i = floor(u), f = u - i, the readings are the maxima over objects
    of s in bin i, f s in bin i + 1 and (1 - f) s in bin i - 1, modulo bins (the original fails at an angle that rounds
    to 2 pi). Safety-Gymnasium 1.0.0.
    """
    envs, count = centres.shape[:2]
    seen = np.empty((envs, count, 3))
    seen[:, :, :2] = centres - position[:, None, :2]
    seen[:, :, 2] = -position[:, None, 2]
    seen = seen @ rotation
    ahead, left = seen[:, :, 0], seen[:, :, 1]
    values = np.empty((envs, count, 3))
    values[:, :, 0] = strength = np.maximum(reach - np.hypot(ahead, left), 0.0) / reach
    angle = np.arctan2(left, ahead) % TAU * (bins / TAU)
    near = angle.astype(np.int64)
    values[:, :, 1] = further = (angle - near) * strength
    values[:, :, 2] = strength - further
    slots = (ring * bins + rings * bins * np.arange(envs)[:, None])[:, :, None] + _neighbours(bins)[near]
    readings = np.zeros(envs * rings * bins)
    np.maximum.at(readings, slots.ravel(), values.ravel())
    return readings.reshape(envs, rings, bins)


@lru_cache(maxsize=8)
def _neighbours(bins: int) -> np.ndarray:
    """(bins + 1, 3): every bin, the next and the one before; the last row is for an angle that rounds to 2 pi."""
    return (np.arange(bins + 1)[:, None] + np.array([0, 1, -1])) % bins
