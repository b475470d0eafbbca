"""Drawing: which GL back-end MuJoCo takes, and one sentence where an environment cannot be drawn."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from saddlepoint.faults import describe
from saddlepoint.foreign import blame
from saddlepoint.types import ForeignFault, UserError

_broken: list[str] = []
"""why the GL back-end asked for cannot be used; at most one entry, because MuJoCo reads MUJOCO_GL once a process"""


def choose_renderer() -> None:
    """Without a display MuJoCo can draw only through EGL, and must be told so before it is imported."""
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"} & os.environ.keys():
        os.environ["MUJOCO_GL"] = "egl"


def gl_stops_mujoco() -> bool:
    """Whether MuJoCo cannot even be imported with this MUJOCO_GL. It is then told not to draw, and can be imported."""
    asked = os.environ.get("MUJOCO_GL")
    if asked is None or "mujoco" in sys.modules or importlib.util.find_spec("mujoco") is None:
        return False
    try:
        import mujoco  # noqa: F401
    except Exception as error:
        _broken.append(f"MUJOCO_GL={asked} does not work here: {describe(error)}")
        os.environ["MUJOCO_GL"] = "disable"
        return True
    return False


def first_picture(draw: Callable[[], Any], name: str) -> Any:
    """The picture of an episode's start, which is what fails without GL. Raises ``UserError`` with what to do."""
    try:
        return draw()
    except BaseException as error:
        fault = cannot_draw(name, error)
        _forget(error)
        raise fault from None


def require_picture(picture: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """``picture`` where it is (height, width, 3) uint8, and of ``shape`` where that is given. Raises ``ForeignFault``."""
    is_bytes = isinstance(picture, np.ndarray) and picture.dtype == np.uint8
    if is_bytes and picture.ndim == 3 and picture.shape[2] == 3 and picture.size and shape in (None, picture.shape):
        return picture
    kind = f"{picture.dtype} of shape {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
    wanted = "(height, width, 3) uint8" if shape is None else f"{shape} uint8 each time"
    raise ForeignFault(f"{name} cannot be drawn: its render mode rgb_array must give {wanted}, and gives {kind}.")


def cannot_draw(name: str, error: BaseException) -> UserError:
    """The sentence for an error of drawing; raises ``error`` where it is not one."""
    if isinstance(error, gym.error.Error):  # such as a missing pygame: it says itself what to install
        return ForeignFault(f"{name} cannot be drawn: {' '.join(str(error).split()).rstrip('.')}.")
    blame(name, error)  # raises what is not the environment's
    reason = _broken[0] if _broken else describe(error)
    advice = ": leave the drawing out"
    if _broken or "mujoco" in sys.modules:
        advice = (
            ": unset MUJOCO_GL, or install EGL (apt-get install libegl1 libgl1) and set MUJOCO_GL=egl,"
            " or OSMesa (libosmesa6) and MUJOCO_GL=osmesa"
        )
    return ForeignFault(f"{name} cannot be drawn on this machine ({reason}){advice}.")


def _forget(error: BaseException) -> None:
    """Free what was half made, quietly: a viewer that could not open fails once more when it is deleted."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
            error = error.__context__  # type: ignore[assignment]
        gc.collect()
    finally:
        sys.unraisablehook = hook
