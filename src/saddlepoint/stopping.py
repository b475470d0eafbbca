"""Whether a signal asked a run of this process to stop; for whatever waits on code that is not ours."""

from __future__ import annotations

from collections.abc import Callable

stop_flags: list[Callable[[], bool]] = []
"""of the runs at work in this process; ``saddlepoint.train.signals.stop_on_signal`` enters them"""


def stop_requested() -> bool:
    """Whether one of them was asked to stop."""
    return any(flag() for flag in stop_flags)
