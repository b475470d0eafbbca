"""What is wrong with a file, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from saddlepoint.types import UserError

ADVICE = "restore it from a copy, or make it again"


class FileFault(UserError):
    """A file that cannot be read or written: ``path``, the ``reason`` in a few words, and whether it is ``missing``."""

    def __init__(self, sentence: str, path: Path | None = None, reason: str = "", missing: bool = False) -> None:
        super().__init__(sentence)
        self.path, self.reason, self.missing = path, reason, missing


def reason_of(error: BaseException) -> str:
    """Why a file could not be read or written, in a few words."""
    if isinstance(error, FileFault):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (said or type(error).__name__).rstrip(".:")


@contextmanager
def as_read(path: Path, what: str, advice: str = ADVICE) -> Iterator[None]:
    """Whatever is raised but a ``UserError`` or an interruption becomes a ``FileFault``: a library's list of errors
    is never whole."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if (
            not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        ):  # what a library in Rust raises when it panics
            raise
        reason = one_line(error)
        named = f"{path} cannot be read as {what}" if what else f"{path} cannot be read"
        raise FileFault(
            f"{named} ({reason}): {advice}.", Path(path), reason, isinstance(error, (FileNotFoundError, NotADirectoryError))
        ) from error


@contextmanager
def as_written(path: Path, advice: str) -> Iterator[None]:
    """A disk's faults, and names that cannot be written, become a ``FileFault``; others are those of who writes."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeError) as error:
        reason = one_line(error)
        raise FileFault(
            f"{path} cannot be written ({reason}): {advice}.", path, reason, isinstance(error, FileNotFoundError)
        ) from error


def one_line(error: BaseException) -> str:
    """``reason_of`` without line breaks."""
    return re.sub(r"\s+", " ", reason_of(error))
