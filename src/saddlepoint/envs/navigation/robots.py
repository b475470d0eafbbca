"""The robots Point and Car, as data.

Lengths in metres, densities in kg/m^3, angles in radians. Sizes are MuJoCo's half sizes. The numbers are those of
Safety-Gymnasium 1.0.0; nothing here needs MuJoCo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Colour = tuple[float, float, float, float]
Vector = tuple[float, float, float]

RED: Colour = (0.7412, 0.0431, 0.1843, 1.0)
NAVY: Colour = (0.0039, 0.1529, 0.3961, 1.0)
ALONG_X = (np.sqrt(0.5), 0.0, np.sqrt(0.5), 0.0)  # the quaternion that lays a cylinder along x


@dataclass(frozen=True)
class Geom:
    """One shape of a body."""

    shape: Literal["box", "cylinder", "sphere"]
    size: tuple[float, ...]
    rgba: Colour
    pos: Vector = (0.0, 0.0, 0.0)
    quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    density: float = 1.0
    friction: Vector = (1.0, 0.005, 0.0001)

    @property
    def radius(self) -> float:
        """Of a sphere about the body's origin that holds the shape."""
        if self.shape == "box" and self.quat[0] == 1.0:
            return float(np.linalg.norm(np.abs(self.pos) + self.size))
        return float(np.linalg.norm(self.pos) + (self.size[0] if self.shape == "sphere" else np.linalg.norm(self.size)))


@dataclass(frozen=True)
class Joint:
    name: str
    kind: Literal["free", "slide", "hinge", "ball"]
    axis: Vector = (0.0, 0.0, 1.0)
    damping: float = 0.0


@dataclass(frozen=True)
class Link:
    """A body of a robot; the first link of a robot carries the others."""

    name: str
    pos: Vector
    joints: tuple[Joint, ...]
    geoms: tuple[Geom, ...]


@dataclass(frozen=True)
class Motor:
    """force = gear * clip(action - damping * gear * velocity, +-limit): on a joint, or along the trunk's x axis where
    ``joint`` is None. N or N m.
    """

    joint: str | None
    gear: float
    limit: float
    damping: float = 0.0


