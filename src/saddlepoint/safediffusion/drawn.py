"""The folder of a red-team search: what was drawn so far, and at the end the words, prompts and anchors that it found."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from saddlepoint.files import FileFault, hold_lock, parse_json, read_bytes, read_json, seal_of, write_json
from saddlepoint.safediffusion.prompts import Prompt
from saddlepoint.types import UserError

LOCK = ".lock"


class Found(NamedTuple):
    """A word that was drawn."""

    word: str
    shift: float
    """by how much it moves prompts along the safety direction; below 0 is towards the unsafe side"""
    excess: float
    """mean cost of its pictures less that of the same prompts without it, from the same noise"""
    error: float
    """standard error of that"""
    kept: bool


class Drawn:
    """The folder in which a search is kept until it is whole: ``.NAME.unfinished`` beside ``out``, which it becomes. In
    a ``with`` block it is locked: two searches would take each other's words for their own."""

    def __init__(self, out: Path) -> None:
        """Raises ``UserError`` where it cannot be made."""
        self._out, self._folder = out, out.with_name(f".{out.name}.unfinished")
        self._held = contextlib.ExitStack()
        self._settings = ""
        self._known: dict[tuple[int, str], tuple[float, float]] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Drawn:
        busy = f"another process searches for {self._out}: wait for it, or choose another --out."
        self._held.enter_context(hold_lock(self._folder / LOCK, busy))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self._out} cannot be written ({error.strerror}): choose another --out, or make room.")

    def begin(self, settings: dict[str, Any]) -> None:
        """Take up what was drawn with the same ``settings``, all that the pictures depend on; with others, begin anew.
        Raises ``UserError``."""
        file = self._folder / "settings.json"
        self._settings = seal_of(settings)
        try:
            same = read_json(file, "what a search draws by") == json.loads(json.dumps(settings))
        except FileFault:  # there is none yet, or it is damaged
            same = False
        if same:
            self._read()
            return
        try:
            self._lines.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        write_json(file, settings)

    @property
    def _lines(self) -> Path:
        return self._folder / "drawn.jsonl"

    def _read(self) -> None:
        """What is damaged, such as the last line of a killed process, or of another search, is drawn again."""
        for line in read_bytes(self._lines, "drawn words").splitlines() if self._lines.exists() else ():
            with contextlib.suppress(ValueError, TypeError):
                *said, seal = parse_json(line, list)
                if seal == seal_of([self._settings, *said]):
                    draw, word, excess, error = said
                    self._known[draw, word] = (excess, error)

    def has(self, draw: int, word: str) -> bool:
        return (draw, word) in self._known

    def of(self, draw: int, word: str) -> tuple[float, float]:
        return self._known[draw, word]

    def add(self, draw: int, word: str, excess: float, error: float) -> None:
        """Keep what a word's pictures cost, on disk at once. Raises ``UserError``."""
        self._known[draw, word] = (excess, error)
        said = [draw, word, excess, error]
        try:
            with self._lines.open("a", encoding="utf-8") as file:
                file.write("\n" * (file.tell() > 0) + json.dumps([*said, seal_of([self._settings, *said])]))
        except OSError as failed:
            raise self._unwritable(failed) from failed

    def finish(
        self,
        found: Sequence[Found],
        prompts: Sequence[Prompt],
        pairs: Sequence[tuple[str, str]],
        safe: Sequence[str],
        unsafe: Sequence[str],
    ) -> None:
        """Write the prompts with their labels, then the new ones with the word they were made of; the anchors; and what
        was found. The folder appears whole or not at all. Raises ``UserError``."""
        try:
            shutil.rmtree(self._folder / "anchors", ignore_errors=True)
            (self._folder / "anchors").mkdir()
            with (self._folder / "prompts.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(["prompt", "unsafe", "word"])
                table.writerows(
                    [prompt.text, "" if prompt.unsafe is None else int(prompt.unsafe), ""] for prompt in prompts
                )
                table.writerows([text, 1, word] for text, word in pairs)
            with (self._folder / "words.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(Found._fields)
                table.writerows(found)
            for name, phrases in (("safe", safe), ("unsafe", unsafe)):
                if phrases:
                    (self._folder / "anchors" / f"{name}.txt").write_text(
                        "".join(f"{phrase}\n" for phrase in phrases), encoding="utf-8"
                    )
            for path in (self._lines, self._folder / LOCK):
                path.unlink(missing_ok=True)
            self._folder.rename(self._out)
        except OSError as error:
            raise self._unwritable(error) from error
