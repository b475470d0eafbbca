"""What the machine gives this process: cores and memory, within the limits of its control groups, and
a place for the compiler's files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
"""where /proc and /sys stand"""


def cpus() -> int:
    """CPUs that this process may use: fewer than the machine has under ``taskset``, in a cpuset, and in most batch
    systems."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_compiler_cache() -> None:
    """Have PyTorch's compiler use the temporary folder where ``TORCHINDUCTOR_CACHE_DIR`` cannot be written. PyTorch
    makes that folder with the first optimiser, also where nothing is compiled."""
    place, reason = os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""), "it may only be read"
    if not place:
        return
    try:
        os.makedirs(place, exist_ok=True)
        if os.access(place, os.W_OK):
            return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    warnings.warn(f"TORCHINDUCTOR_CACHE_DIR is {place}, which cannot be used ({reason}): the temporary folder is used", stacklevel=2)


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process can still take; None where the system does not say.

    The smallest of MemAvailable and of what each control group above the process has left, of version 1 or 2. Pages of
    files that a group can drop at once count as free.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return min([free, *(left for group in _groups(root) if (left := _left(group)) is not None)])


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that hold this process and can limit its memory, up to the outermost that is
    visible."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        # Of a container that sees its own group as the root, the path may name folders that are not there: those above
        # are looked at.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in [mounts / "memory"] if controllers else [mounts, mounts / "unified"]:
            for length in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:length])


def _left(group: Path) -> int | None:
    """Bytes that a group may still take; None where it has no limit."""
    for limit_name, used_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = int((group / limit_name).read_text()), int((group / used_name).read_text())
        except (OSError, ValueError):  # the limit "max" is none
            continue
        return max(limit - max(used - _statistic(group, cache_name), 0), 0)
    return None


def _statistic(group: Path, name: str) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
    except (OSError, ValueError, IndexError):
        return 0
