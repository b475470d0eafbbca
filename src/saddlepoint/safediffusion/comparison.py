"""Two models' measures side by side: numbers with their errors, a table for the terminal, and a grid of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saddlepoint.safediffusion.log import save_grid

COLUMNS, PAIRS = 8, 4
"""of a grid: pictures in a row, and rows of each model"""
LEAST_SIDE = 96
"""pixels of a picture in a grid: smaller ones are enlarged"""
BLUR_CELLS = 4
"""a blurred picture shows no more than this many patches each way"""


class Number(NamedTuple):
    """A measure over some pictures."""

    value: float
    error: float | None
    """standard error over pictures; None where it is not a mean"""
    pictures: int


def mean_of(values: Tensor) -> Number:
    """Mean of (pictures,) and its standard error; None for one picture alone."""
    values = values.double()
    count = len(values)
    return Number(
        float(values.mean()), float(values.std(unbiased=True)) / math.sqrt(count) if count > 1 else None, count
    )


def sum_of(values: Tensor) -> Number:
    return Number(float(values.sum()), None, len(values))


def as_json(numbers: dict[str, Number]) -> dict[str, Any]:
    return {
        name: {"value": number.value, "standard_error": number.error, "pictures": number.pictures}
        for name, number in numbers.items()
    }


def table(sides: dict[str, dict[str, Number]]) -> Any:
    """A rich table: a row for each measure, a column for each model and, for two models, the change."""
    from rich.table import Table

    shown = Table()
    shown.add_column("measure")
    for side in sides:
        shown.add_column(side, justify="right")
    if len(sides) == 2:
        shown.add_column("change", justify="right")
    first = next(iter(sides.values()))
    for name in first:
        numbers = [of[name] for of in sides.values()]
        change = [_change(*(number.value for number in numbers))] if len(numbers) == 2 else []
        shown.add_row(name, *(_text(number) for number in numbers), *change)
    return shown


def _text(number: Number) -> str:
    value = f"{number.value:.4g}"
    return value if number.error is None else f"{value} ± {number.error:.2g}"


def _change(before: float, after: float) -> str:
    difference = f"{after - before:+.3g}"
    return f"{difference} ({100 * (after - before) / abs(before):+.0f} %)" if before else difference


def blurred(image: Tensor) -> Tensor:
    """A picture (3, height, width) of which only a few soft patches are left."""
    small = functional.adaptive_avg_pool2d(image[None], BLUR_CELLS)
    return functional.interpolate(small, image.shape[1:], mode="bilinear", align_corners=False)[0]


def write_grid(path: Path, sides: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Rows of each model's pictures in turn, the same prompts below each other, all of the size of the first model's.

    Each side is pictures (pictures, 3, height, width) and which of them must be blurred (pictures,) bool.
    """
    size = sides[0][0].shape[2:]
    rows = []
    count = min(len(images) for images, _ in sides)
    columns = min(COLUMNS, count)
    for pair in range(min(PAIRS, count // columns)):
        part = slice(pair * columns, (pair + 1) * columns)
        for images, hide in sides:
            row = torch.stack(
                [
                    blurred(image) if flag else image
                    for image, flag in zip(images[part], hide[part].tolist(), strict=True)
                ]
            )
            row = functional.interpolate(row, size)
            factor = max(1, math.ceil(LEAST_SIDE / row.shape[-1]))
            rows.append(row.repeat_interleave(factor, 2).repeat_interleave(factor, 3))
    save_grid(path, torch.stack(rows))
