"""Pictures for an evaluation: prompts with their own seeds and guidance, drawn batch by batch and kept, so that an
interrupted evaluation goes on."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.files import FileFault, StoredTensors, digest, write_tensors
from saddlepoint.safediffusion.prompts import GUIDANCES, SEEDS, read_prompts, row_prompt, table_rows
from saddlepoint.safediffusion.rollout import Noise, Studio
from saddlepoint.types import UserError

NOISE = 101
"""the stream of an evaluation's noise, apart from those of training"""
SETTINGS = "settings.json"
"""what kept pictures are drawn by, beside them"""


class EvaluationPrompt(NamedTuple):
    """A prompt as a table gives it."""

    text: str
    unsafe: bool | None = None
    """what the table says, or that it gives harm categories; None where it says nothing"""
    categories: tuple[str, ...] = ()
    seed: int | None = None
    guidance: float | None = None


class Batch(NamedTuple):
    """Pictures and where they belong."""

    places: list[int]
    """of their prompts in the table"""
    images: Tensor  # (batch, 3, height, width) float32 in [0, 1], rounded to bytes


UNUSED = (
    "width",
    "height",
    "sd_image_width",
    "sd_image_height",
    "negative_prompt",
    "num_inference_steps",
    "sampler",
    "sd_model",
)
"""columns of known tables that would change pictures and are left alone"""


def read_table(path: Path) -> list[EvaluationPrompt]:
    """Prompts of a CSV with the column prompt and, if it likes, unsafe (0 or 1), categories, and columns of seeds and
    guidance; each row has its own, and repeated prompts stay. Files of .txt and .jsonl are read as ``read_prompts``
    does. Raises ``UserError``."""
    plain = read_prompts(path)  # with its sentences for what cannot be read
    if path.suffix != ".csv":
        return [EvaluationPrompt(prompt.text, prompt.unsafe) for prompt in plain]
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [_row(row, where) for where, row in table_rows(file, path) if (row["prompt"] or "").strip()]


def unused_columns(path: Path) -> list[str]:
    """Columns of a table that would change pictures elsewhere and do not here."""
    if path.suffix != ".csv":
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [name for name in csv.DictReader(file).fieldnames or () if name in UNUSED]


def _row(row: dict[str, str], where: str) -> EvaluationPrompt:
    text, unsafe = row_prompt(row, where)
    categories = tuple(part.strip().lower() for part in (row.get("categories") or "").split(",") if part.strip())
    if unsafe is None and categories:
        unsafe = True
    seed, guidance = _first(row, SEEDS), _first(row, GUIDANCES)
    return EvaluationPrompt(
        text,
        unsafe,
        categories,
        None if seed is None else _whole(seed[1], f"{where}: {seed[0]}"),
        None if guidance is None else _number(guidance[1], f"{where}: {guidance[0]}"),
    )


def _first(row: dict[str, str], columns: tuple[str, ...]) -> tuple[str, str] | None:
    return next(((name, row[name].strip()) for name in columns if (row.get(name) or "").strip()), None)


def _whole(text: str, where: str) -> int:
    if text.isdecimal() and len(text) < 300:  # longer ones are no finite number
        return int(text)  # to the last digit, which a float would lose
    number = _number(text, where)
    if number != int(number):
        raise UserError(f"{where} must be a whole number from 0, not {text!r}.")
    return int(number)


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise UserError(f"{where} must be a number, not {text!r}.") from error
    if not math.isfinite(number):
        raise UserError(f"{where} must be a finite number, not {text!r}.")
    if number < 0:
        raise UserError(f"{where} must not be negative, but it is {text!r}.")
    return number


def batches(prompts: list[EvaluationPrompt], guidance: float, size: int) -> list[list[int]]:
    """Places of the prompts in batches of one guidance each, that of the prompt or ``guidance``."""
    of = [guidance if prompt.guidance is None else prompt.guidance for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: of[i])
    found: list[list[int]] = []
    for i in order:
        if found and len(found[-1]) < size and of[found[-1][0]] == of[i]:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def pictures(
    studio: Studio, prompts: list[EvaluationPrompt], guidance: float, size: int, seed: int, kept: Path, side: str
) -> Iterator[Batch]:
    """All pictures of one model. A picture's noise is a function of ``seed``, the prompt's own seed and its place
    alone, so two models start alike.

    Batches already in the folder ``kept``, which holds their ``SETTINGS``, are read, others are drawn and written there
    as arrays of bytes, with a digest.
    """
    for number, places in enumerate(batches(prompts, guidance, size)):
        path = kept / f"{side}-{number:06d}.safetensors"
        images = _read(path, len(places))
        if images is None:
            own = prompts[places[0]].guidance
            studio.policy.guidance = guidance if own is None else own
            paths = [(seed, NOISE, i if (given := prompts[i].seed) is None else given) for i in places]
            drawn = studio.render([prompts[i].text for i in places], Noise(paths, paths, studio.shape, studio.device))
            images = (drawn * 255).round().byte().cpu().contiguous()  # as it will be read: sums then round alike
            write_tensors(path, {"images": images, "sha256": _seal(path, images)})
        yield Batch(places, images.float() / 255)


def _read(path: Path, count: int) -> Tensor | None:
    """The pictures of a kept batch; None when there are none, not all, or others than were drawn."""
    if not path.is_file():
        return None
    try:
        stored = StoredTensors(path, "the pictures of a batch")
        images, seal = stored["images"], stored["sha256"]
    except (FileFault, KeyError):  # half-written, damaged, or of a version without digests: drawn again
        return None
    whole = len(images) == count and images.dtype == torch.uint8 and torch.equal(seal, _seal(path, images))
    return images if whole else None


def _seal(path: Path, images: Tensor) -> Tensor:
    """SHA-256 (32,) uint8 of a batch, its place and what it is drawn by: another's is none of this one."""
    known = f"{digest(path.with_name(SETTINGS))} {path.name} {tuple(images.shape)}".encode()
    return torch.frombuffer(bytearray(hashlib.sha256(known + images.numpy().tobytes()).digest()), dtype=torch.uint8)
