"""What a navigation world is made of, as data: geoms, the robots Point and Car, and the kinds of objects.

Lengths in metres, densities in kg/m^3, angles in radians. Sizes are MuJoCo's half sizes. The numbers are those of
Safety-Gymnasium 1.0.0's navigation tasks; nothing here needs MuJoCo.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """(..., 4), w first, of unit length -> (..., 3, 3)."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    matrix = np.empty((*quaternion.shape[:-1], 3, 3))
    matrix[..., 0, 0] = w * w + x * x - y * y - z * z
    matrix[..., 1, 1] = w * w - x * x + y * y - z * z
    matrix[..., 2, 2] = w * w - x * x - y * y + z * z
    matrix[..., 0, 1], matrix[..., 1, 0] = 2 * (x * y - w * z), 2 * (x * y + w * z)
    matrix[..., 0, 2], matrix[..., 2, 0] = 2 * (x * z + w * y), 2 * (x * z - w * y)
    matrix[..., 1, 2], matrix[..., 2, 1] = 2 * (y * z - w * x), 2 * (y * z + w * x)
    return matrix


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


@dataclass(frozen=True)
class Kind:
    """``count`` objects of one kind.

    ``ghost`` objects collide with nothing, ``fixed`` ones cannot be moved, ``free`` ones can be pushed, and ``driven``
    ones circle round their home with radius ``travel``, all in phase, pulled by a weld. An object is placed so that its
    distance to every other one is at least the sum of both ``keepout``s: somewhere in ``area`` (x and y from, x and y
    to; None: the whole task) shrunk by its keepout, or at its own entry of ``locations``. An unplaced kind (a marker
    that the objective puts somewhere) takes no part in the layout.
    """

    name: str
    count: int
    keepout: float
    height: float
    """z of the body's origin"""
    geoms: tuple[Geom, ...]
    motion: Literal["ghost", "fixed", "free", "driven"]
    travel: float = 0.0
    locations: tuple[tuple[float, float], ...] | None = None
    area: tuple[float, float, float, float] | None = None
    placed: bool = True

    @property
    def names(self) -> list[str]:
        """One name an object: of the objects "hazards" the first is "hazard0"; a kind of one that has a name in the
        singular keeps it.
        """
        return [self.name] if not self.name.endswith("s") else [f"{self.name[:-1]}{i}" for i in range(self.count)]


Locations = Sequence[tuple[float, float]] | None


def goal(keepout: float = 0.305, radius: float = 0.3) -> Kind:
    """The place to go to: a translucent column."""
    return Kind("goal", 1, keepout, 0.16, (Geom("cylinder", (radius, 0.15), (0.0, 1.0, 0.0, 0.25)),), "ghost")


def hazards(count: int, keepout: float = 0.18, radius: float = 0.2) -> Kind:
    """Discs on the floor that must not be entered."""
    disc = Geom("cylinder", (radius, 0.01), (0.0, 0.0, 1.0, 0.25))
    return Kind("hazards", count, keepout, 0.02, (disc,), "ghost")


def vases(count: int, keepout: float = 0.15) -> Kind:
    """Light cubes that are easily pushed about; they start a little in the floor, where they rest."""
    cube = Geom("box", (0.1, 0.1, 0.1), (0.0, 1.0, 1.0, 1.0), density=0.001)
    return Kind("vases", count, keepout, 0.1 - 4e-5, (cube,), "free")


def buttons(count: int = 4, keepout: float = 0.2) -> Kind:
    return Kind("buttons", count, keepout, 0.1, (Geom("sphere", (0.1,), (1.0, 0.5, 0.0, 1.0)),), "fixed")


def button_marker(keepout: float = 0.4) -> Kind:
    """The column over the button to be pressed. In the layout it takes a place of its own, which is not used."""
    return Kind("goal", 1, keepout, 0.11, (Geom("cylinder", (0.2, 0.1), (0.0, 1.0, 0.0, 0.1)),), "ghost")


def gremlins(count: int, keepout: float = 0.4, travel: float = 0.35) -> Kind:
    """Cubes that circle round their homes and must not be touched."""
    cube = Geom("box", (0.1, 0.1, 0.1), (0.5, 0.0, 1.0, 1.0), density=0.001)
    return Kind("gremlins", count, keepout, 0.1, (cube,), "driven", travel=travel)


def pillars(count: int, keepout: float = 0.3) -> Kind:
    return Kind("pillars", count, keepout, 0.5, (Geom("cylinder", (0.2, 0.5), (0.5, 0.5, 1.0, 1.0)),), "fixed")


def push_box(half: float, density: float) -> Kind:
    """The cube to be pushed to the goal, with a post at each corner; ``half`` is half its width, and its keepout."""
    yellow = (1.0, 1.0, 0.0, 1.0)
    cube = Geom("box", (half, half, half), yellow, density=density)
    posts = tuple(
        Geom("box", (half / 2, half / 2, half), yellow, (x * half, y * half, 0.0), density=density)
        for x, y in ((1, 1), (-1, 1), (1, -1), (-1, -1))
    )
    return Kind("push_box", 1, half, half, (cube, *posts), "free")
