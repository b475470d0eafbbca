"""A colour for each method that depends on its name, so that it stays when another method joins."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from zlib import crc32

COLOURS = 10
KNOWN = {"algd": 0, "sac-lag": 1, "cal": 2, "sac-pid": 3, "sac": 4, "mbdpo": 5}
"""systems of this library and the colours kept for them"""
FREE = tuple(slot for slot in range(COLOURS) if slot not in KNOWN.values())


def styles(labels: Iterable[str]) -> dict[str, int]:
    """The number of each label's colour, below ``COLOURS``; from there on the same colours with dashes.

    A system's own name always has the colour kept for it, and so has the first of its variants ("algd energy=...")
    where there is no plain one. Other names start from a hash of the name and take the next colour that is free.
    """
    found: dict[str, int] = {}
    ordered = sorted(dict.fromkeys(labels), key=lambda label: (label not in KNOWN, label))
    for label in ordered:
        kept = KNOWN.get(label.split(" ")[0])
        if kept is not None and kept not in found.values():
            found[label] = kept
        else:
            found[label] = _next(label, set(found.values()))
    return found


def swatch(label: str, style: int) -> str:
    """A label with the colour of its lines."""
    return f'<span class="swatch {colour(style)}"></span>{escape(label)}'


def colour(style: int) -> str:
    """The classes of a style: its colour, and dashes beyond the last."""
    return f"s{style % COLOURS}{' dashed' * (style >= COLOURS)}"


def _next(label: str, taken: set[int]) -> int:
    start = crc32(label.encode())
    for slots in (FREE, range(COLOURS)):
        for i in range(len(slots)):
            slot = slots[(start + i) % len(slots)]
            if slot not in taken:
                return slot
    return max(taken) + 1
