"""The recordings of Safety-Gymnasium's navigation tasks, and how to put one of their states into our worlds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from saddlepoint.envs.navigation import CATALOGUE
from saddlepoint.envs.navigation.physics import SinglePhysics
from saddlepoint.envs.navigation.robots import rotation_matrix
from saddlepoint.envs.navigation.worlds import Worlds
from tests.parity.fixtures import folder

PLACE = folder("navigation")
META = json.loads((PLACE / "navigation.json").read_text())
ARRAYS = np.load(PLACE / "navigation.npz", allow_pickle=False)
NAMES = list(META["envs"])
FLIPPED = {
    state: int(found["cost_mismatch"])
    for state, found in json.loads((PLACE / "tolerances.json").read_text())["hand_by_label_mujoco_4.0.0"].items()
}
"""how many steps from a hand-made state (label/robot) have another cost under MuJoCo 4.0.0 than under the recorded one"""


class Recorded:
    """One task of the recordings beside our own world of it."""

    def __init__(self, name: str) -> None:
        self.meta: dict[str, Any] = META["envs"][name]
        self.task = CATALOGUE[name]
        self.robot = self.task.robot.name
        self.worlds = Worlds(self.task, SinglePhysics(self.task))
        groups: dict[str, dict[str, np.ndarray]] = {}
        for key in ARRAYS.files:
            if key.startswith(f"{name}/"):
                _, group, array = key.split("/")
                groups.setdefault(group, {})[array] = ARRAYS[key]
        self.groups = groups
        self.layout = [row.removesuffix("obj") for row in self.meta["layout_names"]]
        self.objects = [one for kind in self.task.kinds for one in kind.names]
        self.bodies = {body.removesuffix("obj"): i for i, body in enumerate(self.meta["bodies"])}
        self.joints = {joint["name"].removesuffix("obj"): joint for joint in self.meta["joints"]}

    def part(self, observation: np.ndarray, name: str) -> np.ndarray:
        start, stop = next((part[1], part[2]) for part in self.meta["obs_layout"] if part[0] == name)
        return observation[..., start:stop]

    def put(self, state: dict[str, np.ndarray], reset: int, rng_seed: int | None = None) -> None:
        """Write a recorded state (without its ``before_``) whose fixed objects stand as in ``reset``."""
        worlds, physics, scene = self.worlds, self.worlds.physics, self.worlds.scene
        start, yaws = self.groups["reset"]["layout_xy"][reset], self.groups["reset"]["layout_rot"][reset]
        rows = dict(zip(self.layout, range(len(self.layout))))
        for i, name in enumerate(self.objects):
            scene.xyz[0, i, :2] = start[rows[name]]
            scene.xyz[0, i, 2] = next(kind.height for kind in self.task.kinds if name in kind.names)
        scene.xyz[0, self.objects.index("goal")] = state["goal_pos"]
        nq, nv = self.task.robot.coordinates
        qpos, qvel = physics.qpos[0], physics.qvel[0]
        if self.task.robot.planar:
            c, s = np.cos(yaws[0]), np.sin(yaws[0])
            turn = np.array([[c, -s], [s, c]])
            qpos[:2], qpos[2] = start[0] + turn @ state["qpos"][:2], yaws[0] + state["qpos"][2]
            qvel[:2], qvel[2] = turn @ state["qvel"][:2], state["qvel"][2]
        else:
            qpos[:nq], qvel[:nv] = state["qpos"][:nq], state["qvel"][:nv]
        movable = [self.objects[i] for i in physics.blueprint.movable]
        for i, name in enumerate(movable):
            joint = self.joints[name]
            qpos[nq + 7 * i : nq + 7 * i + 7] = state["qpos"][slice(*joint["qpos"])]
            qvel[nv + 6 * i : nv + 6 * i + 6] = state["qvel"][slice(*joint["qvel"])]
        turned = np.array([yaws[rows[self.objects[i]]] for i in physics.blueprint.anchored])
        physics.mocap_quat[0] = np.stack([np.cos(turned / 2), 0 * turned, 0 * turned, np.sin(turned / 2)], axis=1)
        physics.mocap_pos[0] = scene.xyz[0, physics.blueprint.anchored]
        drivers = physics.blueprint.drivers
        physics.homes[0] = scene.xyz[0, physics.blueprint.anchored[:drivers]]
        if drivers:
            physics.mocap_pos[0, :drivers] = physics.homes[0] + state["mocap_pos"]
        physics.clock[0] = state["time"]
        worlds.timer[0] = state["timer"]
        scene.target[0] = max(int(state["goal_button"]), 0)
        last = state["last_dist"]
        worlds.distance[0] = last[1] + last[2] if "Push" in self.task.name else last[0]
        if rng_seed is not None:
            worlds.rngs[0] = np.random.RandomState(rng_seed)
        physics.settle(0)
        worlds.refresh()

    def before(self, group: str, *index: Any) -> dict[str, np.ndarray]:
        return {k.removeprefix("before_"): v[index] for k, v in self.groups[group].items() if k.startswith("before_")}

    def motion(self) -> dict[str, np.ndarray]:
        """Our end state in the recordings' terms: positions, rotation and velocities of robot and objects."""
        physics, scene = self.worlds.physics, self.worlds.scene
        nq, nv = self.task.robot.coordinates
        moved = physics.blueprint.movable
        quats = physics.qpos[0, nq:].reshape(-1, 7)[:, 3:]
        return {
            "position": scene.agent[0], "rotation": scene.rotation[0], "qvel": physics.qvel[0, :nv].copy(),
            "objects": scene.xyz[0, moved], "turns": rotation_matrix(quats) if len(quats) else np.zeros((0, 3, 3)),
        }  # fmt: skip

    def recorded_motion(self, group: str, reset: int, *index: Any) -> dict[str, np.ndarray]:
        data = self.groups[group]
        xpos, xquat = data["body_xpos"][index], data["body_xquat"][index]
        nv = self.task.robot.coordinates[1]
        qvel = data["after_qvel"][index][:nv].copy()
        if self.task.robot.planar:
            yaw = self.groups["reset"]["layout_rot"][reset][0]
            c, s = np.cos(yaw), np.sin(yaw)
            qvel[:2] = np.array([[c, -s], [s, c]]) @ qvel[:2]
        rows = [self.bodies[self.objects[i]] for i in self.worlds.physics.blueprint.movable]
        agent = self.bodies["agent"]
        return {
            "position": xpos[agent], "rotation": rotation_matrix(xquat[agent]), "qvel": qvel,
            "objects": xpos[rows].reshape(-1, 3), "turns": rotation_matrix(xquat[rows].reshape(-1, 4)),
        }  # fmt: skip

    def costs(self, outcome: Any) -> np.ndarray:
        """Ours in the recordings' columns."""
        ours = {key: float(value[0]) for key, value in outcome.costs.items()}
        return np.array([{**ours, "cost_sum": float(outcome.cost[0])}[key] for key in self.meta["cost_keys"]])
