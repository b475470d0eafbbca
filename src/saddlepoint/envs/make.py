"""One ``make_env(id)`` for every source of environments."""

from __future__ import annotations

import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from saddlepoint.envs.pixels import PixelObservation
from saddlepoint.envs.tasks import PIXELS, env_spec, split_id
from saddlepoint.types import UserError


def make_env(
    id: str, *, render_mode: str | None = None, max_episode_steps: int | None = None, **kwargs: Any
) -> gym.Env[np.ndarray, np.ndarray]:
    """An environment of ours or any registered with Gymnasium, with observations (observation,) and actions (action,)
    of floats; with ``PIXELS`` at the end of ``id`` observations are bytes, those of pictures (``PixelObservation``).

    ``max_episode_steps`` replaces the task's own time limit; ``kwargs`` go to the environment. Raises ``UserError`` for
    an unknown id (naming close matches), for arguments the environment does not take, and for spaces that cannot be
    used (``require_spaces``).
    """
    return flatten(open_env(id, render_mode=render_mode, max_episode_steps=max_episode_steps, **kwargs), id)


def open_env(
    id: str, *, render_mode: str | None = None, max_episode_steps: int | None = None, **kwargs: Any
) -> gym.Env[Any, Any]:
    """``gymnasium.make`` with our errors: the environment as its author shaped it, or as pictures of it show it."""
    env_spec(id)
    name, pixels = split_id(id)
    _choose_renderer()
    if pixels and render_mode not in (None, "rgb_array"):
        raise UserError(f"{id} draws its observations, so it cannot be made with render mode {render_mode!r}: leave out {PIXELS}.")
    render_mode = "rgb_array" if pixels else render_mode
    if max_episode_steps is not None and max_episode_steps < 1:
        raise UserError(f"an episode of {id} needs at least one step, not {max_episode_steps}.")
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    try:
        env = gym.make(name, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
    except (TypeError, gym.error.Error, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        if pixels and "render_mode" in reason:
            raise UserError(_no_pictures(name)) from error
        raise UserError(f"{id} could not be made: {reason}.") from error
    if not pixels:
        return env
    if "rgb_array" not in env.metadata.get("render_modes", ()):
        raise UserError(_no_pictures(name))
    return PixelObservation(env, id)


def _no_pictures(name: str) -> str:
    return f"{name} has no render mode rgb_array, so there are no pictures to observe it through: leave out {PIXELS}."


def _choose_renderer() -> None:
    """Without a display MuJoCo can draw only through EGL, and must be told so before it is imported."""
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"} & os.environ.keys():
        os.environ["MUJOCO_GL"] = "egl"


def flatten(env: gym.Env[Any, Any], name: str) -> gym.Env[np.ndarray, np.ndarray]:
    """``env`` with its observation as a vector of floats; ``env`` itself where it already is one, or one of bytes on
    purpose. Raises as ``require_spaces``.
    """
    require_spaces(env, name)
    space = env.observation_space
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


def require_spaces(env: gym.Env[Any, Any], name: str) -> None:
    """Raises ``UserError``, one sentence a fault, unless observations are a Box of numbers and actions a bounded Box
    (action,) of floats.
    """
    actions, observations = env.action_space, env.observation_space
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
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise UserError(f"{name} has unbounded actions: give its action space finite low and high.")
    if not (actions.low < actions.high).all():
        raise UserError(
            f"{name} has an action whose low is not below its high: remove that action or correct its bounds."
        )
    if not isinstance(observations, Box):
        raise UserError(
            f"{name} has {type(observations).__name__} observations, but a Box is needed: wrap it in "
            "gymnasium.wrappers.FlattenObservation."
        )
    if observations.dtype.kind not in "fiub" or int(np.prod(observations.shape)) == 0:
        raise UserError(
            f"{name} has observations of shape {observations.shape} and type {observations.dtype}: numbers are needed."
        )