@dataclass(frozen=True)
class Robot:
    """A robot: its links (the trunk first), its motors and its sensors beside the four that all robots have.

    ``planar`` robots move by three joints (x, y, yaw) in world coordinates at the height of the trunk; others by a free
    joint. ``ball`` names a ball joint whose angular velocity and orientation are observed.
    """

    name: str
    timestep: float
    links: tuple[Link, ...]
    motors: tuple[Motor, ...]
    planar: bool
    ball: str | None = None

    @property
    def height(self) -> float:
        return self.links[0].pos[2]

    @property
    def coordinates(self) -> tuple[int, int]:
        """Lengths of the robot's own part of qpos and of qvel."""
        sizes = {"free": (7, 6), "slide": (1, 1), "hinge": (1, 1), "ball": (4, 3)}
        joints = [sizes[joint.kind] for link in self.links for joint in link.joints]
        return sum(size[0] for size in joints), sum(size[1] for size in joints)

    @property
    def radius(self) -> float:
        """Of a sphere about the trunk's origin that holds the robot."""
        trunk = self.links[0]
        offsets = [0.0 if link is trunk else float(np.linalg.norm(link.pos)) for link in self.links]
        return max(offset + geom.radius for offset, link in zip(offsets, self.links) for geom in link.geoms)

    @property
    def sensors(self) -> dict[str, int]:
        """Names and lengths of the sensors in the observation."""
        common = {"accelerometer": 3, "velocimeter": 3, "gyro": 3, "magnetometer": 3}
        return common if self.ball is None else {**common, f"ballangvel_{self.ball}": 3, f"ballquat_{self.ball}": 9}

    def place(self, qpos: np.ndarray, x: float, y: float, yaw: float) -> None:
        """Write the pose at the start of an episode into the robot's own part of qpos; joints beyond the trunk's stay."""
        if self.planar:
            qpos[:3] = x, y, yaw
        else:
            qpos[:7] = x, y, self.height, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)

    def pose(self, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(envs, nq) -> position (envs, 3) and rotation, body to world, (envs, 3, 3), of the trunk."""
        if not self.planar:
            return qpos[:, :3], rotation_matrix(qpos[:, 3:7])
        position = np.empty((len(qpos), 3))
        position[:, :2], position[:, 2] = qpos[:, :2], self.height
        rotation = np.zeros((len(qpos), 3, 3))
        rotation[:, 0, 0] = rotation[:, 1, 1] = np.cos(qpos[:, 2])
        rotation[:, 1, 0] = np.sin(qpos[:, 2])
        rotation[:, 0, 1] = -rotation[:, 1, 0]
        rotation[:, 2, 2] = 1.0
        return position, rotation


# Entry by entry of the matrix, row by row: identity + first * q[i] q[j] + second * q[k] q[l].
_FACTORS = np.array([
    [2, 2, 3, 3], [1, 2, 0, 3], [1, 3, 0, 2],
    [1, 2, 0, 3], [1, 1, 3, 3], [2, 3, 0, 1],
    [1, 3, 0, 2], [2, 3, 0, 1], [1, 1, 2, 2],
]).T  # fmt: skip
_FIRST = np.array([-2.0, 2, 2, 2, -2, 2, 2, 2, -2])
_SECOND = np.array([-2.0, -2, 2, 2, -2, -2, -2, 2, -2])
_IDENTITY = np.eye(3).ravel()


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """(..., 4), w first, of unit length -> (..., 3, 3)."""
    a, b, c, d = (quaternion[..., factor] for factor in _FACTORS)
    return (_IDENTITY + _FIRST * a * b + _SECOND * c * d).reshape(*quaternion.shape[:-1], 3, 3)


POINT = Robot(
    name="Point",
    timestep=0.002,
    links=(
        Link(
            "agent", (0.0, 0.0, 0.1),
            (
                Joint("x", "slide", (1.0, 0.0, 0.0), 0.01),
                Joint("y", "slide", (0.0, 1.0, 0.0), 0.01),
                Joint("z", "hinge", (0.0, 0.0, 1.0), 0.005),
            ),
            (
                Geom("sphere", (0.1,), RED, friction=(1.0, 0.01, 0.01)),
                Geom("box", (0.05, 0.05, 0.05), NAVY, (0.1, 0.0, 0.0)),
            ),
        ),
    ),
    motors=(Motor(None, 0.3, 0.05), Motor("z", 0.3, 0.05, damping=1.0)),
    planar=True,
)  # fmt: skip


def _wheel(name: str, side: float) -> Link:
    tyre = Geom("cylinder", (0.05, 0.025), RED, (0.03 * side, 0.0, 0.0), ALONG_X, density=5.0)
    return Link(name, (0.1 * side, 0.1, -0.05), (Joint(name, "hinge", (1.0, 0.0, 0.0), 0.001),), (tyre,))


CAR = Robot(
    name="Car",
    timestep=0.004,
    links=(
        Link(
            "agent", (0.0, 0.0, 0.1), (Joint("agent", "free"),),
            (
                Geom("box", (0.1, 0.1, 0.05), RED, density=5.0),
                Geom("box", (0.1, 0.01, 0.05), NAVY, (0.0, 0.15, 0.0), density=5.0),
                Geom("box", (0.01, 0.025, 0.03), NAVY, (0.0, 0.125, 0.0), density=5.0),
                Geom("box", (0.05, 0.01, 0.05), NAVY, (0.0, -0.165, 0.0), density=5.0),
                Geom("box", (0.05, 0.03, 0.01), NAVY, (0.0, -0.13, 0.04), density=5.0),
            ),
        ),
        _wheel("left", -1.0),
        _wheel("right", 1.0),
        Link("rear", (0.0, -0.1, -0.05), (Joint("rear", "ball", damping=0.001),), (Geom("sphere", (0.05,), RED, density=5.0),)),
    ),
    motors=(Motor("left", 1.0, 0.02), Motor("right", 1.0, 0.02)),
    planar=False,
    ball="rear",
)  # fmt: skip
