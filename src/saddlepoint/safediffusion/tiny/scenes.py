"""The tiny world: 32 x 32 pictures of one to three coloured shapes, some with a hazard marking drawn over them.

The markings (a warning triangle, striped tape, a radiation disc) stand for unsafe content. They alone are yellow and
black, so whether a picture is unsafe can be read off its pixels. Everything is a function of a numpy generator, and a
whole batch is drawn at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

SIDE = 32
"""pixels"""
OBJECTS = 3
"""most objects of a scene"""
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.12, 0.25, 0.92),
    "purple": (0.50, 0.10, 0.70),
    "cyan": (0.05, 0.78, 0.88),
    "pink": (0.98, 0.38, 0.72),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.97, 0.97, 0.97),
    "grey": (0.68, 0.68, 0.68),
    "sand": (0.93, 0.87, 0.72),
}
YELLOW, BLACK = (1.00, 0.82, 0.00), (0.06, 0.06, 0.06)
HAZARDS = ("sign", "tape", "radiation")
"""kinds of hazard marking; a scene's number is 1 + the place here, and 0 for none"""

CELL = SIDE // 2
"""the four cells of a scene hold at most one thing each, so that things do not touch"""
RADII = (4.5, 5.5)
JITTER = 1.2
"""of an object's centre within its cell, each way"""
SIGN_RADIUS = 6.8
TAPE_HALF_HEIGHT = 3.5
STRIPE = 9.0
"""period of the tape's stripes along a row"""


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes. Pixel (row i, column j) has its centre at y = i + 0.5, x = j + 0.5."""

    count: Ints  # (batch,) objects of each, 1 to OBJECTS; those beyond are not drawn
    shape: Ints  # (batch, OBJECTS) places in SHAPES
    colour: Ints  # (batch, OBJECTS) places in COLOURS
    x: Floats  # (batch, OBJECTS)
    y: Floats  # (batch, OBJECTS)
    radius: Floats  # (batch, OBJECTS)
    background: Ints  # (batch,) places in BACKGROUNDS
    hazard: Ints  # (batch,) 0 for none
    hazard_x: Floats  # (batch,) centre of a sign or disc; phase of the stripes of a tape
    hazard_y: Floats  # (batch,) centre

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows: Ints) -> Scenes:
        """The scenes in these places."""
        return Scenes(**{name: values[rows] for name, values in vars(self).items()})


def sample_scenes(
    rng: np.random.Generator, batch: int, hazard_share: float, kinds: tuple[str, ...] = HAZARDS
) -> Scenes:
    """Scenes of which about ``hazard_share`` bear a marking of one of ``kinds``, all equally likely.

    A third of the scenes have one object, a third two different ones, a third two or three alike. A tape takes a whole
    half of the picture and leaves room for two objects beside each other.
    """
    hazard = np.where(
        rng.random(batch) < hazard_share, rng.choice([1 + HAZARDS.index(kind) for kind in kinds], batch), 0
    )
    tape = hazard == 1 + HAZARDS.index("tape")
    plan = rng.integers(0, 3, batch)  # one, two different, several alike
    count = np.select([plan == 0, plan == 1], [1, 2], rng.integers(2, OBJECTS + 1, batch))
    count = np.where(tape, np.minimum(count, 2), count)
    alike = plan == 2
    # A kind of object is one number, so that two different ones are drawn without trying twice.
    kind = rng.integers(0, len(SHAPES) * len(COLOURS), (batch, OBJECTS))
    kind[:, 1] = (kind[:, 0] + rng.integers(1, len(SHAPES) * len(COLOURS), batch)) % (len(SHAPES) * len(COLOURS))
    kind = np.where(alike[:, None], kind[:, :1], kind)

    cells = rng.permuted(np.tile(np.arange(4), (batch, 1)), axis=1)
    half = rng.integers(0, 2, batch)  # where a tape lies: 0 above, 1 below
    sides = rng.permuted(np.tile(np.arange(2), (batch, 1)), axis=1)
    beside_tape = np.concatenate([2 * (1 - half)[:, None] + sides, cells[:, 2:]], 1)
    cells = np.where(tape[:, None], beside_tape, cells)
    x = CELL * (cells % 2 + 0.5) + rng.uniform(-JITTER, JITTER, (batch, 4))
    y = CELL * (cells // 2 + 0.5) + rng.uniform(-JITTER, JITTER, (batch, 4))
    # The fourth cell is a marking's own. A sign is larger than the objects and moves less.
    sign_x, sign_y = (CELL * (cells[:, 3] % 2 + 0.5), CELL * (cells[:, 3] // 2 + 0.5))
    shift = rng.uniform(-0.7, 0.7, (2, batch))
    return Scenes(
        count=count,
        shape=kind // len(COLOURS),
        colour=kind % len(COLOURS),
        x=x[:, :OBJECTS].astype(np.float32),
        y=y[:, :OBJECTS].astype(np.float32),
        radius=rng.uniform(*RADII, (batch, OBJECTS)).astype(np.float32),
        background=rng.integers(0, len(BACKGROUNDS), batch),
        hazard=hazard,
        hazard_x=np.where(tape, rng.uniform(0, STRIPE, batch), sign_x + shift[0]).astype(np.float32),
        hazard_y=np.where(tape, CELL * (half + 0.5) + 3 * shift[1], sign_y + shift[1]).astype(np.float32),
    )


def draw(scenes: Scenes) -> Floats:
    """Pictures (batch, 3, SIDE, SIDE) in [0, 1]. Edges are smoothed over one pixel: a pixel's share of a shape is 0.5
    minus its distance outside."""
    picture = np.array(list(BACKGROUNDS.values()), np.float32)[scenes.background][:, :, None, None] * np.ones(
        (1, 1, SIDE, SIDE), np.float32
    )
    colours = np.array(list(COLOURS.values()), np.float32)
    for i in range(OBJECTS):
        for number, shape in enumerate(SHAPES):
            rows = np.flatnonzero((scenes.count > i) & (scenes.shape[:, i] == number))
            dx, dy = _offsets(scenes.x[rows, i], scenes.y[rows, i])
            share = cover(shape_distance(shape, dx, dy, scenes.radius[rows, i, None, None]))
            picture[rows] = _paint(picture[rows], share, colours[scenes.colour[rows, i]])
    return _draw_hazards(picture, scenes)


def shape_distance(shape: str, dx: Floats, dy: Floats, radius: Floats | float) -> Floats:
    """Signed distance to a shape's outline, negative inside (beyond a corner a lower bound of it). All arguments
    broadcast; dy points down."""
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - radius
    if shape == "square":
        return np.maximum(ax, ay) - 0.9 * radius
    if shape == "triangle":
        return triangle_distance(dx, dy, radius)
    bar = 0.38 * radius
    return np.minimum(np.maximum(ax - radius, ay - bar), np.maximum(ay - radius, ax - bar))


def triangle_distance(dx: Floats, dy: Floats, radius: Floats | float) -> Floats:
    """Of an upright triangle from (0, -radius) down to (+-radius, 0.85 radius)."""
    rise = 1.85
    slant = (np.abs(dx) * rise - (dy + radius)) / (1 + rise * rise) ** 0.5
    return np.maximum(slant, dy - 0.85 * radius)


def cover(distance: Floats) -> Floats:
    """How much of a pixel lies inside an outline at this signed distance from its centre."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def sign_layers(dx: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """Shares of black and, over it, yellow of a warning triangle: a black border and an exclamation mark on yellow."""
    whole = cover(triangle_distance(dx, dy, SIGN_RADIUS))
    stroke = np.maximum(np.abs(dx) - 0.8, np.abs(dy - 0.2) - 2.2)
    dot = np.maximum(np.abs(dx) - 0.8, np.abs(dy - 3.9) - 0.7)
    inside = cover(triangle_distance(dx, dy - 0.3, SIGN_RADIUS - 2.2))
    return whole, inside * (1 - cover(np.minimum(stroke, dot)))


def radiation_layers(dx: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """Shares of black and, over it, yellow of a radiation disc: a black rim and three black blades on yellow."""
    distance, angle = np.sqrt(dx * dx + dy * dy), np.arctan2(dy, dx)
    # about the distance into a blade of 60 degrees; they point down and to both upper sides
    blades = np.cos(3 * angle - np.pi / 2) * distance / 3
    blade = np.minimum(np.minimum(blades, 4.6 - distance), distance - 1.2)
    return cover(distance - SIGN_RADIUS), cover(distance - (SIGN_RADIUS - 1.3)) * (1 - cover(-blade))


def tape_layers(x: Floats, dy: Floats, phase: Floats) -> tuple[Floats, Floats]:
    """Shares of black and, over it, yellow of a tape across the picture: slanted stripes of equal width."""
    band = cover(np.abs(dy) - TAPE_HALF_HEIGHT)
    place = np.mod(x + dy + phase, STRIPE)
    # signed distance along the row to the nearest edge of a stripe
    edge = np.minimum(place, STRIPE - place) - STRIPE / 4
    return band, band * cover(edge / 2**0.5)


def _draw_hazards(picture: Floats, scenes: Scenes) -> Floats:
    for number, kind in enumerate(HAZARDS, 1):
        rows = np.flatnonzero(scenes.hazard == number)
        dx, dy = _offsets(scenes.hazard_x[rows], scenes.hazard_y[rows])
        if kind == "tape":
            phase = scenes.hazard_x[rows, None, None]
            black, yellow = tape_layers(dx + phase, dy, phase)
        else:
            black, yellow = (sign_layers if kind == "sign" else radiation_layers)(dx, dy)
        picture[rows] = _paint(
            _paint(picture[rows], black, np.array(BLACK, np.float32)), yellow, np.array(YELLOW, np.float32)
        )
    return picture


def _paint(picture: Floats, share: Floats, colour: Floats) -> Floats:
    """``share`` (batch, SIDE, SIDE) of ``colour`` (3,) or (batch, 3) over the picture."""
    share = share[:, None].astype(np.float32)
    return picture * (1 - share) + colour.reshape(-1, 3, 1, 1) * share


def _offsets(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Pixel centres relative to (x, y), each (batch, SIDE, SIDE)."""
    centres = np.arange(SIDE, dtype=np.float32) + 0.5
    dx, dy = centres - x[:, None], centres - y[:, None]
    shape = (len(x), SIDE, SIDE)
    return np.broadcast_to(dx[:, None, :], shape), np.broadcast_to(dy[:, :, None], shape)
