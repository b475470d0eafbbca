"""What a run says: metrics.jsonl, of which every checkpoint keeps a digest; boards; and the screen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal

from saddlepoint.files import read_json_lines, replacing
from saddlepoint.streams import hold_streams
from saddlepoint.train.boards import Board, Track, open_boards
from saddlepoint.train.schedule import Line
from saddlepoint.train.screen import Screen

METRICS = "metrics.jsonl"
WHAT = "the metrics of a run"


def read_metrics(run: Path) -> list[Line]:
    """The lines of a run's metrics.jsonl that can be read. Raises ``UserError`` where there is no such file."""
    return scan_metrics(run)[0]


def scan_metrics(run: Path) -> tuple[list[Line], list[str]]:
    """The lines of a run's metrics.jsonl that can be read, and a sentence about those that cannot; a last one that a
    killed process left half-written is no fault. Raises ``UserError`` where there is no such file."""
    found = read_json_lines(run / METRICS, WHAT)
    lines, faults = [], []
    for line in found:
        reason = line.reason or _oddity(line.content)
        if not reason:
            assert line.content is not None
            lines.append(line.content)
        elif line.number < len(found) or line.raw.endswith(b"\n"):
            faults.append(f"line {line.number} of {run / METRICS} is left out: {reason}")
    return lines, faults


def _oddity(line: Line | None) -> str:
    """What makes a JSON object no line of metrics; empty where it is one."""
    if line is None:
        return "it is no JSON object"
    if type(line.get("step")) is not int or line["step"] < 0 or line.get("kind") not in ("train", "eval"):
        return "it has no whole step and kind"
    odd = [
        name
        for name, value in line.items()
        if name != "kind" and (isinstance(value, bool) or not isinstance(value, int | float))
    ]
    if odd or "wall_s" not in line:
        return f"its {odd[0] if odd else 'wall_s'!r} is no number"
    return ""


class MetricsFile:
    """metrics.jsonl of the one process that writes it, with a digest of the ``regular`` lines: those that every run
    with its settings has, wherever it ends. A link is never written through."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sum, self._count = hashlib.sha256(), 0
        self._file = self._open(os.O_CREAT)

    def write(self, line: Line, regular: bool) -> None:
        raw = json.dumps(line).encode() + b"\n"
        self._mend()
        left = raw
        while left:
            left = left[os.write(self._file, left) :]
        if regular:
            self._add(raw)

    def resume(
        self, keep: Callable[[Line], bool], regular: Callable[[Line], bool], seal: dict[str, Any] | None
    ) -> list[str]:
        """Cut off the lines that ``keep`` refuses (those a killed run wrote too many). Returns sentences about what
        else is not as the checkpoint knew it (``seal``): lines that cannot be read stay where they are."""
        self.close()
        found = read_json_lines(self.path, WHAT)
        kept, sentences = [], []
        for line in found:
            reason = line.reason or _oddity(line.content)
            if not reason:
                assert line.content is not None
                if keep(line.content):
                    kept.append(line.raw)
                    if regular(line.content):
                        self._add(line.raw)
            elif line.number < len(found):
                kept.append(line.raw)
                sentences.append(f"line {line.number} of {self.path} cannot be read ({reason}); it stays as it is")
        if seal is not None and seal != self.seal():
            known = seal.get("lines") if isinstance(seal, dict) else None  # what a damaged manifest says may be anything
            lost = known - self._count if isinstance(known, int) else 0
            what = (
                f"lacks {lost} of its lines"
                if lost > 0
                else f"has {-lost} lines too many"
                if lost < 0
                else "has lines that were changed"
            )
            sentences.append(
                f"{self.path} is not as the checkpoint knew it: it {what}; what is there stays, and new lines are added"
            )
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))
        self._file = self._open()
        return sentences

    def seal(self) -> dict[str, Any]:
        """Number and digest of the regular lines so far."""
        return {"lines": self._count, "sha256": self._sum.hexdigest()}

    def flush(self) -> None:
        self._mend()
        os.fsync(self._file)

    def close(self) -> None:
        if self._is_ours():
            os.close(self._file)

    def _mend(self) -> None:
        """Open the file again where an environment closed it: its number may be another file's by now."""
        if not self._is_ours():
            self._file = self._open()

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self._stands)
        except OSError:
            return False

    def _add(self, raw: bytes) -> None:
        self._sum.update(raw)
        self._count += 1

    def _open(self, create: int = 0) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | create
        descriptor = os.open(self.path, flags, 0o666)
        self._stands = os.fstat(descriptor)
        return descriptor


class RunLog:
    """Writes the metrics of one run and shows how it goes. Processes other than the first have a silent one (``folder``
    None)."""

    def __init__(
        self,
        folder: Path | None,
        screen: Screen,
        *,
        track: Track = "none",
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._folder, self._screen = folder, screen
        self._track: Track = track
        self._settings = settings
        self._process = os.getpid()
        self._started, self._wall_before = time.monotonic(), 0.0
        hold_streams()  # a file that is opened next would get the number of one that was closed
        self._file = MetricsFile(folder / METRICS) if folder else None
        self._boards: list[Board] | None = None
        self._purge: int | None = None
        screen.start()

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, over all its starts."""
        return self._wall_before + time.monotonic() - self._started

    def resume(
        self,
        step: int,
        wall_s: float,
        keep: Callable[[Line], bool],
        regular: Callable[[Line], bool],
        seal: dict[str, Any] | None,
    ) -> list[str]:
        """``MetricsFile.resume``, and let the clock go on from ``wall_s``."""
        self._wall_before, self._purge = wall_s, step + 1
        self._screen.wall_before = wall_s
        return self._file.resume(keep, regular, seal) if self._file else []

    def write(self, step: int, kind: Literal["train", "eval"], metrics: dict[str, float], regular: bool = True) -> None:
        """One line of metrics.jsonl, and the same for the boards and the screen."""
        self._screen.newest(metrics)
        if self._folder is None or self._file is None:
            return
        self._end_copies()
        hold_streams()
        self._file.write({"step": step, "wall_s": round(self.wall_s, 3), "kind": kind} | metrics, regular)
        if self._boards is None:
            self._boards = open_boards(self._folder, self._track, self._settings, self._purge)
        for board in self._boards:
            board.write(step, metrics)

    def show(self, metrics: dict[str, float]) -> None:
        """Metrics for the screen alone, between two lines of metrics.jsonl."""
        self._screen.newest(metrics)

    def progress(self, done: float, updates: int | None = None, doing: str = "") -> None:
        """Show the progress, now and then. ``done`` is in the run's unit and may have a fraction."""
        self._screen.progress(done, updates, doing)

    def say(self, sentence: str) -> None:
        """One line for the user, above the progress."""
        self._screen.say(sentence)

    def seal(self) -> dict[str, Any] | None:
        """What a checkpoint of now says of metrics.jsonl."""
        return self._file.seal() if self._file else None

    def flush(self) -> None:
        """Metrics to the disk, before a checkpoint that counts on them."""
        self._end_copies()
        hold_streams()
        if self._file is not None:
            self._file.flush()
        for board in self._boards or ():
            board.flush()

    def _end_copies(self) -> None:
        """End this process where an environment made it by copying the run's (``os.fork``) and let it come back: it
        would write the same run a second time."""
        if os.getpid() != self._process:
            self.say("warning: a copy of this process came back from an environment (os.fork): the copy ends, and the run goes on without it")
            os._exit(2)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()
        # After a fault, a full disk would say the same once more, in words that know less.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            if self._file is not None:
                self._file.close()
            for board in self._boards or ():
                board.close()
