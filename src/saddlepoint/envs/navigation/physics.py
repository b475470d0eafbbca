"""Ten substeps and a forward pass of many worlds: one world in its own ``MjData``, or all of them in threads.

Both forms give the same numbers. Every step begins with a cold solver, so that a world's future depends on nothing but
its positions, velocities, clock and drivers; that is what makes a snapshot small and exact.
"""

from __future__ import annotations

from typing import Protocol

import mujoco
import numpy as np
from mujoco.rollout import Rollout

from saddlepoint.envs.navigation.model import Blueprint, blueprint
from saddlepoint.envs.navigation.tasks import SUBSTEPS, Task
from saddlepoint.machine import cpus

_LIFT = np.array([0.0, 0.0, 0.1])  # m: drivers float above the homes that their objects start at
AT_REST = 1e-8  # m/s and rad/s; objects that have settled move at 1e-14
_MARGIN, _SPEED = 0.02, 2.0  # m, m/s: no robot here is faster, so nothing nearer than this can be reached in a step
_STATE = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)
_CONTROL = int(
    mujoco.mjtState.mjSTATE_CTRL | mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
)


class Physics(Protocol):
    """The state of ``envs`` worlds, to be read and written, and how it goes on."""

    blueprint: Blueprint
    clock: np.ndarray  # (envs,) s
    qpos: np.ndarray  # (envs, nq)
    qvel: np.ndarray  # (envs, nv)
    mocap_pos: np.ndarray  # (envs, nmocap, 3)
    mocap_quat: np.ndarray  # (envs, nmocap, 4)
    sensordata: np.ndarray  # (envs, nsensordata): of the end of the last step
    homes: np.ndarray  # (envs, drivers, 3): where the driven objects start

    def settle(self, env: int) -> None:
        """A forward pass without action, after the state of world ``env`` was written."""
        ...

    def advance(self, action: np.ndarray) -> None:
        """One step with ``action`` (envs, action) inside the bounds."""
        ...

    def load(self, env: int) -> mujoco.MjData:
        """Everything known of world ``env`` as MuJoCo has it, for a renderer."""
        ...


class Motion:
    """What both forms need to know of a task's moving objects."""

    def __init__(self, task: Task, plan: Blueprint) -> None:
        self.nq, self.nv = task.robot.coordinates
        self.timestep = float(plan.model.opt.timestep)
        self.travel = np.array([kind.travel for kind in task.kinds if kind.motion == "driven" for _ in kind.names])
        free = [kind for kind in task.kinds if kind.motion == "free" for _ in kind.names]
        reach = task.robot.radius + _MARGIN + _SPEED * task.step_seconds
        self.near = np.array([kind.radius + reach for kind in free]) ** 2

    def targets(self, clock: np.ndarray, homes: np.ndarray) -> np.ndarray:
        """Where the drivers are in each substep, (envs, substeps, drivers, 3): home + (r sin t, r cos t, 0.1)."""
        phase = clock[:, None] + self.timestep * np.arange(SUBSTEPS)
        turn = np.empty((len(clock), SUBSTEPS, 1, 3))
        turn[:, :, 0, 0], turn[:, :, 0, 1], turn[:, :, 0, 2] = np.sin(phase), np.cos(phase), 0.0
        return (homes + _LIFT)[:, None] + self.travel[:, None] * turn

    def undisturbed(self, clock: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """(envs,) bool: all free objects have come to rest and the robot can reach none of them in this step.

        They would stay where they are to within ``AT_REST`` times the step: such a world is stepped without their
        contacts, most of its cost, and they are held. What stands still at a reset has not come to rest yet.
        """
        still = (np.abs(qvel[:, self.nv :]).max(axis=1) < AT_REST) & (clock > 0.0)
        away = qpos[:, self.nq :].reshape(len(qpos), -1, 7)[:, :, :2] - qpos[:, None, :2]
        return still & (np.square(away).sum(axis=2) > self.near).all(axis=1)


class SinglePhysics:
    """One world, in its own ``MjData``."""

    def __init__(self, task: Task) -> None:
        self.blueprint = blueprint(task.robot, task.kinds, task.timestep or task.robot.timestep)
        self.motion = Motion(task, self.blueprint)
        self._data = data = mujoco.MjData(self.blueprint.model)
        self.clock = np.zeros(1)
        self.qpos, self.qvel, self.sensordata = data.qpos[None], data.qvel[None], data.sensordata[None]
        self.mocap_pos, self.mocap_quat = data.mocap_pos[None], data.mocap_quat[None]
        self.homes = np.zeros((1, self.blueprint.drivers, 3))

    def settle(self, env: int) -> None:
        self._data.ctrl[:] = 0.0
        self.load(env)

    def load(self, env: int) -> mujoco.MjData:
        self._data.time = self.clock[0]
        self._data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self.blueprint.model, self._data)
        return self._data

    def advance(self, action: np.ndarray) -> None:
        data, motion, model = self._data, self.motion, self.blueprint.model
        held = self.blueprint.rest and motion.undisturbed(self.clock, self.qpos, self.qvel)[0]
        if held:
            model, objects = self.blueprint.resting, data.qpos[motion.nq :].copy()
        data.ctrl[:] = action[0]
        data.qacc_warmstart[:] = 0.0
        if self.blueprint.drivers:
            drivers = data.mocap_pos[: self.blueprint.drivers]
            for target in motion.targets(self.clock, self.homes)[0]:
                drivers[:] = target
                mujoco.mj_step(model, data)
        else:
            mujoco.mj_step(model, data, nstep=SUBSTEPS)
        mujoco.mj_forward(model, data)
        if held:
            data.qpos[motion.nq :], data.qvel[motion.nv :] = objects, 0.0
        self.clock[0] = data.time


