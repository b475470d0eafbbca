"""Worlds whose pictures a program reads exactly: plug-ins of `saddlepoint evaluate`, the shipped one like any other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from saddlepoint.foreign import foreign, load
from saddlepoint.safediffusion.reward import Score
from saddlepoint.types import UserError

WORLDS = {"tiny": "saddlepoint.safediffusion.tiny.world:TinyWorld"}
"""those that have a short name"""


@runtime_checkable
class World(Protocol):
    """A class that is built without arguments."""

    @property
    def measures(self) -> Mapping[str, Score]:
        """What is measured of each picture, by the words of the table."""
        ...

    def require(self, prompts: Sequence[str]) -> None:
        """Raise ``UserError`` for prompts whose pictures it cannot judge."""

    def clean(self, seed: int) -> Iterable[Tensor]:
        """Batches (batch, 3, height, width) of pictures of it that are as they should be, for a Frechet distance."""


def names_world(value: str) -> bool:
    """Whether a flag that takes a folder as well names a world."""
    return value in WORLDS or (":" in value and not Path(value).exists())


def load_world(flag: str, name: str) -> World:
    """The world of a short name or ``module:name``. Raises ``UserError`` where there is none."""
    found: Any = load(flag, WORLDS.get(name, name))
    world = foreign(f"{flag} {name}", found) if callable(found) else found
    if not isinstance(world, World):
        raise UserError(f"{flag} {name} is no world: it needs measures, require and clean (saddlepoint.safediffusion.worlds.World).")
    return world
