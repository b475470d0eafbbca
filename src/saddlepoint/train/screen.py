"""How a run looks while it goes: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.train.console import PatientConsole
from saddlepoint.train.verdict import TITLES, costs_in_words

REFRESH_SECONDS = 0.2
PLAIN_SECONDS = 30.0
FIRST_PLAIN_SECONDS = 2.0
"""of the first plain line, which shows that something happens"""
RATE_SECONDS = 60.0
"""rates are those of the last minute: steps without updates, at the start, say nothing of the rest"""
MEASURES = {"train/reward_mean": "reward", "train/cost_mean": "cost", "eval/reward_mean": "held-out reward"}
"""what is shown of a run without episodes"""


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
        from rich.live import Live

        self.total, self.unit, self.budgets = total, unit, budgets
        self.wall_before = 0.0
        self._console = PatientConsole(highlight=False, quiet=silent)
        self._live = (
            None
            if quiet or silent or not self._console.is_terminal
            else Live(console=self._console, auto_refresh=False)
        )
        self._silent = silent
        self._started = self._next_plain = time.monotonic()
        self._next_plain += FIRST_PLAIN_SECONDS
        self._next_live = 0.0
        self._marks: deque[tuple[float, float, int]] = deque()  # time, how far and updates of the last minute
        self._newest: dict[str, float] = {}

    def start(self) -> None:
        if self._live is not None:
            self._show(self._live.start)

    def stop(self) -> None:
        if self._live is not None:
            self._show(self._live.stop)

    def newest(self, metrics: dict[str, float]) -> None:
        """Take new metrics to show."""
        self._newest |= metrics

    def say(self, sentence: str) -> None:
        """One line for the user, above the progress."""
        self._show(lambda: self._console.print(sentence, soft_wrap=True, markup=False))

    def _show(self, draw: Callable[[], object]) -> None:
        """Draw, unless the terminal is gone or the disk behind it full: what is learnt does not depend on it."""
        try:
            draw()
        except OSError:
            self._console.quiet, self._live = True, None

    def progress(self, done: float, updates: int | None, doing: str) -> None:
        """Show how far the run is, where it is time to."""
        if self._silent:
            return
        now = time.monotonic()
        if not self._marks:
            self._marks.append((now, done, updates or 0))
        if now < (self._next_live if self._live else self._next_plain):
            return
        self._next_live, self._next_plain = now + REFRESH_SECONDS, now + PLAIN_SECONDS
        self._marks.append((now, done, updates or 0))
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_SECONDS:
            self._marks.popleft()
        lines = self.lines(now, done, updates, doing)
        if self._live is None:
            self._show(lambda: self._console.print("  ".join(lines), soft_wrap=True, markup=False))
            return
        from rich.text import Text

        panel = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        live = self._live
        self._show(lambda: live.update(panel, refresh=True))

    def lines(self, now: float, done: float, updates: int | None, doing: str) -> list[str]:
        """What is shown: how far and how fast; training; the last evaluation."""
        then, before, made = self._marks[0]
        elapsed = max(now - then, 1e-9)
        parts = [
            f"{self.unit} {int(done):,} of {self.total:,} ({100 * done / self.total:.0f}%)",
            f"{clock(now - self._started + self.wall_before)} elapsed",
        ]
        if updates is not None:
            parts.append(f"{(updates - made) / elapsed:.0f} updates/s")
        if done > before:
            parts.append(f"{clock((self.total - done) * elapsed / (done - before))} left")
        if doing:
            parts.append(doing)
        found = ["  ".join(parts)]
        training = []
        if "train/return_mean" in self._newest:
            cost = costs_in_words(self._newest, self.budgets, "train")
            training.append(f"training return {self._newest['train/return_mean']:.1f}{f', {cost}' if cost else ''}")
        else:
            training += [
                f"{title} {self._newest[name]:.3g}" for name, title in MEASURES.items() if name in self._newest
            ]
        training += [
            f"{name.removeprefix('train/')} {value:.3g}"
            for name, value in self._newest.items()
            if name.startswith("train/multiplier")
        ]
        if training:
            found.append("  ".join(training))
        evaluated = []
        for prefix, title in TITLES.items():
            if f"{prefix}/return_mean" in self._newest:
                cost = costs_in_words(self._newest, self.budgets, prefix)
                evaluated.append(
                    f"{title} return {self._newest[f'{prefix}/return_mean']:.1f}{f', {cost}' if cost else ''}"
                )
        if evaluated:
            found.append(f"evaluation: {'; '.join(evaluated)}")
        return found


def clock(seconds: float) -> str:
    """Seconds as 1:02:03."""
    whole = max(int(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
