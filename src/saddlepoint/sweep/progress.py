"""How a sweep goes: one live table, or a plain line whenever a trial changes its state."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saddlepoint.sweep.outcome import Record
from saddlepoint.train.log import read_metrics

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_SECONDS = 2.0
SHOWN = {"return": "return_mean", "cost": "cost_mean"}
"""columns of the table: the newest of train/... and eval/..."""


class Progress:
    """Shows the records of a sweep."""

    def __init__(self, title: str, records: Collection[Record], quiet: bool, total: int | None = None) -> None:
        """``total``: trials that there will be, where ``records`` grows."""
        from rich.live import Live

        from saddlepoint.train.console import PatientConsole

        self._title, self._records, self._total = title, records, total
        self._console = PatientConsole(highlight=False)
        self._live = None if quiet or not self._console.is_terminal else Live(console=self._console, auto_refresh=False)
        self._started = time.monotonic()
        self._shown = 0.0
        self._steps = {record.name: _steps(record) for record in records}
        self._at_start = sum(self._steps.values())

    def say(self, sentence: str) -> None:
        """One line for the user, above the table."""
        self._console.print(sentence, soft_wrap=True, markup=False)

    def changed(self, record: Record) -> None:
        """Say that a trial has another state."""
        done = self._done()
        seconds = f" in {_clock(record.wall_s)}" if record.state == "finished" else ""
        why = f": {record.sentence}" if record.sentence and record.state in ("waiting", "failed") else ""
        state = "to be resumed" if record.state == "waiting" else record.state
        self.say(f"{done}/{self._total or len(self._records)} done; {record.name} {state}{seconds}{why}")
        self.refresh(at_once=True)

    def refresh(self, at_once: bool = False) -> None:
        """Show the table anew, now and then."""
        if self._live is None or (not at_once and time.monotonic() - self._shown < REFRESH_SECONDS):
            return
        self._shown = time.monotonic()
        self._live.update(self._table(), refresh=True)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self.refresh(at_once=True)
            self._live.stop()

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for column in ("state", "trial", "steps", *SHOWN):
            table.add_column(column, justify="left" if column in ("state", "trial") else "right")
        for record in self._records:
            if record.state in ("running", "failed"):
                newest = _newest(record)
                self._steps[record.name] = newest.get("step", 0)
                numbers = [f"{newest[name]:.2f}" if name in newest else "" for name in SHOWN]
                table.add_row(record.state, record.name, f"{newest.get('step', 0):,}/{record.total_steps:,}", *numbers)
        states = Counter(record.state for record in self._records)
        parts = [
            f"{states[state]} {state}" for state in ("running", "waiting", "interrupted", "failed", "pruned") if states[state]
        ]
        title = "  ".join([self._title, f"{self._done()}/{self._total or len(self._records)} done", *parts, self._eta()])
        return Group(Text(title), table) if table.row_count else Text(title)

    def _done(self) -> int:
        return sum(record.state in ("finished", "pruned") for record in self._records)

    def _eta(self) -> str:
        """From the steps a second of this start: trials of other systems may be slower or faster."""
        done = open_steps = 0
        for record in self._records:
            made = record.total_steps if record.state == "finished" else self._steps.get(record.name, 0)
            done += made
            if record.state not in ("failed", "pruned"):
                open_steps += max(record.total_steps - made, 0)
        if self._total is not None and self._records:
            to_come = self._total - len(self._records)
            open_steps += to_come * sum(record.total_steps for record in self._records) // len(self._records)
        rate = (done - self._at_start) / (time.monotonic() - self._started + 1e-9)
        return f"ETA {_clock(open_steps / rate)}" if rate > 0 and open_steps else ""


def _newest(record: Record) -> dict[str, Any]:
    """The newest numbers of a trial's metrics.jsonl, by column."""
    path = Path(record.folder)
    lines = read_metrics(path) if (path / "metrics.jsonl").exists() else []
    newest: dict[str, Any] = {}
    for line in lines[-20:]:
        newest["step"] = line["step"]
        for column, name in SHOWN.items():
            value = line.get(f"{line['kind']}/{name}")
            newest |= {column: value} if isinstance(value, int | float) else {}
    return newest


def _steps(record: Record) -> int:
    return record.total_steps if record.state == "finished" else _newest(record).get("step", 0)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
