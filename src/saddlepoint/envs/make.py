"""One ``make_env(id)`` for every source of environments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.wrappers import FlattenObservation

from saddlepoint.envs.drawing import cannot_draw, choose_renderer, gl_stops_mujoco
from saddlepoint.envs.pixels import PixelObservation
from saddlepoint.envs.tasks import PIXELS, env_spec, maker_of, split_id
from saddlepoint.faults import describe
from saddlepoint.foreign import blame, foreign
from saddlepoint.options import truth_value
from saddlepoint.types import EnvSetup, NotMade, UserError

LARGEST_BOUND = 1e6
"""of an action: what is larger stands for "unbounded", and networks that see such numbers learn nothing"""

LEAST_RANGE = 1e-30
"""between the bounds of an action; of what is smaller float32 cannot say where in it an action lies"""

LIDARS = "lidar_entries"
FEWEST_READINGS = 4
"""of a lidar: three of them hold one object"""


def make_env(
    id: str | Callable[..., Any], *, render_mode: str | None = None, max_episode_steps: int | None = None,
    flatten: bool = False, **kwargs: Any,
) -> gym.Env[np.ndarray, np.ndarray]:  # fmt: skip
    """An environment of ours, any registered with Gymnasium, or one that a class or function makes, with observations
    (observation,) and actions (action,) of floats; with ``PIXELS`` at the end of ``id`` observations are bytes, those
    of pictures (``PixelObservation``).

    ``max_episode_steps`` replaces the task's own time limit; ``flatten`` makes one vector of Dict, Tuple and discrete
    observations, as Gymnasium's FlattenObservation does; ``kwargs`` go to the environment. Raises ``UserError`` for an
    unknown id (naming close matches), for arguments the environment does not take, and for spaces that cannot be used
    (``require_spaces``).
    """
    flatten = truth_value("flatten", flatten)
    if render_mode is not None and not isinstance(render_mode, str):
        raise UserError(f"render_mode must be a text, such as 'rgb_array', not {render_mode!r:.60}.")
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    setup = EnvSetup(id, kwargs | limit, flatten)
    return flattened(open_env(setup, render_mode), setup.name, flatten)


def open_env(setup: EnvSetup, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """``gymnasium.make`` with our errors: the environment as its author shaped it, or as pictures of it show it."""
    task = env_spec(setup)
    name, pixels = split_id(setup.name)
    choose_renderer()
    if pixels and render_mode not in (None, "rgb_array"):
        raise UserError(
            f"{setup.name} draws its observations, so it cannot be made with render mode {render_mode!r}:"
            f" leave out {PIXELS}."
        )
    render_mode = "rgb_array" if pixels else render_mode
    kwargs = dict(setup.kwargs)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    what: str | EnvSpec = name
    if task.source == "python":
        maker = maker_of(setup.env) if isinstance(setup.env, str) else setup.env
        what = EnvSpec(f"made/{''.join(c if c.isalnum() else '_' for c in name)}-v0", maker)
    try:
        env = _make(what, kwargs)
    except UserError:
        raise
    except BaseException as error:
        if render_mode is not None and gl_stops_mujoco():
            raise cannot_draw(setup.name, error) from error
        if render_mode is not None or not isinstance(error, Exception) or not gl_stops_mujoco():
            raise _not_made(setup.name, error, pixels) from error
        try:  # once more, without a GL back-end, which nobody needs here
            env = _make(what, kwargs)
        except BaseException as again:
            raise _not_made(setup.name, again, pixels) from again
    if not pixels:
        return env
    if "rgb_array" not in (env.metadata or {}).get("render_modes", ()):
        raise UserError(_no_pictures(name))
    return PixelObservation(env, setup.name)


def _make(what: str | EnvSpec, kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    return gym.make(what, disable_env_checker=True, **kwargs)


def _not_made(name: str, error: BaseException, pixels: bool) -> UserError:
    blame(name, error)  # raises what is not the environment's
    reason = " ".join(str(error).split()).rstrip(".")
    if pixels and "render_mode" in reason:
        return UserError(_no_pictures(split_id(name)[0]))
    if isinstance(error, (TypeError, gym.error.Error, ImportError)) and reason:
        return NotMade(f"{name} could not be made: {reason}.")
    return NotMade(f"{name} could not be made: {describe(error)}.")


def _no_pictures(name: str) -> str:
    return f"{name} has no render mode rgb_array, so there are no pictures to observe it through: leave out {PIXELS}."


def flattened(env: gym.Env[Any, Any], name: str, several: bool = False) -> gym.Env[np.ndarray, np.ndarray]:
    """``env`` with its observation as a vector of floats; ``env`` itself where it already is one, or one of bytes on
    purpose; with ``several`` also where it has several parts. Raises as ``require_spaces``.
    """
    require_spaces(env, name, several)
    space = env.observation_space
    if not isinstance(space, Box):
        return FlatObservation(FlattenObservation(env))
    already = len(space.shape or ()) == 1 and np.issubdtype(space.dtype, np.floating)
    return env if already or isinstance(env, PixelObservation) else FlatObservation(env)


class FlatObservation(gym.ObservationWrapper[np.ndarray, Any, Any]):
    """Observations of any shape and number type as one float32 vector (observation,)."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, Box)
        low, high = space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel()
        self.observation_space = Box(low, high, dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        return np.asarray(observation, np.float32).reshape(-1)


def time_limit(env: gym.Env[Any, Any]) -> int | None:
    """Simulator steps after which a wrapper of Gymnasium's truncates; None without one."""
    limits = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            limits.append(int(env._max_episode_steps))
        env = env.env
    return min(limits, default=None)


def lidars_of(env: gym.Env[Any, Any], name: str) -> tuple[tuple[int, int], ...]:
    """What the attribute ``lidar_entries`` says (``EnvShape.lidars``): of each lidar the first entry and the readings.

    It counts where the environment that has it, which may be a wrapper, has the observations of ``env``. Raises
    ``UserError`` for what are no such pairs.
    """
    layer, outside = env, env.observation_space
    while (said := foreign(name, getattr, layer, LIDARS, None)) is None and isinstance(layer, gym.Wrapper):
        layer = layer.env
    if said is None or not isinstance(outside, Box) or foreign(name, lambda: layer.observation_space != outside):
        return ()
    size = math.prod(outside.shape)
    try:
        rings = tuple((operator.index(first), operator.index(count)) for first, count in said)
    except (TypeError, ValueError):
        rings = ((0, 0),)
    entries = [range(first, first + count) for first, count in rings]
    whole = all(ring.start >= 0 and ring.stop <= size and len(ring) >= FEWEST_READINGS for ring in entries)
    if not whole or len(set().union(*entries)) < sum(map(len, entries)):
        raise UserError(
            f"{name} has {LIDARS} {said!r:.80}: give a pair for each lidar, its first entry in an observation of {size}"
            f" and its number of readings, at least {FEWEST_READINGS}."
        )
    return rings


def require_spaces(env: gym.Env[Any, Any], name: str, several: bool = False) -> None:
    """Raises ``UserError``, one sentence a fault, unless actions are a bounded Box (action,) of floats and observations
    a Box of numbers, or with ``several`` anything that Gymnasium can flatten.
    """
    actions, observations = (foreign(name, getattr, env, space, None) for space in ("action_space", "observation_space"))
    if not isinstance(actions, Box):
        raise UserError(
            f"{name} has {type(actions).__name__} actions, "
            "but a diffusion policy needs a continuous Box: choose another environment."
        )
    if len(actions.shape) != 1 or actions.shape[0] == 0 or not np.issubdtype(actions.dtype, np.floating):
        raise UserError(
            f"{name} has actions of shape {actions.shape} and type {actions.dtype}, "
            "but a vector of floats is needed: wrap it so."
        )
    _require_bounds(actions, name)
    if not isinstance(observations, Box):
        kind = type(observations).__name__
        if not several:
            raise UserError(
                f"{name} has {kind} observations, but a Box is needed: give --flatten, which makes one vector of them"
                " as gymnasium.wrappers.FlattenObservation does."
            )
        if not isinstance(observations, gym.Space) or not observations.is_np_flattenable:
            raise UserError(f"{name} has {kind} observations, which --flatten cannot make a vector of: wrap it.")
        if not any(part.shape is None or all(part.shape) for part in _parts(observations)):
            raise UserError(f"{name} has observations without a number in them: there is nothing to learn from.")
        return
    if observations.dtype.kind not in "fiub" or int(np.prod(observations.shape)) == 0:
        raise UserError(
            f"{name} has observations of shape {observations.shape} and type {observations.dtype}: numbers are needed."
        )


def _parts(space: gym.Space[Any]) -> Iterator[gym.Space[Any]]:
    """The parts that a space of several is made of; of any other the space itself."""
    if not isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        yield space
        return
    for part in space.spaces.values() if isinstance(space, gym.spaces.Dict) else space.spaces:
        yield from _parts(part)


def _require_bounds(actions: Box, name: str) -> None:
    largest = max(float(np.abs(actions.low).max()), float(np.abs(actions.high).max()))
    if not largest <= LARGEST_BOUND:
        what = "unbounded actions" if not np.isfinite(largest) else f"actions of up to {largest:.3g}, which is no bound"
        raise UserError(
            f"{name} has {what}: give its action space the finite low and high that the machine has, or scale the"
            " actions with gymnasium.wrappers.RescaleAction."
        )
    low, high = inner_bounds(actions)
    if not (high - low >= LEAST_RANGE).all():
        raise UserError(
            f"{name} has an action whose low is not below its high, or by too little: remove that action or correct its bounds."
        )


def inner_bounds(actions: Box) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of an action space in float32, rounded towards the inside: (action,) each."""
    low, high = actions.low.astype(np.float32), actions.high.astype(np.float32)
    low = np.where(low.astype(np.float64) < actions.low, np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high.astype(np.float64) > actions.high, np.nextafter(high, np.float32(-np.inf)), high)
    return low, high