class ThreadedPhysics:
    """Many worlds, stepped by ``threads`` threads of MuJoCo's own."""

    def __init__(self, task: Task, envs: int, threads: int | None = None) -> None:
        self.blueprint = blueprint(task.robot, task.kinds, task.timestep or task.robot.timestep)
        self.motion = Motion(task, self.blueprint)
        model = self.blueprint.model
        workers = min(envs, threads if threads is not None else cpus())
        self._pool = Rollout(nthread=workers if workers > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(max(1, workers))]
        # Substeps 1 to 10 and an eleventh, whose beginning is the forward pass of the state they reach.
        self._state = np.zeros((envs, mujoco.mj_stateSize(model, _STATE)))
        self._states = np.zeros((envs, SUBSTEPS + 1, self._state.shape[1]))
        self._sensors = np.zeros((envs, SUBSTEPS + 1, model.nsensordata))
        self._control = np.zeros((envs, SUBSTEPS + 1, mujoco.mj_stateSize(model, _CONTROL)))
        self.clock = self._state[:, 0]
        self.qpos, self.qvel = self._state[:, 1 : 1 + model.nq], self._state[:, 1 + model.nq :]
        self.sensordata = self._sensors[:, -1]
        self.mocap_pos, self.mocap_quat = np.zeros((envs, model.nmocap, 3)), np.zeros((envs, model.nmocap, 4))
        self.mocap_quat[:, :, 0] = 1.0
        self.homes = np.zeros((envs, self.blueprint.drivers, 3))

    def settle(self, env: int) -> None:
        self._control[env, -1, : self.blueprint.model.nu] = 0.0
        self._sensors[env, -1] = self.load(env).sensordata

    def load(self, env: int) -> mujoco.MjData:
        model, data = self.blueprint.model, self._data[0]
        mujoco.mj_setState(model, data, self._state[env], _STATE)
        data.ctrl[:] = self._control[env, -1, : model.nu]
        data.mocap_pos[:], data.mocap_quat[:] = self.mocap_pos[env], self.mocap_quat[env]
        data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(model, data)
        return data

    def advance(self, action: np.ndarray) -> None:
        plan, motion, envs = self.blueprint, self.motion, len(action)
        held = motion.undisturbed(self.clock, self.qpos, self.qvel) if plan.rest else np.zeros(envs, bool)
        objects = self.qpos[held, motion.nq :]
        nu, nmocap = plan.model.nu, plan.model.nmocap
        self._control[:, :, :nu] = action[:, None]
        positions = self._control[:, :, nu : nu + 3 * nmocap]
        positions[:] = self.mocap_pos.reshape(envs, 1, -1)
        if plan.drivers:
            targets = motion.targets(self.clock, self.homes)
            positions[:, :-1, : 3 * plan.drivers] = targets.reshape(envs, SUBSTEPS, -1)
            positions[:, -1, : 3 * plan.drivers] = positions[:, -2, : 3 * plan.drivers]
            self.mocap_pos[:, : plan.drivers] = targets[:, -1]
        self._control[:, :, nu + 3 * nmocap :] = self.mocap_quat.reshape(envs, 1, -1)
        models = [plan.resting if rests else plan.model for rests in held]
        self._pool.rollout(
            models, self._data, self._state, self._control, control_spec=_CONTROL, skip_checks=True,
            nstep=SUBSTEPS + 1, state=self._states, sensordata=self._sensors,
        )  # fmt: skip
        self._state[:] = self._states[:, SUBSTEPS - 1]
        self.qpos[held, motion.nq :], self.qvel[held, motion.nv :] = objects, 0.0

    def close(self) -> None:
        self._pool.close()
