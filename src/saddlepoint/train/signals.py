"""Signals as a wish: finish the step, write a checkpoint, leave. A second Ctrl-C stops what hangs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from saddlepoint.foreign import end_copy

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
"""Ctrl-C; what systems send to end a process; a closed terminal; Slurm's warnings before a time limit"""
INSISTING = (signal.SIGINT, signal.SIGTERM)
"""those that stop at once when they come again"""
ENDING = (*INSISTING, getattr(signal, "SIGHUP", None))
"""those that end a process which does not handle them; others may be what a simulator's own processes say to each other"""
GRACE_SECONDS = 1.0
"""after which a second signal is meant as one: launchers pass the first on to the process and to its group"""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal; the message says how to go on."""


class StopRequest:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.made = False
        self.last_good: Callable[[], str] = lambda: "nothing is half-written"
        """what the user finds when they stop at once"""
        self._when, self._owner = 0.0, os.getpid()
        self.held: tuple[int, ...] = ()
        """the signals that are taken back from whoever else takes them"""

    def __call__(self) -> bool:
        if any(signal.getsignal(number) != self._make for number in self.held):
            self.hold()
        return self.made

    def hold(self) -> None:
        """Take the signals back: simulators install handlers of their own, and what is learnt would end with them."""
        if threading.current_thread() is threading.main_thread():
            for number in self.held:
                signal.signal(number, self._make)

    def _make(self, number: int, frame: FrameType | None) -> None:
        if end_copy(self._owner, number):
            return
        now = time.monotonic()
        if not self.made:
            self.made, self._when = True, now
            if number == signal.SIGINT:
                _tell(
                    f"\nstopping after this step and its checkpoint; Ctrl-C again to stop at once ({self.last_good()})\n"
                )
        elif number in INSISTING and now - self._when >= GRACE_SECONDS:
            raise Interrupted(f"stopped at once; {self.last_good()}")


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn signals into a request while the block runs (in the main thread: Python allows no other to). Ignored ones
    stay ignored (``nohup``)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    found = {number: signal.getsignal(number) for number in SIGNALS}
    caught = {
        number: handler for number, handler in found.items() if handler != signal.SIG_IGN or number == signal.SIGINT
    }
    for number in caught:
        signal.signal(number, request._make)
    request.held = tuple(number for number in caught if number in ENDING)
    try:
        yield request
    finally:
        request.held = ()
        for number, handler in caught.items():
            signal.signal(number, handler)


def _tell(words: str) -> None:
    """Words from within a signal handler, which may have interrupted a ``print``."""
    try:
        os.write(sys.stderr.fileno(), words.encode())
    except (OSError, ValueError, AttributeError):  # no stderr, or one that is not a file
        return
