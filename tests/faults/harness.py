"""Commands as forked children, which need no imports of their own; and what makes two runs the same."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from saddlepoint.cli import main

TIMEOUT = 900.0


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    """exit code; minus the signal's number when it was killed; -999 when it had to be, because it hung"""
    said: str
    """all that it printed"""

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said


@dataclass
class Command:
    """One that runs."""

    pid: int
    output: Path
    started: float

    def signal(self, number: int, group: bool = False) -> None:
        """To the process, or to all of its group, as systemd and Slurm do."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def running(self) -> bool:
        return self._wait(os.WNOHANG) is None

    def end(self, timeout: float = TIMEOUT) -> Ended:
        deadline = time.monotonic() + timeout
        while (code := self._wait(os.WNOHANG)) is None:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL, group=True)
                self._wait(0)
                code = -999
                break
            time.sleep(0.02)
        return Ended(code, self.output.read_text(errors="replace"))

    def _wait(self, options: int) -> int | None:
        if (code := _ENDED.get(self.pid)) is None:
            pid, status = os.waitpid(self.pid, options)
            if not pid:
                return None
            code = _ENDED[self.pid] = os.waitstatus_to_exitcode(status)
        return code


_ENDED: dict[int, int] = {}
_counter = iter(range(10**9))


def start(args: list[Any], home: Path, before: Callable[[], None] | None = None) -> Command:
    """`saddlepoint ARGS` in a session of its own; ``before`` is called in it first."""
    output = home / f"output-{next(_counter)}"
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Command(pid, output, time.monotonic())
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if before is not None:
            before()
        code = main([str(arg) for arg in args])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(args: list[Any], home: Path, before: Callable[[], None] | None = None) -> Ended:
    return start(args, home, before).end()


def same_run(one: Path, two: Path) -> str:
    """Empty where two runs have the same newest checkpoint, to the bit, and the same metrics but for the clock; else
    what differs."""
    steps = [
        max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")), default=-1) for folder in (one, two)
    ]
    if steps[0] != steps[1]:
        return f"newest checkpoints {steps[0]} and {steps[1]}"
    folders = [folder / "checkpoints" / str(steps[0]) for folder in (one, two)]
    for name in ("learner.safetensors", "replay.safetensors", "arrays.npz"):
        if folders[0].joinpath(name).read_bytes() != folders[1].joinpath(name).read_bytes():
            return f"{name} of step {steps[0]}"
    states = [_timeless(json.loads((folder / "state.json").read_text())) for folder in folders]
    if states[0] != states[1]:
        return f"state.json of step {steps[0]}"
    lines = [[_line(raw) for raw in (folder / "metrics.jsonl").read_bytes().splitlines()] for folder in (one, two)]
    return "" if lines[0] == lines[1] else "metrics.jsonl"


def _line(raw: bytes) -> Any:
    """A line of metrics; one that is damaged as it stands."""
    try:
        return _timeless(json.loads(raw))
    except ValueError:
        return raw


def _timeless(value: Any) -> Any:
    """Without what the clock says."""
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key != "wall_s" and not key.endswith("_s")}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
