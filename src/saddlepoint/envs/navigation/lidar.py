"""The pseudo-lidar: for every kind of object a ring of readings that grow as an object of the kind comes nearer."""

from __future__ import annotations

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
    seen = seen @ rotation[:, :, :2]
    ahead, left = seen[:, :, 0], seen[:, :, 1]
    strength = np.maximum(reach - np.sqrt(ahead * ahead + left * left), 0.0) / reach
    angle = np.arctan2(left, ahead) % TAU * (bins / TAU)
    near = angle.astype(np.int64)
    fraction = angle - near
    readings = np.zeros((envs, rings * bins))
    first = ring * bins + np.arange(0, envs * rings * bins, rings * bins)[:, None]
    slots = np.stack([first + near % bins, first + (near + 1) % bins, first + (near - 1) % bins])
    np.maximum.at(readings.reshape(-1), slots, np.stack([strength, fraction * strength, (1 - fraction) * strength]))
    return readings.reshape(envs, rings, bins)
