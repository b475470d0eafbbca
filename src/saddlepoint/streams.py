"""Standard output and error, which simulators close, replace and redirect: our words go where they went before."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Kept:
    """One stream as it was found, and a descriptor of its own for the place that it leads to."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name, self.stream = number, name, getattr(sys, name)
        self.copy, self.place = -1, None
        with contextlib.suppress(OSError):
            self.copy = os.dup(number)
            self.place = _place(number)

    def hold(self) -> None:
        """Mend what no word can be written to; what leads elsewhere stays, as some loggers need."""
        if _place(self.number) is None:  # a file that is opened next would get its number
            self._lead_back()
        if _place(self.number) is None:  # the copy was closed as well
            _lead_nowhere(self.number)
        if not _works(getattr(sys, self.name)):
            self._set()

    def restore(self) -> None:
        """Have the stream be what it was."""
        if _place(self.number) != self.place:
            self._lead_back()
        self._set()
        if self.place is not None and _place(self.copy) == self.place:
            os.close(self.copy)

    def drop(self, nowhere: int) -> None:
        """Have ``restore`` lead it to ``nowhere``."""
        if self.copy >= 0:
            os.dup2(nowhere, self.copy)
        self.place = _place(nowhere)

    def _lead_back(self) -> None:
        if self.place is not None and _place(self.copy) == self.place:
            os.dup2(self.copy, self.number)

    def _set(self) -> None:
        if self.stream is not None and not _works(self.stream):
            self.stream = open(self.number, "w", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        setattr(sys, self.name, self.stream)


_KEPT: list[tuple[_Kept, _Kept]] = []


@contextlib.contextmanager
def kept_streams() -> Iterator[None]:
    """Have standard output and error be after the block what they were before it, open and with the same descriptors."""
    kept = _Kept(1, "stdout"), _Kept(2, "stderr")
    _KEPT.append(kept)
    try:
        yield
    finally:
        _KEPT.remove(kept)  # another thread may have begun in between
        for stream in kept:
            stream.restore()


def hold_streams() -> None:
    """Mend them where foreign code closed them or put something else in their place that nothing can be written to."""
    for stream in _KEPT[-1] if _KEPT else ():
        stream.hold()


def drop_output() -> None:
    """Have standard output lead nowhere, because nobody reads it or its disk is full."""
    number, nowhere = sys.stdout.fileno(), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    for stream, _ in _KEPT:
        if number == stream.number:
            stream.drop(nowhere)
    os.close(nowhere)


def open_closed_streams() -> None:
    """Have every print work: to a stream that was closed (``>&-``), and of names that the stream's encoding lacks."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # a file that is opened next would get its number, and whatever a library prints
            _lead_nowhere(number)
            setattr(sys, name, open(number, "w", errors="backslashreplace", buffering=1, closefd=False))  # noqa: SIM115
        elif getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _lead_nowhere(number: int) -> None:
    opened = os.open(os.devnull, os.O_WRONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def _place(number: int) -> tuple[int, ...] | None:
    """What an open descriptor leads to; None for one that is closed."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_rdev


def _works(stream: Any) -> bool:
    """Whether ``stream`` looks as if it could be written to."""
    if stream is None:
        return False
    try:
        return not getattr(stream, "closed", False) and callable(stream.write) and callable(stream.flush)
    except Exception:  # one whose buffer was taken away, or whatever somebody else's object raises
        return False
