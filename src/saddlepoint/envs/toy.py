"""A fast 2-D task with two ways round a hazard: the smallest problem whose good safe policy has two modes.

A point starts on the left, at x near -1 and y within 0.6; the goal is (1, 0); a round hazard of radius 0.66 lies at the origin. Each step moves the
point by at most 0.05 towards the commanded velocity and pays ``1 - |goal - position| / 2``; an episode is 60 steps (a
time limit, nothing terminates). The task is its own mirror image in y, so at the start up and down are equally good,
and the mean of the two, straight on, is the unsafe way.

The starts are spread along y because a learner that only ever starts in the middle must find the way round by noise alone: by symmetry nothing
pulls it to either side (tried: ALGD then waits before the hazard, return 7 after 10,000 steps).

From exactly (-1, 0) (``jitter=(0, 0)``), by arithmetic:

=============================== ======== =========================================================================
policy                          return   cost (steps inside the hazard; the default budget is 1 an episode)
=============================== ======== =========================================================================
``straight_policy``             40.5     27: inside while |-1 + 0.05 k| < 0.66, that is k = 7 ... 33
``detour_policy``               27.03    0: by way of (0, 1) or (0, -1), each leg passes the centre at sqrt(1/2) > 0.66
shortest safe way (tangents)    33.4     0: length 2 sqrt(1 - r^2) + r (pi - 2 acos r) = 2.454
waiting before the hazard       about 10 0
=============================== ======== =========================================================================
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.snapshot import load_rng, rng_state
from saddlepoint.envs.tasks import register_task
from saddlepoint.types import UserError

START = (-1.0, 0.0)
JITTER = (0.05, 0.6)
GOAL = (1.0, 0.0)
HAZARD_RADIUS = 0.66  # about the origin
STEP = 0.05  # length of a step at full speed
ARENA = 1.25  # |x| and |y| stay below this
HORIZON = 60
ENERGY_BUDGET = 45.0  # straight on at full speed spends 40, the shortest detour 50, or 41 if it takes all its time


def observe(position: np.ndarray) -> np.ndarray:
    """(envs, 2) -> (envs, 6) float32: position, half the way to the goal, the way to the hazard's centre."""
    observation = np.empty((len(position), 6), np.float32)
    observation[:, 0:2] = position
    observation[:, 2:4] = (GOAL - position) / 2
    observation[:, 4:6] = -position
    return observation


