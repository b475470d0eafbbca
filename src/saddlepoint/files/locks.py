"""Locks of files, which the system frees when their holder dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saddlepoint.files.faults import as_written
from saddlepoint.types import UserError

try:
    import fcntl
except ImportError:  # Windows: policies load and act there, but no folder can be locked
    fcntl = None  # type: ignore[assignment]


class Busy(UserError):
    """Another process holds the lock."""


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # foreign code closed it: what else that led to is told where it is met
        os.close(descriptor)


def _busy(path: Path, sentence: str) -> Busy:
    return Busy(sentence or f"another process holds {path}: wait for it, or choose another folder.")


@contextmanager
def hold_lock(path: Path, busy: str = "") -> Iterator[None]:
    """Hold the lock file ``path`` and its folder's own lock, freed even after kill -9. With the folder's, who removes
    the file lets nobody in; a file system that locks no folders goes without.

    Raises ``Busy``, with the sentence ``busy``, when another process has it, and ``FileFault`` when it cannot be had.
    """
    if fcntl is None:
        raise UserError(
            "this system cannot lock files (Python's fcntl is missing): train on Linux or macOS; trained policies load"
            " here."
        )
    with contextlib.ExitStack() as held:
        with as_written(path, "look at the disk and the folder's permissions, or choose another folder"):
            while True:
                # Links are refused, and nothing is truncated.
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                held.callback(_close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise _busy(path, busy) from error
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(
                        os.fstat(descriptor), path.stat(follow_symlinks=False)
                    ):  # not removed meanwhile
                        break
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent, os.O_RDONLY)
            held.callback(_close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _busy(path, busy) from error
        yield
