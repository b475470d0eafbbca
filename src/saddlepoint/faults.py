"""Faults of the machine, in one sentence: memory, disks, files, streams. What is not among them is ours, and shows
its traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import traceback
from pathlib import Path

NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|alloc_cpu|CUBLAS_STATUS_ALLOC_FAILED|Storage size"
    r" calculation overflowed"
    r"|integer multiplication overflow|larger than the maximum possible size|Maximum allowed dimension exceeded"
    r"|Overflow when unpacking long|cannot be converted to type int64_t",
    re.IGNORECASE,
)
"""what PyTorch's allocators say in a RuntimeError, and PyTorch and NumPy of sizes that no memory has, in a TypeError too"""
SIZES = "lower the sizes of networks, batches, samples or the replay, or give the process more memory"
ADVICE = {
    errno.ENOSPC: "make room on it",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or use fewer processes",
    errno.ENFILE: "close other programs, or have the system's limit on open files raised",
    errno.EACCES: "look at its permissions",
    errno.EPERM: "look at its permissions",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOENT: "look at the path",
    errno.EIO: "the disk is failing: copy what is whole to another one",
}
"""by error number, what to do about a file that cannot be read or written"""
LONGEST = 300
"""characters of a foreign message that are shown"""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, NumPy's or PyTorch's, on the CPU or on a GPU, or one of a size that no
    memory has."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | ValueError | TypeError) and (
        type(error).__name__ == "OutOfMemoryError" or bool(NO_MEMORY.search(str(error)))
    )


def explain(error: BaseException, last_good: str = "") -> str | None:
    """One sentence about a fault of the machine: what, where, what to do; None for all other errors.

    ``last_good`` names the newest checkpoint where there is one: "the last good checkpoint is of step 600".
    """
    if of_handler(error):  # whoever installed it may wait for it
        return None
    kept = f"; {last_good}" if last_good else ""
    if is_out_of_memory(error):
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        detail = f" ({said.rstrip('.')})" if said else ""
        return f"there is not enough memory{detail}: {SIZES}{kept}."
    if isinstance(error, OSError):
        name = error.filename if error.filename is not None else ""
        where = f" {os.fsdecode(name)}" if isinstance(name, str | bytes) and name else ""
        if not where and error.errno not in ADVICE:  # of a connection, or of code that raises such errors itself
            return f"an operation failed with {describe(error)}: look at what raised it{kept}."
        what = f"the file{where} cannot be read or written" if where else "the system refused an operation"
        advice = ADVICE.get(error.errno or 0, "look at the disk, the path and the permissions")
        return f"{what} ({error.strerror or error}): {advice}{kept}."
    return None


def of_handler(error: BaseException) -> str | None:
    """One sentence about what a handler of signals raised, which may come out of any line of ours; None for all other errors."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(held, "__code__", None) for call in handlers for held in (call, getattr(call, "__call__", None))}  # noqa: B004
    if all(frame.f_code not in codes for frame, _ in traceback.walk_tb(error.__traceback__)):
        return None
    return "; ".join([f"a handler of signals raised {describe(error)}: correct it", *getattr(error, "__notes__", ())]) + "."


def describe(error: BaseException) -> str:
    """Type, message and place of an error, in one line of printable characters."""
    message = " ".join("".join(c if c.isprintable() else " " for c in _text(error)).split())
    if len(message) > LONGEST:
        message = f"{message[:LONGEST]}..."
    what = f"{type(error).__name__}: {message}".rstrip(": .")
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"{what} ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else what
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a message of its own that fails
        return ""
