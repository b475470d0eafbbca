"""What an environment may answer: type, shape, range and finiteness of every part, and a sentence for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from saddlepoint.options import shown

LARGEST = float(np.finfo(np.float32).max)
FLOATS = frozenset({float, np.float64, np.float32})
"""types of numbers that are what they seem"""
NUMBERS = (float, int, np.floating, np.integer, np.bool_)
"""types of rewards that are read; Python's bool is an int, so numpy's is taken too"""
QUICK = (np.dtype(np.float32), np.dtype(np.float64))
"""number types of observations that are checked at first sight"""


class Wrong(Exception):
    """What an environment answered that it must not: ``what`` follows its name, and ``advice`` the step."""

    def __init__(self, what: str, advice: str, *, finite: bool = True) -> None:
        super().__init__(what, advice)
        self.what, self.advice, self.finite = what, advice, finite


class Observations:
    """Reads the observations of a space as vectors (observation,) of floats, a copy each time."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self.space = space
        self.size = int(gym.spaces.flatdim(space))
        self._box = isinstance(space, Box)
        vector = self._box and len(space.shape or ()) == 1
        self.quick = next((kind for kind in QUICK if vector and space.dtype == kind), None)
        """the number type of vectors that may be taken at first sight; None where there are none"""

    def read(self, value: Any) -> np.ndarray:
        """(observation,) float32. Raises ``Wrong``."""
        if self._box:
            require_box(self.space, value)
            vector = _floats(value)
        else:
            require_inside(self.space, value)
            vector = _floats(gym.spaces.flatten(self.space, value))
        if not np.isfinite(vector).all():
            raise Wrong("returns an observation that is not finite", ": correct it in the environment", finite=False)
        return vector


def _floats(value: Any) -> np.ndarray:
    require_unmasked(value, "returns an observation")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        return np.array(value, np.float32).reshape(-1)


def require_unmasked(value: Any, what: str) -> None:
    """Raises ``Wrong`` for an array in which numbers are marked as missing."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise Wrong(f"{what} with masked entries", ": every number is needed", finite=False)


def require_box(space: gym.Space[Any], value: Any) -> None:
    """Raises ``Wrong`` unless ``value`` is a numpy array of the space's shape and kind of number."""
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "fiub":
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise Wrong(f"returns an observation of type {kind}", ": return a numpy array of numbers")
    if value.shape != space.shape:
        raise Wrong(f"returns an observation of shape {value.shape}", f", but its observation space says {space.shape}")
    if value.dtype.kind != np.dtype(space.dtype).kind:
        raise Wrong(f"returns an observation of type {value.dtype}", f", but its observation space says {space.dtype}")


def require_inside(space: gym.Space[Any], value: Any) -> None:
    """Raises ``Wrong`` unless ``value`` has the parts of a space of several, and each is sound; bounds of a Box are not
    looked at, as they are not of an observation that is one."""
    if isinstance(space, Box):
        require_box(space, value)
    elif isinstance(space, gym.spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            parts = (
                f"the parts {sorted(map(str, value))}" if isinstance(value, Mapping) else f"type {type(value).__name__}"
            )
            raise Wrong(f"returns an observation of {parts}", f", but its observation space has {sorted(space.spaces)}")
        for name, part in space.spaces.items():
            require_inside(part, value[name])
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            raise Wrong("returns an observation", f" that is no tuple of the {len(space.spaces)} parts of its space")
        for part, item in zip(space.spaces, value):
            require_inside(part, item)
    elif isinstance(value, (str, bytes)) != isinstance(space, gym.spaces.Text) or not space.contains(value):
        raise Wrong(
            f"returns {str(value)[:40]!r} for a part of its observation", f", which is not in {str(space)[:60]}"
        )


def read_reset(answer: Any) -> Any:
    """The observation of what ``reset`` returned. Raises ``Wrong``."""
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
        raise Wrong("returns no (observation, info) from reset()", ": follow Gymnasium's API")
    return answer[0]


def read_reward(reward: Any) -> float:
    """Raises ``Wrong`` unless it is one finite number."""
    if not isinstance(reward, NUMBERS) or isinstance(reward, np.timedelta64):  # numpy counts durations as integers
        raise Wrong(f"returns a reward of type {type(reward).__name__}", ": return a float")
    try:
        number = float(reward)
    except OverflowError:  # an int beyond every float
        number = np.inf
    if not -LARGEST <= number <= LARGEST:
        said = shown(reward) if isinstance(reward, int) else reward
        raise Wrong(f"returns the reward {said}", ": rewards must be finite", finite=False)
    return number


def read_flag(name: str, value: Any) -> bool:
    """Raises ``Wrong`` unless it is a boolean."""
    if not isinstance(value, (bool, np.bool_)):
        raise Wrong(
            f"returns {name} of type {type(value).__name__}", ": return terminated and truncated as two booleans"
        )
    return bool(value)


def read_cost(info: Any, constraints: int | None, needed: bool) -> np.ndarray:
    """(constraints,) float64: ``info["cost"]``. Where ``constraints`` is None as many as there are; none at all are
    allowed unless ``needed``. Raises ``Wrong``.
    """
    if not isinstance(info, dict):
        raise Wrong(f"returns info of type {type(info).__name__}", ": return a dict")
    if constraints == 0 or not (needed or "cost" in info or constraints):
        return np.zeros(0)
    if "cost" not in info:
        raise Wrong(
            'puts no "cost" into info',
            ': put the cost of the step (a float >= 0, or one for each constraint) into info["cost"]',
        )
    value = info["cost"]
    require_unmasked(value, 'gives info["cost"]')
    try:
        cost = np.asarray(value)
    except Exception as error:  # whatever an object's own conversion raises
        raise Wrong(f'gives {shown(value)} as info["cost"]', ": a number is needed") from error
    if cost.dtype.kind not in "biuf":
        raise Wrong(f'gives {shown(value)} as info["cost"]', ": a number is needed")
    if cost.ndim > 1 or cost.size == 0:
        raise Wrong(
            f'gives info["cost"] of shape {cost.shape}', ": give a float, or a vector of one for each constraint"
        )
    if constraints and cost.size != constraints:
        raise Wrong(
            f'changes the length of info["cost"] from {constraints} to {cost.size}',
            ": give every constraint its own fixed place",
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        number = np.array(cost, np.float64).reshape(-1)
    if not (np.abs(number) <= LARGEST).all():
        raise Wrong(f"gives the cost {value}", ": costs must be finite", finite=False)
    if (number < 0).any():
        raise Wrong(
            f"gives the cost {value}",
            ": costs must not be negative; of a constraint g <= 0 give max(g, 0), and what is good to the reward",
        )
    return number + 0.0  # -0.0 is 0.0


def require_sums(reward: float, cost: np.ndarray | float) -> None:
    """Raises ``Wrong`` where the sums over a held action are too large for float32."""
    if not (abs(reward) <= LARGEST and np.all(cost <= LARGEST)):
        raise Wrong(f"returns rewards or costs that sum to {reward} and {cost}", ": sums must be finite", finite=False)


def read_success(info: dict[str, Any]) -> float | None:
    """``info["success"]`` as a number, NaN where there is none; None where it cannot be read as one."""
    value = info.get("success")
    if value is None:
        return np.nan
    try:
        require_unmasked(value, "gives a success")
        success = np.asarray(value)
        return float(success.item()) if success.size == 1 and success.dtype.kind in "biuf" else None
    except Exception:  # whatever an object's own conversion raises
        return None
