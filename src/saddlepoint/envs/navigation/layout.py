"""Where things stand at the start of an episode: rejection sampling from one stream of random numbers.

The stream is consumed exactly as the sequential algorithm does it (Safety-Gymnasium 1.0.0: two uniforms a try, 100
tries an object, then the whole layout anew), so that a seed gives the same layouts to the bit. Drawing the uniforms in
blocks and testing the tries of an object together makes it fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from saddlepoint.types import UserError

TRIES = 100  # of one object, before the layout is begun anew
RESTARTS = 10_000
GOAL_ROUNDS = 100  # of TRIES each, for a new goal among objects that stay
_ONE_BY_ONE = 8  # tries made in plain Python: most objects find their place at once
_BLOCK = 512


@dataclass(frozen=True)
class Plan:
    """What is placed, in order: names, keepouts (objects,) and the boxes (objects, 4) that positions are drawn from, as
    x and y from, x and y to.
    """

    names: tuple[str, ...]
    keepouts: np.ndarray
    boxes: np.ndarray

    def __post_init__(self) -> None:
        for name, (x0, y0, x1, y1) in zip(self.names, self.boxes):
            if x0 > x1 or y0 > y1:
                raise UserError(f"no place is left for {name}: its keepout is larger than half its area.")


class Uniforms:
    """The next uniforms of ``rng``, drawn in blocks; ``finish`` leaves ``rng`` where one draw at a time would have."""

    def __init__(self, rng: np.random.RandomState) -> None:
        self._rng = rng
        self._start = rng.get_state()
        self.values = rng.random_sample(_BLOCK)
        self.used = 0

    def ahead(self, count: int) -> np.ndarray:
        """(count,): the next ones, not yet consumed."""
        while self.used + count > len(self.values):
            self.values = np.concatenate([self.values, self._rng.random_sample(len(self.values))])
        return self.values[self.used : self.used + count]

    def finish(self) -> None:
        self._rng.set_state(self._start)
        self._rng.random_sample(self.used)


def sample_layout(rng: np.random.RandomState, plan: Plan) -> np.ndarray:
    """Positions (objects, 2) that keep the sum of both keepouts between every two objects.

    Raises ``UserError`` when ``RESTARTS`` layouts have failed.
    """
    uniforms = Uniforms(rng)
    apart = plan.keepouts[:, None] + plan.keepouts
    rows = [(box, apart[i, :i], apart[i, :i].tolist()) for i, box in enumerate(plan.boxes.tolist())]
    for _ in range(RESTARTS):
        placed: list[tuple[float, float]] = []
        for box, distances, listed in rows:
            found = _place(uniforms, box, placed, distances, listed)
            if found is None:
                break
            placed.append(found)
        else:
            uniforms.finish()
            return np.array(placed)
    raise UserError(f"{RESTARTS} layouts failed: the objects of this task do not fit, enlarge it or shrink keepouts.")


def sample_place(
    rng: np.random.RandomState, box: np.ndarray, others: np.ndarray, distances: np.ndarray
) -> tuple[float, float] | None:
    """A position in ``box`` (4,) at least ``distances`` (objects,) away from ``others`` (objects, 2); None when
    ``GOAL_ROUNDS * TRIES`` have failed.
    """
    uniforms = Uniforms(rng)
    found, taken, listed = None, [(x, y) for x, y in others.tolist()], distances.tolist()
    for _ in range(GOAL_ROUNDS):
        found = _place(uniforms, box.tolist(), taken, distances, listed)
        if found is not None:
            break
    uniforms.finish()
    return found


def _place(
    uniforms: Uniforms, box: list[float], others: list[tuple[float, float]], distances: np.ndarray, listed: list[float]
) -> tuple[float, float] | None:
    """The first of ``TRIES`` positions that keeps its ``distances``, ``listed`` as numbers of Python's too. Both halves
    do the same arithmetic.
    """
    x0, y0, x1, y1 = box
    width, depth = x1 - x0, y1 - y0
    few = uniforms.ahead(2 * _ONE_BY_ONE).tolist()
    for i in range(0, 2 * _ONE_BY_ONE, 2):
        x, y = x0 + width * few[i], y0 + depth * few[i + 1]
        for (u, v), distance in zip(others, listed):
            if sqrt((x - u) * (x - u) + (y - v) * (y - v)) < distance:
                break
        else:
            uniforms.used += i + 2
            return x, y
    uniforms.used += 2 * _ONE_BY_ONE
    left = TRIES - _ONE_BY_ONE
    block = uniforms.ahead(2 * left)
    xs, ys = x0 + width * block[0::2], y0 + depth * block[1::2]
    a, b = np.array(others).T[:, :, None]
    away, dy = xs - a, ys - b  # (others, tries)
    away *= away
    dy *= dy
    away += dy
    free = (np.sqrt(away, out=away) >= distances[:, None]).all(axis=0)
    first = int(free.argmax())
    if not free[first]:
        uniforms.used += 2 * left
        return None
    uniforms.used += 2 * (first + 1)
    return float(xs[first]), float(ys[first])
