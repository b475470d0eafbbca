"""A task of the DeepMind Control Suite as an ordinary Gymnasium environment."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from saddlepoint.envs.control.costs import COSTS
from saddlepoint.envs.snapshot import load_mujoco, load_rng, mujoco_state, rng_state
from saddlepoint.envs.velocity import pass_on_warnings
from saddlepoint.types import NonFiniteError, UserError

ACTION_REPEAT = 2
_DRAWN = ("geom_pos", "site_pos")
"""Arrays of the model that the suite's tasks draw at the start of an episode (where a target lies)."""


class ControlEnv(gym.Env[np.ndarray, np.ndarray]):
    """``task`` is a name in ``catalogue``. Needs the extra ``control``: ``UserError`` says so.

    Observation (observation,) float32: the suite's own parts, flattened in the suite's order. Action (action,) in
    [-1, 1], scaled to the actuators' ranges where these differ (quadruped), and held for two control steps. Reward: the
    sum of the two control steps', within [0, 2]. ``safe`` puts the cost of ``costs.COSTS`` into ``info["cost"]``, the
    sum over the two control steps as well (0, 1 or 2). The time limit is Gymnasium's wrapper. A seed gives the episodes
    that it gives in dm_control. Raises ``NonFiniteError`` where MuJoCo finds the state invalid.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(
        self, *, task: str, safe: bool = False, render_mode: str | None = None, width: int = 480, height: int = 480
    ) -> None:
        if safe and task not in COSTS:
            raise UserError(
                f"DMControl's {task} has no cost: take one of {', '.join(f'dmc/{name}-safe' for name in COSTS)}."
            )
        self._suite = load_suite(task)  # a dm_control.rl.control.Environment without a time limit
        self._violated = COSTS[task].violated if safe else None
        self._name, self.render_mode, self._size = task, render_mode, (height, width)
        self._camera = 2 if task.startswith("quadruped") else 0  # the quadruped's first one stands far away
        spec = self._suite.action_spec()
        self._low, self._high = np.broadcast_to(spec.minimum, spec.shape), np.broadcast_to(spec.maximum, spec.shape)
        self._scaled = bool((self._low != -1).any() or (self._high != 1).any())
        size = sum(int(np.prod(part.shape)) for part in self._suite.observation_spec().values())
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = Box(-1.0, 1.0, spec.shape, np.float32)
        step_seconds = ACTION_REPEAT * self._suite.control_timestep()
        self.metadata = {**self.metadata, "render_fps": round(1 / step_seconds)}

    @property
    def physics(self) -> Any:
        """dm_control's physics, of the suite's own class for the robot."""
        return self._suite.physics

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._suite.task.random.seed(seed % 2**32)  # its generator takes no more bits
        return _flat(self._suite.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        from dm_control.rl.control import PhysicsError

        control = np.asarray(action, np.float64)
        if self._scaled:
            control = self._low + (control + 1) / 2 * (self._high - self._low)
        reward, cost = 0.0, 0.0
        try:
            for _ in range(ACTION_REPEAT):
                seen = self._suite.step(control)
                reward += float(seen.reward)
                cost += float(self._violated is not None and self._violated(self.physics))
        except PhysicsError as error:
            raise NonFiniteError(f"the physics of {self._name} has diverged ({error}): look at the actions.") from error
        return _flat(seen.observation), reward, False, False, {} if self._violated is None else {"cost": cost}

    def render(self) -> np.ndarray:
        return self.picture(*self._size)

    def picture(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8: the scene as it is now, drawn at that size."""
        return self.physics.render(height, width, camera_id=self._camera)

    def snapshot(self) -> dict[str, Any]:
        model, data = self.physics.model.ptr, self.physics.data.ptr
        return {
            "physics": mujoco_state(model, data),
            "drawn": {name: getattr(model, name).copy() for name in _DRAWN},
            "episodes": self._suite.task.random.get_state(legacy=False),
            "rng": rng_state(self.np_random),
        }

    def restore(self, state: dict[str, Any]) -> bool:
        import mujoco

        self._suite.reset()  # else its first step would
        model, data = self.physics.model.ptr, self.physics.data.ptr
        if not load_mujoco(model, data, state["physics"]):
            return False
        for name in _DRAWN:
            getattr(model, name)[...] = state["drawn"][name]
        # The suite leaves every step after mj_step1 and begins the next with mj_step2, which reads contacts and
        # constraints. These are not in the state: make them anew, and put back what mj_step1 moved on the way.
        mujoco.mj_step1(model, data)
        load_mujoco(model, data, state["physics"])
        self._suite.task.random.set_state(state["episodes"])
        self.np_random = load_rng(state["rng"])
        return True

    def close(self) -> None:
        self.physics.free()


def load_suite(task: str) -> Any:
    """The dm_control environment of ``task``, a name of the catalogue, without a time limit of its own."""
    if importlib.util.find_spec("dm_control") is None:
        raise UserError(
            "DMControl's tasks need dm_control, which is an extra: pip install saddlepoint[control] (on Python 3.11 or 3.12;"
            " it cannot be installed on 3.13)."
        )
    from dm_control import suite

    from saddlepoint.envs.control.custom import CUSTOM

    pass_on_warnings()  # after the import, which sets a handler of its own
    if task in CUSTOM:
        return CUSTOM[task]()
    domain, _, name = task.partition("-")
    domain = "ball_in_cup" if domain == "cup" else domain
    return suite.load(domain, name.replace("-", "_"), task_kwargs={"time_limit": float("inf")})


def _flat(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float32)
