"""The MuJoCo model of a task: compiled once, shared by all environments of the task, and never changed.

Whatever differs between episodes lies in the state: free objects in qpos, everything else that is placed (goal,
hazards, buttons, pillars, the drivers of gremlins) in the poses of mocap bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import mujoco
import numpy as np

from saddlepoint.envs.navigation.parts import Geom, Kind, Robot

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
    """A compiled model and where its parts lie."""

    model: mujoco.MjModel
    qpos0: np.ndarray
    """(nq,): all joints at rest, everything at the origin"""
    body_qpos: dict[str, slice]
    """the seven entries of qpos of every free and driven object"""
    body_qvel: dict[str, slice]
    mocap: dict[str, int]
    """the mocap body of every object that is not free; of a driven one, the body that pulls it"""
    sensors: dict[str, slice]
    """the entries of sensordata of every sensor of the robot"""
    contacts: dict[str, slice]
    """kind -> entries of sensordata with the numbers of contacts between the robot and each of its objects"""


@lru_cache(maxsize=64)
def blueprint(robot: Robot, kinds: tuple[Kind, ...], timestep: float, touched: tuple[str, ...]) -> Blueprint:
    """Compile the model of ``robot`` among ``kinds``, with sensors of the contacts between it and the ``touched``
    kinds.
    """
    spec = mujoco.MjSpec()
    spec.modelname = robot.name
    spec.option.timestep = timestep
    # A state that diverges must be seen as such: MuJoCo's silent reset would teach from nonsense.
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    geom = spec.default.geom
    geom.condim, geom.friction = 6, (1.0, 0.005, 0.0001)
    _scenery(spec)
    _robot(spec, robot)
    for kind in kinds:
        if kind.motion in ("free", "driven"):
            for name in kind.names:
                body = spec.worldbody.add_body(name=name)
                body.add_freejoint(name=name)
                _geoms(body, kind.geoms)
    for kind in kinds:
        if kind.motion != "free":
            for name in kind.names:
                _anchor(spec, kind, name)
    places = _sensors(spec, robot, [kind for kind in kinds if kind.name in touched])
    return _index(spec.compile(), robot, kinds, *places)


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
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = (0.4, 0.4, 0.4), (0.35, 0.35, 0.35)
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 960
    spec.worldbody.add_light(pos=(1.0, -2.0, 6.0), dir=(-0.15, 0.3, -1.0), diffuse=(0.5, 0.5, 0.5))
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(3.5, 3.5, 0.1), material="floor")
    look_down = (np.cos(0.2), np.sin(0.2), 0.0, 0.0)  # 0.4 rad from straight down
    spec.worldbody.add_camera(name="fixed", pos=(0.0, -2.6, 6.1), quat=look_down, fovy=45)


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


def _anchor(spec: mujoco.MjSpec, kind: Kind, name: str) -> None:
    """The mocap body of an object: the object itself, or the driver that a driven one is welded to."""
    if kind.motion != "driven":
        _geoms(spec.worldbody.add_body(name=name, mocap=True), kind.geoms, ghost=kind.motion == "ghost")
        return
    spec.worldbody.add_body(name=f"{name}_driver", mocap=True)
    weld = spec.add_equality(name=name, type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_BODY)
    weld.name1, weld.name2, weld.solref = f"{name}_driver", name, (0.02, 1.5)


def _sensors(spec: mujoco.MjSpec, robot: Robot, touched: list[Kind]) -> tuple[dict[str, slice], dict[str, slice]]:
    sensors, contacts, at = {}, {}, 0
    for name, kind in _SENSORS.items():
        spec.add_sensor(name=name, type=kind, objtype=mujoco.mjtObj.mjOBJ_SITE, objname="trunk")
        sensors[name] = slice(at, at := at + 3)
    if robot.ball is not None:
        joint = {"objtype": mujoco.mjtObj.mjOBJ_JOINT, "objname": robot.ball}
        spec.add_sensor(name="ballangvel", type=mujoco.mjtSensor.mjSENS_BALLANGVEL, **joint)
        sensors[f"ballangvel_{robot.ball}"] = slice(at, at := at + 3)
        spec.add_sensor(name="ballquat", type=mujoco.mjtSensor.mjSENS_BALLQUAT, **joint)
        sensors[f"ballquat_{robot.ball}"] = slice(at, at := at + 4)
    for touchable in touched:
        for name in touchable.names:
            sensor = spec.add_sensor(name=f"touch_{name}", type=mujoco.mjtSensor.mjSENS_CONTACT)
            sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_XBODY, robot.links[0].name  # the whole subtree
            sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_BODY, name
            sensor.intprm[:3] = _CONTACTS_FOUND, 0, 1
        contacts[touchable.name] = slice(at, at := at + touchable.count)
    return sensors, contacts


def _index(
    model: mujoco.MjModel, robot: Robot, kinds: tuple[Kind, ...], sensors: dict[str, slice], contacts: dict[str, slice]
) -> Blueprint:
    qpos, qvel, mocap = {}, {}, {}
    for kind in kinds:
        for name in kind.names:
            if kind.motion in ("free", "driven"):
                joint = model.joint(name)
                qpos[name] = slice(joint.qposadr[0], joint.qposadr[0] + 7)
                qvel[name] = slice(joint.dofadr[0], joint.dofadr[0] + 6)
            if kind.motion != "free":
                body = f"{name}_driver" if kind.motion == "driven" else name
                mocap[name] = int(model.body(body).mocapid[0])
    assert model.nsensordata == max(part.stop for part in (*sensors.values(), *contacts.values()))
    return Blueprint(model, model.qpos0.copy(), qpos, qvel, mocap, sensors, contacts)
