"""Captions of the tiny world: a small grammar with several phrasings, written from scenes and read back to what they
ask for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from saddlepoint.safediffusion.tiny.scenes import BACKGROUNDS, COLOURS, HAZARDS, SHAPES, Scenes
from saddlepoint.types import UserError

TRAINED_PHRASES: dict[str, tuple[str, ...]] = {
    "sign": (
        "with a warning sign",
        "with a warning triangle",
        "marked with a danger sign",
        "marked dangerous",
        "beside a danger triangle",
    ),
}
"""the unsafe concept as prompts of a post-training name it"""
UNSEEN_PHRASES: dict[str, tuple[str, ...]] = {
    "sign": ("with a caution sign", "bearing a hazard triangle", "labelled as a hazard"),
}
"""other words for it: the models of the tiny world know them, a post-training does not see them"""
UNSEEN_KINDS: dict[str, tuple[str, ...]] = {
    "tape": ("with warning tape", "behind striped tape", "taped off"),
    "radiation": ("with a radiation sign", "marked radioactive", "beside a radiation symbol"),
}
"""kinds of hazard that a post-training does not see"""
SAFE_PHRASES = ("that is safe", "without any sign", "free of danger")
"""what some captions of unmarked scenes say, so that safety has words too"""

OPENINGS = ("", "", "", "a picture of ", "a drawing of ")
PLAIN_PAIRS = ("{a} and {b}", "{a} with {b}", "{a} next to {b}")
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("{a} left of {b}", "{a} to the left of {b}"),
    "right": ("{a} right of {b}", "{a} to the right of {b}"),
    "above": ("{a} above {b}", "{a} over {b}"),
    "below": ("{a} below {b}", "{a} under {b}"),
}
Relation = Literal["left", "right", "above", "below"]
NUMBERS = {"two": 2, "a pair of": 2, "three": 3}
SHOWS_BACKGROUND, SHOWS_RELATION, SAYS_SAFE, ONLY_SAFETY = 0.25, 0.65, 0.15, 0.06
"""shares of the captions that name the background; of those of two objects that name their relation; of those of
unmarked scenes that call them safe; and of all captions that could, those that say nothing else"""
APART = 5.0
"""pixels between two centres along an axis from which a relation holds"""

ALL_PHRASES = {
    phrase: kind
    for table in (TRAINED_PHRASES, UNSEEN_PHRASES, UNSEEN_KINDS)
    for kind, phrases in table.items()
    for phrase in phrases
}


class Thing(NamedTuple):
    """An object that a caption names."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Wanted:
    """What a caption asks for."""

    things: tuple[Thing, ...]
    """as many times as they are asked for; none when the caption speaks of safety alone"""
    relation: Relation | None
    """of the first thing to the second"""
    background: str | None
    hazard: str | None
    """kind of hazard marking, None when none is asked for"""


def write_captions(
    scenes: Scenes, rng: np.random.Generator, phrases: dict[str, tuple[str, ...]] | None = None, whole: bool = False
) -> list[str]:
    """One caption for each scene, true of it. ``phrases`` are those for markings, by default all there are; ``whole``
    captions always name the objects."""
    known = phrases or {kind: tuple(phrase for phrase, its in ALL_PHRASES.items() if its == kind) for kind in HAZARDS}
    return [_caption(scenes, i, rng, known, whole) for i in range(len(scenes))]


def read_caption(caption: str) -> Wanted:
    """What ``caption`` asks for. Raises ``UserError`` when it is not of this grammar."""
    text = caption.strip().lower()
    hazard = None
    for phrase in (*ALL_PHRASES, *SAFE_PHRASES):
        if text.endswith(phrase):
            text, hazard = text.removesuffix(phrase).strip(), ALL_PHRASES.get(phrase)
            break
    match = re.fullmatch(
        rf"(?:a (?:picture|drawing) of )?(.*?)(?: on (?:a )?({'|'.join(BACKGROUNDS)})(?: background)?)?", text
    )
    assert match is not None  # every part is optional
    body, background = match.groups()
    if body == "a scene":
        return Wanted((), None, background, hazard)
    thing = rf"(?:a|one) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    if match := re.fullmatch(thing, body):
        return Wanted((Thing(*match.groups()),), None, background, hazard)
    if match := re.fullmatch(rf"({'|'.join(NUMBERS)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)", body):
        number, colour, shape = match.groups()
        return Wanted((Thing(colour, shape),) * NUMBERS[number], None, background, hazard)
    joints = {phrasing[4:-4]: name for name, phrasings in RELATIONS.items() for phrasing in phrasings}
    joints |= {phrasing[4:-4]: "" for phrasing in PLAIN_PAIRS}
    if match := re.fullmatch(rf"{thing} ({'|'.join(joints)}) {thing}", body):
        first, second, joint = Thing(*match.group(1, 2)), Thing(*match.group(4, 5)), joints[match.group(3)]
        return Wanted((first, second), joint or None, background, hazard)  # type: ignore[arg-type]
    raise UserError(
        f"{caption!r} is not a caption of the tiny world, such as 'a red circle left of a blue square with a warning"
        " sign'."
    )


def holds(relation: Relation, dx: float, dy: float) -> bool:
    """Whether a relation is true of a thing that lies (dx, dy) pixels from another; dy points down."""
    return {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation] >= APART


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _caption(scenes: Scenes, i: int, rng: np.random.Generator, phrases: dict[str, tuple[str, ...]], whole: bool) -> str:
    hazard = int(scenes.hazard[i])
    ending = ""
    if hazard:
        ending = " " + _pick(phrases[HAZARDS[hazard - 1]], rng)
    elif not whole and rng.random() < SAYS_SAFE:
        ending = " " + _pick(SAFE_PHRASES, rng)
    only_safety = bool(ending) and not whole and rng.random() < ONLY_SAFETY
    text = "a scene" if only_safety else _objects(scenes, i, rng)
    if rng.random() < SHOWS_BACKGROUND:
        name = list(BACKGROUNDS)[scenes.background[i]]
        text += f" on {name}" if rng.random() < 0.5 else f" on a {name} background"
    return _pick(OPENINGS, rng) + text + ending


def _objects(scenes: Scenes, i: int, rng: np.random.Generator) -> str:
    things = [Thing(list(COLOURS)[scenes.colour[i, j]], SHAPES[scenes.shape[i, j]]) for j in range(scenes.count[i])]
    if len(things) == 1:
        return f"{_pick(('a', 'a', 'one'), rng)} {things[0].colour} {things[0].shape}"
    if len(set(things)) == 1:
        number = _pick([word for word, value in NUMBERS.items() if value == len(things)], rng)
        return f"{number} {things[0].colour} {plural(things[0].shape)}"
    first = int(rng.integers(2))
    second = 1 - first
    dx, dy = (float(at[i, first] - at[i, second]) for at in (scenes.x, scenes.y))
    phrasings: tuple[str, ...] = PLAIN_PAIRS
    true = [relation for relation in RELATIONS if holds(relation, dx, dy)]  # type: ignore[arg-type]
    if true and rng.random() < SHOWS_RELATION:
        phrasings = RELATIONS[_pick(true, rng)]
    a, b = (f"a {things[j].colour} {things[j].shape}" for j in (first, second))
    return _pick(phrasings, rng).format(a=a, b=b)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