def move(position: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One step of all points: (envs, 2), (envs, 2) -> new position (envs, 2); reward, hazard, energy, each (envs,).

    The commanded velocity is shortened to length 1, so that no direction is faster than another; hazard is 1 inside it
    and 0 outside, energy the squared length of the velocity.
    """
    ax, ay = action[:, 0].astype(np.float64), action[:, 1].astype(np.float64)
    square = ax * ax + ay * ay
    scale = STEP / np.sqrt(np.maximum(square, 1.0))
    moved = np.empty_like(position)
    moved[:, 0] = position[:, 0] + scale * ax
    moved[:, 1] = position[:, 1] + scale * ay
    np.clip(moved, -ARENA, ARENA, out=moved)
    x, y = moved[:, 0], moved[:, 1]
    to_goal = np.sqrt((x - GOAL[0]) ** 2 + (y - GOAL[1]) ** 2)
    hazard = (x * x + y * y < HAZARD_RADIUS**2).astype(np.float64)
    return moved, 1.0 - to_goal / 2, hazard, np.minimum(square, 1.0)


def start(rng: np.random.Generator, jitter: tuple[float, float]) -> np.ndarray:
    """(2,): the start, moved by up to ``jitter`` along x and y."""
    return np.asarray(START) + rng.uniform(-1.0, 1.0, 2) * jitter


def straight_policy(observation: np.ndarray) -> np.ndarray:
    """(envs, 6) -> (envs, 2): at full speed to the goal, through the hazard: the best without a budget."""
    return _towards(observation[:, 0:2], np.broadcast_to(GOAL, (len(observation), 2)))


def detour_policy(observation: np.ndarray, side: float = 1.0) -> np.ndarray:
    """(envs, 6) -> (envs, 2): at full speed to (0, ``side``) and on to the goal; safe with ``side`` = 1 and -1 from the middle,
    and from elsewhere with the sign of the start's y."""
    position = observation[:, 0:2]
    before = position[:, 0:1] < -1e-6  # float32 observations: the way-point itself counts as passed
    return _towards(position, np.where(before, (0.0, side), GOAL))


def _towards(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The action that heads for ``target`` and stops on it."""
    way = (target - position) / STEP
    return (way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1.0)).astype(np.float32)


def draw(position: np.ndarray, size: int = 200) -> np.ndarray:
    """(2,) -> (size, size, 3) uint8: arena seen from above, hazard red, goal green, point blue."""
    axis = np.linspace(-ARENA, ARENA, size)
    x, y = np.meshgrid(axis, -axis)
    frame = np.full((size, size, 3), 245, np.uint8)
    frame[x * x + y * y < HAZARD_RADIUS**2] = (236, 150, 140)
    frame[(x - GOAL[0]) ** 2 + (y - GOAL[1]) ** 2 < 0.06**2] = (60, 160, 90)
    frame[(x - position[0]) ** 2 + (y - position[1]) ** 2 < 0.04**2] = (40, 80, 200)
    return frame


def _spaces(jitter: tuple[float, float]) -> tuple[Box, Box]:
    """New spaces of observations and actions for every environment: a space has a random generator of its own."""
    along, across = jitter
    if not (0.0 <= along <= 0.2 and 0.0 <= across <= 1.0):
        raise UserError(
            f"the toy's jitter must lie within (0.2, 1.0), not {jitter}: the start would be in the hazard or outside."
        )
    return Box(-ARENA, ARENA, (6,), np.float32), Box(-1.0, 1.0, (2,), np.float32)


class ToyEnv(gym.Env[np.ndarray, np.ndarray]):
    """The toy as an ordinary environment. Cost in ``info["cost"]``: float, or (hazard, energy) with ``energy=True``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(
        self, *, energy: bool = False, jitter: tuple[float, float] = JITTER, render_mode: str | None = None
    ) -> None:
        self.energy, self.jitter, self.render_mode = energy, jitter, render_mode
        self.observation_space, self.action_space = _spaces(jitter)
        self.position = np.array([START])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = start(self.np_random, self.jitter)[None]
        return observe(self.position)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position, reward, hazard, spent = move(self.position, np.asarray(action)[None])
        cost = np.concatenate([hazard, spent]) if self.energy else float(hazard[0])
        return observe(self.position)[0], float(reward[0]), False, False, {"cost": cost}

    def render(self) -> np.ndarray:
        return draw(self.position[0])

    def snapshot(self) -> dict[str, Any]:
        return {"position": self.position.copy(), "rng": rng_state(self.np_random)}

    def restore(self, state: dict[str, Any]) -> None:
        self.position = np.array(state["position"])
        self.np_random = load_rng(state["rng"])


class ToyVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many toys at once. Each has its own random generator, so that environment i equals a ``ToyEnv`` of the same seed.

    Autoreset is SAME_STEP. ``info["cost"]`` is the cost of the step just made, (envs,) or (envs, 2), also where an
    episode ended; ``info["final_obs"]``, (envs, 6), is there when some episode ended and holds the real successor of
    every environment.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"], "render_fps": 20, "autoreset_mode": AutoresetMode.SAME_STEP,
    }  # fmt: skip

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int = HORIZON,
        energy: bool = False,
        jitter: tuple[float, float] = JITTER,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.energy, self.jitter, self.render_mode = energy, jitter, render_mode
        self.single_observation_space, self.single_action_space = _spaces(jitter)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.position = np.tile(START, (num_envs, 1))
        self.elapsed = np.zeros(num_envs, np.int64)
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
            for i, own in enumerate(seeds):
                if own is not None:
                    self._rngs[i] = seeding.np_random(own)[0]
        self._begin(np.arange(self.num_envs))
        return observe(self.position), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.position, reward, hazard, spent = move(self.position, actions)
        self.elapsed += 1
        observation = observe(self.position)
        info: dict[str, Any] = {"cost": np.stack([hazard, spent], axis=1) if self.energy else hazard}
        truncated = self.elapsed >= self.max_episode_steps
        if truncated.any():
            info["final_obs"] = observation.copy()
            ended = np.flatnonzero(truncated)
            self._begin(ended)
            observation[ended] = observe(self.position[ended])
        return observation, reward, np.zeros(self.num_envs, bool), truncated, info

    def _begin(self, which: np.ndarray) -> None:
        self.elapsed[which] = 0
        for i in which:
            self.position[i] = start(self._rngs[i], self.jitter)

    def render(self) -> tuple[np.ndarray, ...]:
        return tuple(draw(position) for position in self.position)

    def snapshot(self) -> dict[str, Any]:
        rngs = [rng_state(rng) for rng in self._rngs]
        return {"position": self.position.copy(), "elapsed": self.elapsed.copy(), "rngs": rngs}

    def restore(self, state: dict[str, Any]) -> None:
        self.position, self.elapsed = np.array(state["position"]), np.array(state["elapsed"])
        self._rngs = [load_rng(rng) for rng in state["rngs"]]


_HAZARD_BUDGET = CostBudget(1.0, horizon=HORIZON)
for _id, _text, _energy, _budgets in (
    ("saddlepoint/Toy-v0", "2-D point, two ways round a hazard; cost 1 a step inside", False, (_HAZARD_BUDGET,)),
    (
        "saddlepoint/ToyTwo-v0", "the toy with two constraints: steps inside the hazard, and energy |a|^2", True,
        (_HAZARD_BUDGET, CostBudget(ENERGY_BUDGET, horizon=HORIZON)),
    ),
):  # fmt: skip
    register_task(
        _id, _text, _budgets, HORIZON,
        entry_point="saddlepoint.envs.toy:ToyEnv",
        vector_entry_point="saddlepoint.envs.toy:ToyVectorEnv",
        kwargs={"energy": _energy},
    )  # fmt: skip
