"""Run, but not too fast: Gymnasium's MuJoCo robots with a cost on their speed, in two semantics.

``saddlepoint/{Robot}Velocity-v0``: cost 1 in a step whose velocity is above a threshold, else 0; 25 an episode of 1000
steps, undiscounted, as in Safety-Gymnasium. The velocity is that along x (its sign counts: running backwards is never
too fast) for the planar robots, and the norm of the (x, y) velocity for Ant and Humanoid.

``saddlepoint/{Robot}Speed-v0``: cost = the speed itself, |x velocity| or the norm of the (x, y) velocity; the budget is
ALGD's, a discounted sum over the episode at gamma 0.99. The paper gives none for Walker2d and Swimmer, so these have no
such task: a budget of our own making would look like a published one.

``info["speed"]`` stands beside ``info["cost"]`` in both. Velocities are Gymnasium's, displacement over the time of the
step.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.tasks import register_task
from saddlepoint.types import UserError

HORIZON = 1000
EPISODE_LIMIT = 25.0  # steps above the threshold


class Robot(NamedTuple):
    """What the sources say of one robot; velocities in m/s."""

    threshold: float  # Safety-Gymnasium's
    discounted_speed: float | None  # ALGD's h
    planar: bool  # moves in the (x, z) plane, or is judged by its x velocity alone
    observation_entries: int | None  # the papers use only the first entries of Ant's and Humanoid's observation


ROBOTS = {
    "Hopper": Robot(0.7402, 82.748, True, None),
    "Walker2d": Robot(2.3415, None, True, None),
    "HalfCheetah": Robot(3.2096, 151.989, True, None),
    "Ant": Robot(2.6222, 103.115, False, 27),
    "Humanoid": Robot(1.4149, 20.140, False, 45),
    "Swimmer": Robot(0.2282, None, True, None),
}


class VelocityCost(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Adds ``info["cost"]`` and ``info["speed"]`` to an environment whose info has ``x_velocity`` (and ``y_velocity``
    unless planar).

    With a ``threshold`` the cost is 1.0 above it and 0.0 else; without one it is the speed. Only the first
    ``observation_entries`` of the observation are shown; None shows all.
    """

    def __init__(
        self, env: gym.Env[Any, Any], *, planar: bool, threshold: float | None, observation_entries: int | None = None
    ) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, Box)
        if observation_entries is not None and not 1 <= observation_entries <= space.shape[0]:
            raise UserError(f"observation_entries must lie between 1 and {space.shape[0]}, not {observation_entries}.")
        self.planar, self.threshold, self.entries = planar, threshold, observation_entries
        if observation_entries is not None:
            self.observation_space = Box(
                space.low[:observation_entries], space.high[:observation_entries], dtype=space.dtype.type
            )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation[: self.entries], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        velocity = float(info["x_velocity"] if self.planar else np.hypot(info["x_velocity"], info["y_velocity"]))
        info["speed"] = abs(velocity)
        info["cost"] = info["speed"] if self.threshold is None else float(velocity > self.threshold)
        return observation[: self.entries], reward, bool(terminated), truncated, info


def velocity_env(
    *, robot: str, planar: bool, threshold: float | None, observation_entries: int | None = None, **kwargs: Any
) -> VelocityCost:
    """Gymnasium's ``{robot}-v5`` under ``VelocityCost``; ``kwargs`` go to the robot. MuJoCo is imported here and not
    before.
    """
    pass_on_warnings()
    spec = gym.spec(f"{robot}-v5")
    assert spec.entry_point is not None
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    if not {"camera_id", "camera_name"} & kwargs.keys():
        kwargs["camera_name"] = "track"  # Gymnasium 1.4 takes a free camera otherwise, which the robot runs away from
    env: Any = creator(**{**spec.kwargs, **kwargs})
    return VelocityCost(env, planar=planar, threshold=threshold, observation_entries=observation_entries)


def pass_on_warnings() -> None:
    """MuJoCo's warnings as Python ones, but for the deprecation of ``settotalmass`` in Gymnasium's own HalfCheetah model.

    Left alone MuJoCo prints it for every environment made and writes MUJOCO_LOG.TXT into the user's folder.
    """
    import mujoco

    def report(message: str) -> None:
        if "settotalmass" not in message:
            warnings.warn(f"MuJoCo: {message}", stacklevel=2)

    mujoco.set_mju_user_warning(report)


def _register(id: str, text: str, name: str, budget: CostBudget, threshold: float | None) -> None:
    robot = ROBOTS[name]
    kwargs = {"robot": name, "planar": robot.planar, "threshold": threshold}
    kwargs["observation_entries"] = robot.observation_entries
    register_task(id, text, (budget,), HORIZON, entry_point="saddlepoint.envs.velocity:velocity_env", kwargs=kwargs)


for _name, _robot in ROBOTS.items():
    _register(
        f"saddlepoint/{_name}Velocity-v0",
        f"{_name}-v5; cost 1 a step {'along x ' if _robot.planar else ''}above {_robot.threshold} m/s",
        _name, CostBudget(EPISODE_LIMIT, horizon=HORIZON), _robot.threshold,
    )  # fmt: skip
    if _robot.discounted_speed is not None:
        _register(
            f"saddlepoint/{_name}Speed-v0",
            f"{_name}-v5; cost = speed in m/s, bounded in its discounted sum",
            _name, CostBudget(_robot.discounted_speed, discounted=True, horizon=HORIZON, gamma=0.99), None,
        )  # fmt: skip
