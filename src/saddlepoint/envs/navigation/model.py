"""The MuJoCo model of a task: compiled once, shared by all environments of the task, and never changed.

Whatever differs between episodes lies in the state: free objects in qpos, everything else that is placed (goal,
hazards, buttons, pillars, the drivers of gremlins) in the poses of mocap bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import mujoco
import numpy as np

from saddlepoint.envs.navigation.objects import Kind
from saddlepoint.envs.navigation.robots import Geom, Robot
from saddlepoint.types import UserError

if not hasattr(mujoco, "mjtConDataField"):
    raise UserError(
        f"the navigation tasks need MuJoCo's contact sensors and {mujoco.__version__} has none: install mujoco 3.17,"
        " in a Python environment without saddlepoint[metaworld]."
    )

_SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
}
_JOINTS = {
    "free": mujoco.mjtJoint.mjJNT_FREE,
    "slide": mujoco.mjtJoint.mjJNT_SLIDE,
    "hinge": mujoco.mjtJoint.mjJNT_HINGE,
    "ball": mujoco.mjtJoint.mjJNT_BALL,
}
_SENSORS = {
    "accelerometer": mujoco.mjtSensor.mjSENS_ACCELEROMETER,
    "velocimeter": mujoco.mjtSensor.mjSENS_VELOCIMETER,
    "gyro": mujoco.mjtSensor.mjSENS_GYRO,
    "magnetometer": mujoco.mjtSensor.mjSENS_MAGNETOMETER,
}
_CONTACTS_FOUND = 1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND)


@dataclass(frozen=True)
class Blueprint:
    """A compiled model and where the objects lie in it. Object numbers are those of ``Scene``: kind after kind."""

    model: mujoco.MjModel
    resting: mujoco.MjModel
    """the same, but that free objects touch nothing"""
    qpos0: np.ndarray
    """(nq,): all joints at rest"""
    movable: np.ndarray
    """numbers of the free and driven objects: in this order they follow the robot in qpos (7 each) and qvel (6 each)"""
    anchored: np.ndarray
    """(nmocap,): the object that each mocap body is, or pulls; drivers come first"""
    drivers: int
    """number of mocap bodies that pull an object"""
    solid: np.ndarray
    """numbers of the objects that can be touched, in the order of the last entries of sensordata"""
    rest: bool
    """whether there are free objects and nothing but the robot could disturb them"""


@lru_cache(maxsize=64)
def blueprint(robot: Robot, kinds: tuple[Kind, ...], timestep: float) -> Blueprint:
    """Compile the model of ``robot`` among ``kinds``; ``timestep`` in s."""
    first = np.cumsum([0, *(kind.count for kind in kinds)])
    numbered = [(kind, np.arange(start, start + kind.count)) for kind, start in zip(kinds, first)]

    def numbers(*motions: str) -> np.ndarray:
        return np.array([i for kind, own in numbered if kind.motion in motions for i in own], np.int64)

    driven, free = numbers("driven"), numbers("free")
    model = _spec(robot, kinds, timestep, ghosts=("ghost",)).compile()
    return Blueprint(
        model=model,
        resting=_spec(robot, kinds, timestep, ghosts=("ghost", "free")).compile(),
        qpos0=model.qpos0.copy(),
        movable=numbers("free", "driven"),
        anchored=np.concatenate([driven, numbers("ghost", "fixed")]),
        drivers=len(driven),
        solid=numbers("fixed", "free", "driven"),
        rest=len(free) > 0 and len(driven) == 0,
    )


def _spec(robot: Robot, kinds: tuple[Kind, ...], timestep: float, ghosts: tuple[str, ...]) -> mujoco.MjSpec:
    """The model before it is compiled; kinds whose motion is among ``ghosts`` collide with nothing."""
    spec = mujoco.MjSpec()
    spec.modelname = robot.name
    spec.option.timestep = timestep
    # A state that diverges must be seen as such: MuJoCo's silent reset would teach from nonsense.
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    geom = spec.default.geom
    geom.condim, geom.friction = 6, (1.0, 0.005, 0.0001)
    _scenery(spec)
    _robot(spec, robot)
    objects = [(kind, name) for kind in kinds for name in kind.names]
    for kind, name in objects:
        if kind.motion in ("free", "driven"):
            body = spec.worldbody.add_body(name=name)
            body.add_freejoint(name=name)
            _geoms(body, kind.geoms, ghost=kind.motion in ghosts)
    for kind, name in objects:
        if kind.motion == "driven":
            _driver(spec, name)
    for kind, name in objects:
        if kind.motion in ("ghost", "fixed"):
            _geoms(spec.worldbody.add_body(name=name, mocap=True), kind.geoms, ghost=kind.motion in ghosts)
    _sensors(spec, robot, [name for kind, name in objects if kind.motion != "ghost"])
    return spec


def _scenery(spec: mujoco.MjSpec) -> None:
    """Floor, light, sky and the camera that stays where it is."""
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.85, 0.9, 0.95), rgb2=(0.55, 0.65, 0.75), width=32, height=192,
    )  # fmt: skip
    spec.add_texture(
        name="floor", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=(0.93, 0.93, 0.9), rgb2=(0.86, 0.86, 0.83), width=64, height=64,
    )  # fmt: skip
    textures = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
    textures[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = "floor"
    spec.add_material(name="floor", textures=textures, texrepeat=(7, 7))
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = (0.4, 0.4, 0.4), (0.3, 0.3, 0.3)
    quality = spec.visual.quality  # what halves the time of a picture where no graphics card draws it
    quality.shadowsize, quality.numslices, quality.numstacks = 1024, 16, 10
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 960
    spec.worldbody.add_light(pos=(1.0, -2.0, 6.0), dir=(-0.15, 0.3, -1.0), diffuse=(0.35, 0.35, 0.35))
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(3.5, 3.5, 0.1), material="floor")
    look_down = (np.cos(0.2), np.sin(0.2), 0.0, 0.0)  # 0.4 rad from straight down
    spec.worldbody.add_camera(name="fixed", pos=(0.0, -2.5, 5.8), quat=look_down, fovy=45)


def _robot(spec: mujoco.MjSpec, robot: Robot) -> None:
    trunk = None
    for link in robot.links:
        body = (trunk or spec.worldbody).add_body(name=link.name, pos=link.pos)
        for joint in link.joints:
            body.add_joint(name=joint.name, type=_JOINTS[joint.kind], axis=joint.axis, damping=(joint.damping, 0, 0))
        _geoms(body, link.geoms)
        trunk = trunk or body
    assert trunk is not None
    trunk.add_site(name="trunk")
    behind = (np.cos(0.45), np.sin(0.45), 0.0, 0.0)
    trunk.add_camera(
        name="follow", mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACK, pos=(0.0, -1.9, 1.7), quat=behind, fovy=50
    )
    if robot.planar:
        # The sphere touches the floor at distance exactly zero: rounding would decide whether it can move at all.
        spec.add_exclude(bodyname1="world", bodyname2=robot.links[0].name)
    for i, motor in enumerate(robot.motors):
        actuator = spec.add_actuator(name=f"motor{i}", forcelimited=True, forcerange=(-motor.limit, motor.limit))
        actuator.trntype = mujoco.mjtTrn.mjTRN_SITE if motor.joint is None else mujoco.mjtTrn.mjTRN_JOINT
        actuator.target = "trunk" if motor.joint is None else motor.joint
        actuator.gear = (motor.gear, 0, 0, 0, 0, 0)
        actuator.gainprm[0] = 1.0
        if motor.damping:
            actuator.biastype = mujoco.mjtBias.mjBIAS_AFFINE
            actuator.biasprm[2] = -motor.damping


def _geoms(body: mujoco.MjsBody, geoms: tuple[Geom, ...], ghost: bool = False) -> None:
    for geom in geoms:
        added = body.add_geom(
            type=_SHAPES[geom.shape], size=(*geom.size, 0.0, 0.0)[:3], pos=geom.pos, quat=geom.quat,
            density=geom.density, friction=geom.friction, rgba=geom.rgba,
        )  # fmt: skip
        if ghost:
            added.contype = added.conaffinity = 0


def _driver(spec: mujoco.MjSpec, name: str) -> None:
    """The mocap body that the object ``name`` is welded to."""
    spec.worldbody.add_body(name=f"{name}_driver", mocap=True)
    weld = spec.add_equality(name=name, type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_BODY)
    weld.name1, weld.name2, weld.solref = f"{name}_driver", name, (0.02, 1.5)
    weld.data[:] = 0.0  # the two poses agree:
    weld.data[[6, 10]] = 1.0  # no rotation between them; torque scale


def _sensors(spec: mujoco.MjSpec, robot: Robot, solids: list[str]) -> None:
    """In the order of ``Robot.sensors``, then the number of contacts between the robot and each of ``solids``."""
    for name, kind in _SENSORS.items():
        spec.add_sensor(name=name, type=kind, objtype=mujoco.mjtObj.mjOBJ_SITE, objname="trunk")
    if robot.ball is not None:
        for name, kind in (("vel", mujoco.mjtSensor.mjSENS_BALLANGVEL), ("quat", mujoco.mjtSensor.mjSENS_BALLQUAT)):
            spec.add_sensor(name=f"ball{name}", type=kind, objtype=mujoco.mjtObj.mjOBJ_JOINT, objname=robot.ball)
    for name in solids:
        sensor = spec.add_sensor(name=f"touch_{name}", type=mujoco.mjtSensor.mjSENS_CONTACT)
        sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_XBODY, robot.links[0].name  # with all bodies it carries
        sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_BODY, name
        sensor.intprm[:3] = _CONTACTS_FOUND, 0, 1
