"""A task of Meta-World as an ordinary Gymnasium environment."""

from __future__ import annotations

import atexit
import importlib.metadata
import importlib.util
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from saddlepoint.envs.snapshot import load_rng, mujoco_state, rng_state
from saddlepoint.envs.velocity import pass_on_warnings
from saddlepoint.types import NonFiniteError, UserError

ACTION_REPEAT = 2
OBSERVATIONS, ACTIONS = 39, 4
MUJOCO = "3.3.0"
"""The one version that Meta-World names: later ones report contacts, which rewards look at, in another way, and 3.17 fails."""
CAMERA, CAMERA_POSITION = "corner2", (0.75, 0.075, 0.7)  # TD-MPC2 moves it nearer, m


class MetaWorldEnv(gym.Env[np.ndarray, np.ndarray]):
    """``task`` is a name in ``catalogue``. Needs the extra ``metaworld``: ``UserError`` says so.

    Observation (39,) float32: hand, gripper and objects now (18) and one control step ago (18), and the goal (3). Action
    (4,) in [-1, 1]: where to move the hand, and the gripper; it is held for two control steps. Reward: the sum of the two
    control steps', within [0, 20]; ``info`` is Meta-World's after the second, with ``success`` 0.0 or 1.0. The time limit is
    Gymnasium's wrapper. A seed fixes the goals and places of objects, anew in every episode; an episode is the one that
    Meta-World's ``set_task`` makes of them. TD-MPC2 makes one control step with a null action, unseen, when an episode
    begins: it is left out, so that the first observation is of the state that is acted on. Raises ``NonFiniteError`` where
    MuJoCo finds the state invalid.

    Meta-World keeps views of MuJoCo's arrays among its attributes, so an episode cannot be copied attribute by attribute.
    It depends on the random state that it began with and on its actions alone: these are the snapshot, and ``restore``
    plays them once more and compares the physics.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(self, *, task: str, render_mode: str | None = None, width: int = 480, height: int = 480) -> None:
        self._sawyer = load_sawyer(task)
        self._name, self.render_mode, self._size = task, render_mode, (height, width)
        self._began: dict[str, Any] | None = None  # random state with which the episode began; None before the first
        self._actions: list[np.ndarray] = []  # of the episode so far
        self._renderers: dict[tuple[int, int], Any] = {}  # by height and width
        self.observation_space = Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
        self.action_space = Box(-1.0, 1.0, (ACTIONS,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._begin(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.array(action, np.float32)  # a copy, which is kept
        reward = 0.0
        for _ in range(ACTION_REPEAT):
            observation, gained, _, _, info = self._sawyer.step(action)
            reward += float(gained)
        self._actions.append(action)
        self._require_valid()
        return observation.astype(np.float32), reward, False, False, {**info, "success": float(info["success"])}

    def _begin(self) -> np.ndarray:
        self._began, self._actions = rng_state(self.np_random), []
        sawyer = self._sawyer
        sawyer.np_random, sawyer._freeze_rand_vec = self.np_random, False
        sawyer.reset_model()  # draws a goal and places; a dozen tasks still see and measure the objects where they were before
        sawyer._freeze_rand_vec = True
        return sawyer.reset()[0].astype(np.float32)

    def _require_valid(self) -> None:
        """MuJoCo starts the scene over where a position, velocity, acceleration or control is not finite, and counts that."""
        import mujoco

        if self._sawyer.data.warning.number[int(mujoco.mjtWarning.mjWARN_BADQPOS) :].any():
            raise NonFiniteError(f"the physics of mw/{self._name} has diverged: look at the actions.")

    def render(self) -> np.ndarray:
        return self.picture(*self._size)

    def picture(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8: the scene as it is now, drawn at that size. Raises ``UserError`` where MuJoCo cannot draw."""
        if (height, width) not in self._renderers:
            self._renderers[height, width] = _renderer(self._sawyer.model, height, width)
        renderer = self._renderers[height, width]
        renderer.update_scene(self._sawyer.data, camera=CAMERA)
        return renderer.render()[::-1, ::-1].copy()  # the camera hangs upside down

    def snapshot(self) -> dict[str, Any]:
        return {
            "versions": _versions(),
            "rng": rng_state(self.np_random) if self._began is None else self._began,
            "actions": None if self._began is None else np.array(self._actions, np.float32).reshape(-1, ACTIONS),
            "physics": self._physics(),
        }

    def restore(self, state: dict[str, Any]) -> bool:
        if state["versions"] != _versions():
            return False
        self.np_random = load_rng(state["rng"])
        if state["actions"] is None:
            self._began = None
            return True
        self._begin()
        for action in state["actions"]:
            self.step(action)
        return np.array_equal(self._physics(), state["physics"])

    def _physics(self) -> np.ndarray:
        return mujoco_state(self._sawyer.model, self._sawyer.data)["physics"]

    def close(self) -> None:
        for renderer in self._renderers.values():
            atexit.unregister(renderer.close)
            renderer.close()
        self._renderers.clear()
        self._sawyer.close()


def load_sawyer(task: str) -> Any:
    """Meta-World's environment of ``task``, a name of the catalogue, with its goal in the observation and without a time
    limit of its own. Where its goal may vary, its ``np_random`` draws it.
    """
    if importlib.util.find_spec("metaworld") is None:
        raise UserError(
            "Meta-World's tasks need metaworld, which is an extra: pip install saddlepoint[metaworld],"
            " in a Python environment without saddlepoint[control]."
        )
    import mujoco

    if mujoco.__version__ != MUJOCO:
        raise UserError(
            f"Meta-World's tasks need MuJoCo {MUJOCO} and {mujoco.__version__} is installed:"
            " pip install saddlepoint[metaworld] in a Python environment without saddlepoint[control]."
        )
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    pass_on_warnings()
    sawyer = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-v3-goal-observable"](seed=0)  # a seed, to leave numpy's own alone
    sawyer.seeded_rand_vec, sawyer.max_path_length = True, sys.maxsize
    sawyer.model.camera(CAMERA).pos = CAMERA_POSITION
    return sawyer


def _versions() -> str:
    """Of what an episode depends on."""
    import mujoco

    return f"metaworld {importlib.metadata.version('metaworld')}, MuJoCo {mujoco.__version__}"


def _renderer(model: Any, height: int, width: int) -> Any:
    """A ``mujoco.Renderer`` of that size. Raises ``UserError`` where no picture can be drawn on this machine."""
    import mujoco

    limits = model.vis.global_
    limits.offheight, limits.offwidth = max(limits.offheight, height), max(limits.offwidth, width)
    try:
        renderer = mujoco.Renderer(model, height, width)
    except (RuntimeError, AttributeError, ImportError, mujoco.FatalError) as error:
        raise UserError(f"MuJoCo cannot draw here ({error}): set MUJOCO_GL=egl or osmesa.") from error
    atexit.register(renderer.close)  # not left to the interpreter's end, when the library underneath is gone already
    return renderer
