"""Pictures of a world: MuJoCo's own renderer, with the lidar's readings drawn as rings above the robot."""

from __future__ import annotations

import atexit

import mujoco
import numpy as np

from saddlepoint.envs.navigation.lidar import TAU
from saddlepoint.envs.navigation.model import blueprint
from saddlepoint.envs.navigation.tasks import Task
from saddlepoint.envs.navigation.worlds import Worlds
from saddlepoint.types import UserError

CAMERAS = ("follow", "fixed")
_RING_RADIUS, _RING_HEIGHT, _RING_GAP, _DOT = 0.15, 0.35, 0.09, 0.025  # m


class Painter:
    """Draws the worlds of one task. Raises ``UserError`` where no picture can be drawn on this machine."""

    def __init__(self, task: Task, width: int, height: int) -> None:
        self._model = blueprint(task.robot, task.kinds, task.timestep or task.robot.timestep).model
        limits = self._model.vis.global_
        if not (0 < width <= limits.offwidth and 0 < height <= limits.offheight):
            raise UserError(f"a picture can have at most {limits.offwidth} x {limits.offheight} pixels.")
        try:
            self._renderer = mujoco.Renderer(self._model, height, width)
        except (RuntimeError, AttributeError, ImportError, mujoco.FatalError) as error:
            raise UserError(f"MuJoCo cannot draw here ({error}): set MUJOCO_GL=egl or osmesa.") from error
        # Not left to the interpreter's end, when the library underneath is gone already and complains.
        atexit.register(self._renderer.close)
        self._colours = [kind.geoms[0].rgba for name in task.lidars for kind in task.kinds if kind.name == name]

    def paint(self, worlds: Worlds, env: int, camera: str) -> np.ndarray:
        """(height, width, 3) uint8: world ``env`` as it is now."""
        self._renderer.update_scene(worlds.physics.load(env), camera=camera)
        self._draw_lidar(worlds, env)
        return self._renderer.render().copy()

    def _draw_lidar(self, worlds: Worlds, env: int) -> None:
        """One ring of dots a kind, in its colour, the more solid the higher the reading."""
        scene = self._renderer.scene
        agent, rotation = worlds.scene.agent[env], worlds.scene.rotation[env]
        for ring, (readings, colour) in enumerate(zip(worlds.readings[env], self._colours)):
            for i, reading in enumerate(readings):
                if scene.ngeom >= scene.maxgeom:
                    return
                angle = (i + 0.5) * TAU / len(readings)
                out = rotation @ (_RING_RADIUS * np.array([np.cos(angle), np.sin(angle), 0.0]))
                centre = agent + out + (0.0, 0.0, _RING_HEIGHT + ring * _RING_GAP)
                rgba = np.array([*colour[:3], 0.1 + 0.9 * reading], np.float32)
                mujoco.mjv_initGeom(
                    scene.geoms[scene.ngeom], mujoco.mjtGeom.mjGEOM_SPHERE, np.full(3, _DOT), centre, np.eye(3).ravel(),
                    rgba,
                )  # fmt: skip
                scene.geoms[scene.ngeom].category = mujoco.mjtCatBit.mjCAT_DECOR  # casts no shadow
                scene.ngeom += 1

    def close(self) -> None:
        atexit.unregister(self._renderer.close)
        self._renderer.close()
