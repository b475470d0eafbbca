"""One attempt at one trial, in a worker's process. Imports nothing heavy: the run is a process of its own.

A process of its own, rather than a call of ``train_command`` in the worker, is what its command would start by hand;
it may be killed, run out of memory or crash in C++ and only its own attempt is lost.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.2
TAIL_BYTES = 8192
INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """What to run, and where."""

    args: tuple[str, ...]
    """the command line after `saddlepoint`"""
    log: str
    """file that the run's output is added to"""
    cwd: str
    threads: int
    pause: float
    """seconds to wait first, after a failed attempt"""


class Ending(NamedTuple):
    """How an attempt ended."""

    code: int
    """exit code; minus the signal's number when it was killed"""
    seconds: float
    sentence: str
    """what went wrong, empty when nothing did"""


def run_job(job: Job) -> Ending:
    """Run it to its end, or on KeyboardInterrupt (which is how Ray cancels a task) until its checkpoint is written."""
    if (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):  # so are processes born that a shell starts with &: Ray could not cancel
        signal.signal(signal.SIGINT, signal.default_int_handler)
    child: subprocess.Popen[bytes] | None = None
    started = time.monotonic()
    stopping = False
    while True:
        try:
            if child is None:
                if stopping:
                    return Ending(INTERRUPTED, 0.0, "interrupted")
                time.sleep(job.pause)
                started = time.monotonic()
                child = _start(job)
            while child.poll() is None:
                time.sleep(POLL_SECONDS)
            break
        except KeyboardInterrupt:
            stopping = True
            if child is not None:
                child.terminate()
    code = child.returncode
    return Ending(code, time.monotonic() - started, "" if code == 0 else _sentence(code, Path(job.log)))


def _start(job: Job) -> subprocess.Popen[bytes]:
    # -P: the folder it runs in must not come before the installed packages, as it does not for `saddlepoint` itself.
    command = [sys.executable, "-P", "-m", "saddlepoint.sweep.leash", str(os.getpid()), *job.args]
    environ = os.environ | {"OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1"}
    with open(job.log, "ab") as log:
        log.write(f"$ saddlepoint {shlex.join(job.args)}\n".encode())
        log.flush()
        # A session of its own: Ctrl-C at the terminal reaches the sweep, which then stops its runs.
        return subprocess.Popen(
            command, cwd=job.cwd, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def _sentence(code: int, log: Path) -> str:
    """What went wrong: the error's own sentence, which is the last line that the run printed."""
    if code < 0:
        named = -code in set(signal.Signals)
        return f"it was killed by {signal.Signals(-code).name if named else f'signal {-code}'}"
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - TAIL_BYTES, 0))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return last.removeprefix("saddlepoint: error: ").removeprefix("saddlepoint: ")
