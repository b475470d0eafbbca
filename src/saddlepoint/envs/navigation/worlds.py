"""The rules of a task over many worlds: layouts, rewards, costs, goals and observations. Physics is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from saddlepoint.envs.navigation.layout import sample_layout, sample_place
from saddlepoint.envs.navigation.lidar import lidar
from saddlepoint.envs.navigation.physics import Physics
from saddlepoint.envs.navigation.robots import rotation_matrix
from saddlepoint.envs.navigation.scene import Scene
from saddlepoint.envs.navigation.tasks import Task
from saddlepoint.types import UserError

REWARD_LIMIT = 10.0
_STATE = ("clock", "qpos", "qvel", "mocap_pos", "mocap_quat", "homes")


class Outcome(NamedTuple):
    """What a step has brought to every world."""

    reward: np.ndarray  # (envs,)
    cost: np.ndarray  # (envs,): 1 where any cost is positive
    costs: dict[str, np.ndarray]  # key -> (envs,): 1 where that cost is positive
    reached: np.ndarray  # (envs,) bool
    stuck: np.ndarray  # (envs,) bool: no place was found for a new goal, the episode is over


class Worlds:
    """``envs`` worlds of one task, each with a random stream of its own.

    The order of a step: physics, reward, costs, the pause runs down, a reached goal is followed by a new one,
    observation. Where a goal was reached, the reward is that of the old one.
    """

    def __init__(self, task: Task, physics: Physics) -> None:
        self.task, self.physics = task, physics
        self.envs = len(physics.clock)
        self.scene = Scene(task.name, task.kinds, self.envs)
        self.rngs = [np.random.RandomState(0) for _ in range(self.envs)]
        self.timer = np.zeros(self.envs, np.int64)
        self.distance = np.zeros(self.envs)
        self._plan = task.plan()
        names = [name for kind in task.kinds for name in kind.names]
        self._placed = np.array([names.index(name) for name in self._plan.names[1:]], np.int64)
        self._heights = np.array([kind.height for kind in task.kinds for _ in kind.names])
        self._driven = self.physics.blueprint.anchored[: self.physics.blueprint.drivers]
        self._nq, self._nv = task.robot.coordinates
        self._goal = names.index("goal") if "goal" in names else None
        self._look()

    def _look(self) -> None:
        """Work out once what the observation is made of."""
        task, scene = self.task, self.scene
        seen = [np.arange(len(scene.xyz[0]))[scene.columns(name)] for name in task.lidars]
        self._seen = np.concatenate(seen) if seen else np.zeros(0, np.int64)
        self._ring = np.repeat(np.arange(len(seen)), [len(own) for own in seen])
        self._hidden = task.lidars.index(task.objective.among) if task.objective.among in task.lidars else None
        sensors = task.robot.sensors
        self._plain = sum(size for name, size in sensors.items() if not name.startswith("ballquat"))
        lengths = {**sensors, **{f"{name}_lidar": scene.BINS for name in task.lidars}}
        starts = dict(zip(lengths, np.cumsum([0, *lengths.values()])))
        self._order = np.concatenate([starts[name] + np.arange(size) for name, size in task.parts.items()])
        self.readings = np.zeros((self.envs, len(seen), scene.BINS))
        """what the lidars read at the last observation"""

    # -- an episode begins --------------------------------------------------------------------------------------------

    def begin(self, env: int) -> None:
        """A new layout in world ``env``. Raises ``UserError`` when none is found."""
        scene, physics, plan = self.scene, self.physics, self._plan
        if self.task.layout_seed is not None:
            self.rngs[env] = np.random.RandomState(self.task.layout_seed)
        rng = self.rngs[env]
        layout = sample_layout(rng, plan)
        yaws = rng.uniform(0.0, 2 * np.pi, len(layout))
        scene.xyz[env, :, 2] = self._heights
        scene.xyz[env, self._placed, :2] = layout[1:]
        quats = np.zeros((len(self._heights), 4))
        quats[:, 0] = 1.0
        quats[self._placed, 0], quats[self._placed, 3] = np.cos(yaws[1:] / 2), np.sin(yaws[1:] / 2)

        blueprint = physics.blueprint
        physics.clock[env] = 0.0
        physics.qvel[env] = 0.0
        physics.qpos[env] = blueprint.qpos0
        self.task.robot.place(physics.qpos[env], layout[0, 0], layout[0, 1], yaws[0])
        objects = physics.qpos[env, self._nq :].reshape(-1, 7)
        objects[:, :3], objects[:, 3:] = scene.xyz[env, blueprint.movable], quats[blueprint.movable]
        physics.homes[env] = scene.xyz[env, self._driven]
        physics.mocap_quat[env] = quats[blueprint.anchored]
        self._see_robots()
        self._new_goal(env)
        physics.mocap_pos[env] = scene.xyz[env, blueprint.anchored]
        physics.settle(env)
        self.timer[env] = 0
        self.refresh()
        self.distance[env] = self.task.objective.measure(scene)[0][env]

    def _new_goal(self, env: int) -> bool:
        """Choose the next goal; False where no place was found for it."""
        scene, among, rng = self.scene, self.task.objective.among, self.rngs[env]
        if among is not None:
            columns = scene.columns(among)
            scene.target[env] = rng.choice(columns.stop - columns.start)
            place: Any = scene.xyz[env, columns.start + scene.target[env], :2]
        elif self._goal is not None and self._goal in self._placed:
            row = self._plan.names.index("goal")
            others = np.arange(len(self._plan.names)) != row
            layout = np.concatenate([scene.agent[env, None, :2], self._layout_xy(env)])
            distances = self._plan.keepouts[others] + self._plan.keepouts[row]
            place = sample_place(rng, self._plan.boxes[row], layout[others], distances)
        else:
            return True
        if place is None:
            return False
        if self._goal is not None:
            scene.xyz[env, self._goal, :2] = place
            marker = np.flatnonzero(self.physics.blueprint.anchored == self._goal)
            self.physics.mocap_pos[env, marker] = scene.xyz[env, self._goal]
        return True

    def _layout_xy(self, env: int) -> np.ndarray:
        """(placed, 2): where the objects are as the layout sees them: driven ones at home."""
        xy = self.scene.xyz[env, :, :2].copy()
        xy[self._driven] = self.physics.homes[env, :, :2]
        return xy[self._placed]

    # -- a step -------------------------------------------------------------------------------------------------------

    def step(self, action: np.ndarray) -> Outcome:
        """One step of all worlds; ``action`` (envs, action) is clipped to +-1."""
        self.physics.advance(np.minimum(np.maximum(action, -1.0), 1.0))
        for rng in self.rngs:
            rng.random_sample()  # the original draws the number of substeps, which is always ten
        self.refresh()
        return self.judge()

    def judge(self) -> Outcome:
        """Reward and costs of the scene as it is, and new goals where they were reached."""
        scene, objective = self.scene, self.task.objective
        distance, reached = objective.measure(scene)
        reward = self.distance - distance + reached
        if objective.reward is not None:
            reward = reward + objective.reward(scene)
        costs = {cost.key: (cost.raw(scene) > 0).astype(np.float64) for cost in self.task.costs}
        cost = np.zeros(self.envs)
        for part in costs.values():
            np.maximum(cost, part, out=cost)
        np.maximum(self.timer - 1, 0, out=self.timer)
        self.distance = distance
        stuck = np.zeros(self.envs, bool)
        if reached.any():
            for env in np.flatnonzero(reached):
                self.timer[env] = objective.pause
                stuck[env] = not self._new_goal(int(env))
            self.distance = np.where(reached, objective.measure(scene)[0], distance)
        scene.paused = self.timer > 0
        return Outcome(np.minimum(np.maximum(reward, -REWARD_LIMIT), REWARD_LIMIT), cost, costs, reached, stuck)

    def refresh(self) -> None:
        """Bring the scene up to date with the physics."""
        scene, physics = self.scene, self.physics
        blueprint = physics.blueprint
        self._see_robots()
        if len(blueprint.movable):
            scene.xyz[:, blueprint.movable] = physics.qpos[:, self._nq :].reshape(self.envs, -1, 7)[:, :, :3]
            scene.velocity[:, blueprint.movable] = physics.qvel[:, self._nv :].reshape(self.envs, -1, 6)[:, :, :3]
        if len(blueprint.solid):
            scene.touch[:, blueprint.solid] = physics.sensordata[:, -len(blueprint.solid) :]
        scene.paused = self.timer > 0

    def _see_robots(self) -> None:
        self.scene.agent, self.scene.rotation = self.task.robot.pose(self.physics.qpos)

    def observe(self) -> np.ndarray:
        """(envs, observation): sensors and lidars as they are now."""
        scene, data, plain = self.scene, self.physics.sensordata, self._plain
        parts = [data[:, :plain]]
        if self.task.robot.ball is not None:
            parts.append(rotation_matrix(data[:, plain : plain + 4]).reshape(self.envs, 9))
        if self.task.lidars:
            centres = scene.xyz[:, self._seen, :2]
            self.readings = lidar(scene.agent, scene.rotation, centres, self._ring, len(self.task.lidars), scene.BINS)
            if self._hidden is not None:
                self.readings[scene.paused, self._hidden] = 0.0
            parts.append(self.readings.reshape(self.envs, -1))
        return np.concatenate(parts, axis=1)[:, self._order]

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """All that the future depends on, in types that JSON and npz can hold."""
        state = {name: getattr(self.physics, name).copy() for name in _STATE}
        scene = {"xyz": self.scene.xyz.copy(), "target": self.scene.target.copy()}
        rngs = [{"keys": keys, "position": int(at)} for _, keys, at, *_ in (rng.get_state() for rng in self.rngs)]
        return {**state, **scene, "timer": self.timer.copy(), "distance": self.distance.copy(), "rngs": rngs}

    def restore(self, state: dict[str, Any]) -> None:
        """Go where ``snapshot`` was taken. Raises ``UserError`` when it is of another task or number of worlds."""
        if np.shape(state["qpos"]) != self.physics.qpos.shape or np.shape(state["xyz"]) != self.scene.xyz.shape:
            raise UserError(f"the saved state is not one of {self.envs} worlds of {self.task.name}.")
        for name in _STATE:
            getattr(self.physics, name)[...] = state[name]
        self.scene.xyz[...], self.scene.target[...] = state["xyz"], state["target"]
        self.timer[...], self.distance = state["timer"], np.array(state["distance"])
        for rng, saved in zip(self.rngs, state["rngs"]):
            rng.set_state(("MT19937", np.asarray(saved["keys"], np.uint32), int(saved["position"]), 0, 0.0))
        for env in range(self.envs):
            self.physics.settle(env)
        self.refresh()
