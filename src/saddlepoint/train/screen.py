"""How a run looks while it goes: a live panel in a terminal, a bar in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.streams import hold_streams
from saddlepoint.train.console import PatientConsole
from saddlepoint.train.shown import Shown, numbers_of, rows_of

REFRESH_SECONDS = 0.2
PLAIN_SECONDS = 30.0
FIRST_PLAIN_SECONDS = 2.0
"""of the first plain line, which shows that something happens"""
RATE_SECONDS = 60.0
RATE_SHARE = 1e-3
"""rates are those of the last minute, or of the last thousandth of the run where that took longer: steps without updates, at the start, say nothing of the
rest, and neither does a minute of updates or evaluations without a step"""


class Screen:
    """The progress of one run of ``total`` units. ``silent``: of a process that is not the first."""

    def __init__(
        self,
        total: int,
        unit: str = "step",
        *,
        budgets: tuple[CostBudget, ...] = (),
        quiet: bool = False,
        silent: bool = False,
    ) -> None:
        self.total, self.unit, self.budgets = total, unit, budgets
        self.wall_before = 0.0
        self._console = PatientConsole(highlight=False, quiet=silent)
        self._live: Display | None = None
        if not (quiet or silent):
            if self._console.is_jupyter:
                self._live = Notebook()
            elif self._console.is_terminal:
                self._live = Terminal(self._console)
        self._silent = silent
        self._started = self._next_plain = time.monotonic()
        self._next_plain += FIRST_PLAIN_SECONDS
        self._next_live = 0.0
        self._marks: deque[tuple[float, float, int]] = deque()  # time, how far and updates of the last minute
        self._newest: dict[str, float] = {}
        self._last: tuple[float, int | None] | None = None

    def start(self) -> None:
        if self._live is not None:
            self._show(self._live.start)

    def stop(self) -> None:
        if (live := self._live) is None:
            return
        if self._last is not None:
            shown = self.shown(time.monotonic(), *self._last, "")
            self._show(lambda: live.draw(shown))
        self._show(live.stop)

    def newest(self, metrics: dict[str, float]) -> None:
        """Take new metrics to show."""
        self._newest |= metrics

    def say(self, sentence: str) -> None:
        """One line for the user, above the progress."""
        self._show(lambda: self._console.print(sentence, soft_wrap=True, markup=False))

    def _show(self, draw: Callable[[], object]) -> None:
        """Draw, unless the terminal is gone or the disk behind it full: what is learnt does not depend on it."""
        hold_streams()
        try:
            draw()
        except (OSError, ValueError):  # the second of a stream that is closed in the meantime
            self._console.quiet, self._live = True, None

    def progress(self, done: float, updates: int | None, doing: str) -> None:
        """Show how far the run is, where it is time to."""
        if self._silent:
            return
        now, self._last = time.monotonic(), (done, updates)
        if not self._marks:
            self._marks.append((now, done, updates or 0))
        if now < (self._next_live if self._live else self._next_plain):
            return
        self._next_live, self._next_plain = now + REFRESH_SECONDS, now + PLAIN_SECONDS
        self._marks.append((now, done, updates or 0))
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_SECONDS and done - self._marks[1][1] >= RATE_SHARE * self.total:
            self._marks.popleft()
        shown = self.shown(now, done, updates, doing)
        live = self._live
        if live is None:
            self._show(lambda: self._console.print("  ".join(shown.lines()), soft_wrap=True, markup=False))
        else:
            self._show(lambda: live.draw(shown))

    def shown(self, now: float, done: float, updates: int | None, doing: str) -> Shown:
        """What there is to show; rates are those since the oldest mark."""
        then, before, made = self._marks[0]
        elapsed = max(now - then, 1e-9)
        return Shown(
            self.unit, done, self.total, now - self._started + self.wall_before,
            (self.total - done) * elapsed / (done - before) if done > before else None,
            None if updates is None else (updates - made) / elapsed,
            doing, self.budgets, rows_of(self._newest, self.budgets), numbers_of(self._newest),
        )  # fmt: skip


class Display(Protocol):
    """What is drawn over and over in one place."""

    def start(self) -> None: ...
    def draw(self, shown: Shown) -> None: ...
    def stop(self) -> None: ...


class Terminal:
    """A panel below what is said."""

    def __init__(self, console: PatientConsole) -> None:
        from rich.live import Live

        self._live = Live(console=console, auto_refresh=False)

    def start(self) -> None:
        self._live.start()

    def draw(self, shown: Shown) -> None:
        self._live.update(shown.panel(), refresh=True)

    def stop(self) -> None:
        self._live.stop()


class Notebook:
    """A bar in the output of the cell."""

    def __init__(self) -> None:
        self._handle: Any = None

    def start(self) -> None:
        from IPython.display import HTML, display

        self._handle = display(HTML("<progress></progress>"), display_id=True)

    def draw(self, shown: Shown) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(shown.page()))

    def stop(self) -> None:
        pass
