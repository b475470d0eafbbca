"""The kinds of objects of a navigation world, as data: goal, hazards, vases, buttons, gremlins, pillars, a box to push.

Lengths in metres. The numbers are those of Safety-Gymnasium 1.0.0; nothing here needs MuJoCo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saddlepoint.envs.navigation.robots import Geom
from saddlepoint.types import UserError


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

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"a kind needs at least one object, not {self.count} {self.name}: leave it out instead.")
        if self.locations is not None and len(self.locations) != self.count:
            raise UserError(f"{self.count} {self.name} need as many locations, not {len(self.locations)}.")

    @property
    def names(self) -> list[str]:
        """One name an object: the first of "hazards" is "hazard0", the only "goal" is "goal"."""
        if self.count == 1 and not self.name.endswith("s"):
            return [self.name]
        return [f"{self.name.removesuffix('s')}{i}" for i in range(self.count)]

    @property
    def radius(self) -> float:
        """Of a sphere about the object's origin that holds it."""
        return max(geom.radius for geom in self.geoms)


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
