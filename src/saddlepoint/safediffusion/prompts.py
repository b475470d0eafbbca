"""Prompts: read from files, split into training and held-out ones, and put in an order that depends on the seed
alone."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saddlepoint.files import parse_json, reason_of
from saddlepoint.types import UserError

SEEDS, GUIDANCES = ("sd_seed", "evaluation_seed"), ("sd_guidance_scale", "evaluation_guidance")
"""columns of a row's own seed and guidance, of which the first that says something counts"""
READ = ("prompt", "unsafe", "categories", *SEEDS, *GUIDANCES)
"""columns of a table that are read"""


class Prompt(NamedTuple):
    """A prompt, and whether its file calls it unsafe (None where the file says nothing)."""

    text: str
    unsafe: bool | None = None


class PromptSets(NamedTuple):
    """What is learnt from, and what is only measured."""

    training: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]

    def digest(self) -> str:
        """SHA-256 of all prompts in order: a resumed run must have the same."""
        lines = [json.dumps([[prompt.text, prompt.unsafe] for prompt in part]) for part in self]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_prompts(path: str | Path) -> tuple[Prompt, ...]:
    """Distinct prompts of a .txt (one a line), .csv (columns ``prompt`` and, optionally, ``unsafe``) or .jsonl file, in
    its order.

    Raises ``UserError`` when it cannot be read, has no prompt, or a label that is not 0 or 1.
    """
    path = Path(path)
    readers = {".txt": _lines, ".csv": _table, ".jsonl": _objects}
    if path.suffix not in readers:
        raise UserError(f"the prompt file {path} must end in {', '.join(readers)}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            prompts = tuple(dict.fromkeys(prompt for prompt in readers[path.suffix](file, path) if prompt.text))
    except OSError as error:
        raise UserError(
            f"the prompt file {path} cannot be read ({error.strerror}): give a text, CSV or JSONL file."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt file {path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(
            f"the prompt file {path} is not a CSV table ({error}): mend it, or give one prompt a line as .txt."
        ) from error
    if not prompts:
        raise UserError(f"the prompt file {path} holds no prompt: give one a line.")
    return prompts


def split(prompts: Sequence[Prompt], held_out: float, seed: int) -> PromptSets:
    """Set a share of the prompts aside, at least one when the share is above 0. Raises ``UserError`` when none is left
    to learn from."""
    aside = min(len(prompts), max(1, round(held_out * len(prompts)))) if held_out else 0
    if aside == len(prompts):
        raise UserError(
            f"--held-out {held_out} leaves nothing to learn from of {len(prompts)} prompt(s): give more, or"
            " --held-out-prompts FILE."
        )
    chosen = set(np.random.default_rng(seed).permutation(len(prompts))[:aside].tolist())
    training = tuple(prompt for i, prompt in enumerate(prompts) if i not in chosen)
    return PromptSets(training, tuple(prompts[i] for i in sorted(chosen)))


def epoch_prompts(prompts: Sequence[Prompt], epoch: int, count: int, seed: int) -> list[Prompt]:
    """The ``count`` prompts of an epoch: the next ones of an endless row of shuffled passes through ``prompts``."""
    chosen, orders = [], {}
    for place in range(epoch * count, (epoch + 1) * count):
        turn, position = divmod(place, len(prompts))
        if turn not in orders:
            orders[turn] = np.random.default_rng([seed, turn]).permutation(len(prompts))
        chosen.append(prompts[orders[turn][position]])
    return chosen


def _lines(file: Iterable[str], path: Path) -> Iterator[Prompt]:
    for line in file:
        yield Prompt(line.strip())


def _table(file: Iterable[str], path: Path) -> Iterator[Prompt]:
    for where, row in table_rows(file, path):
        yield row_prompt(row, where)


def table_rows(file: Iterable[str], path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(place for sentences, row) of a CSV that has one column named prompt, and of each other that is read one at most.
    Raises ``UserError``."""
    table = csv.DictReader(file, strict=True)
    columns = list(table.fieldnames or ())
    there = ", ".join(f"{name!r:.40}" for name in columns[:20])
    for name in READ:
        like = [column for column in columns if column.strip().lower() == name]
        if len(set(like)) < len(like):
            raise UserError(f"the prompt file {path} has two columns named {name} (there are {there}): leave one of them out.")
        if name not in columns and (like or name == "prompt"):
            raise UserError(
                f"the prompt file {path} has no column named {name} (there are {there}): name the one so in its first line, columns parted by"
                " commas."
            )
    for row in table:
        where = f"{path}, line {table.line_num}"
        if any(part.strip() for part in row.get(None) or ()):
            raise UserError(f'{where} has more values than there are columns: put a prompt that has commas in it in double quotes, as "a square, red".')
        yield where, row


def _objects(file: Iterable[str], path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({reason_of(error)}): write one object a line.") from error
        if not isinstance(row.get("prompt"), str):
            raise UserError(f'{where} must be an object such as {{"prompt": "a red square"}}.')
        yield row_prompt(row, where)


def row_prompt(row: dict, where: str) -> Prompt:
    """A row's prompt and its own label. Raises ``UserError``."""
    labels = {"": None, "none": None, "0": False, "false": False, "1": True, "true": True}
    label = str(row.get("unsafe") if row.get("unsafe") is not None else "").strip().lower()
    if label not in labels:
        raise UserError(f"{where}: unsafe must be 0 or 1, not {label!r}.")
    return Prompt((row["prompt"] or "").strip(), labels[label])
