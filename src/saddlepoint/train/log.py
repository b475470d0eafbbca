"""What a run says: metrics.jsonl, TensorBoard, and one live progress line (or plain lines)."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saddlepoint.constrained.budget import CostBudget

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

REFRESH_SECONDS = 0.2
PLAIN_SECONDS = 30.0
RATE_SECONDS = 60.0
"""rates are those of the last minute: steps without updates, at the start, say nothing of the rest"""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one that a killed process left half-written at the end is left out."""
    lines = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class RunLog:
    """Writes the metrics of one run and shows how it goes."""

    def __init__(self, run: Path, total_steps: int, budgets: tuple[CostBudget, ...], quiet: bool) -> None:
        from rich.live import Live

        from saddlepoint.train.console import PatientConsole

        self._run, self._total, self._budgets = run, total_steps, budgets
        self._console = PatientConsole(highlight=False)
        self._live = None if quiet or not self._console.is_terminal else Live(console=self._console, auto_refresh=False)
        self._started = time.monotonic()
        self._wall_before = 0.0
        self._marks: deque[tuple[float, int, int]] = deque()  # time, step and updates of the last minute
        self._shown = 0.0
        self._newest: dict[str, float] = {}
        self._file = (run / "metrics.jsonl").open("a")
        self._board: SummaryWriter | None = None
        if self._live is not None:
            self._live.start()

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, over all its processes."""
        return self._wall_before + time.monotonic() - self._started

    def resume(self, step: int, wall_s: float, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Cut off the lines that ``keep`` refuses (those a killed run wrote too many) and let the clock go on."""
        self._wall_before = wall_s
        self._file.close()
        path = self._run / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines(keepends=True) if _is_kept(line, keep)]
        temporary = path.with_name(".metrics.jsonl.writing")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a")
        self._board = self._open_board(purge_step=step + 1)

    def write(self, step: int, kind: Literal["train", "eval"], metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl, and TensorBoard scalars."""
        line = {"step": step, "wall_s": round(self.wall_s, 3), "kind": kind} | metrics
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is None:
            self._board = self._open_board(purge_step=None)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._newest |= metrics
        if kind == "eval":
            self.say(
                f"step {step}: evaluation return {metrics['eval/return_mean']:.1f}"
                f" (std {metrics['eval/return_std']:.1f}){self._cost(metrics, 'eval')}"
                + (f", {100 * metrics['eval/violation_rate']:.0f}% of episodes over budget" if self._budgets else "")
            )

    def progress(self, step: int, updates: int) -> None:
        """Show the progress line, now and then."""
        now = time.monotonic()
        if not self._marks:
            self._marks.append((now, step, updates))
        if now - self._shown < (REFRESH_SECONDS if self._live else PLAIN_SECONDS):
            return
        first_time, self._shown = not self._shown, now
        self._marks.append((now, step, updates))
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_SECONDS:
            self._marks.popleft()
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(self._line(step, updates), no_wrap=True, overflow="ellipsis"), refresh=True)
        elif not first_time:
            self._console.print(self._line(step, updates), soft_wrap=True)

    def say(self, sentence: str) -> None:
        """One line for the user, above the progress line."""
        self._console.print(sentence, soft_wrap=True, markup=False)

    def flush(self) -> None:
        """Metrics to the disk, before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _open_board(self, purge_step: int | None) -> SummaryWriter:
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import, so only by runs that write

        return SummaryWriter(str(self._run / "tb"), purge_step=purge_step)

    def _cost(self, metrics: dict[str, float], prefix: str) -> str:
        """Cost against budget, in the semantics in which the budget was stated; nothing where there is no cost."""
        if not self._budgets:
            return ""
        if len(self._budgets) == 1 and self._budgets[0].discounted:
            return f", discounted cost {metrics[f'{prefix}/discounted_cost_mean']:.2f} of {self._budgets[0].critic:.4g}"
        return f", cost {metrics[f'{prefix}/cost_mean']:.2f} of {' + '.join(f'{b.episode:.4g}' for b in self._budgets)}"

    def _line(self, step: int, updates: int) -> str:
        then, first_step, first_updates = self._marks[0]
        elapsed = max(time.monotonic() - then, 1e-9)
        rate = (step - first_step) / elapsed
        parts = [f"{step:,}/{self._total:,} steps", f"{(updates - first_updates) / elapsed:.0f} updates/s"]
        if "train/return_mean" in self._newest:
            parts.append(f"return {self._newest['train/return_mean']:.1f}{self._cost(self._newest, 'train')}")
        multipliers = {name: value for name, value in self._newest.items() if name.startswith("train/multiplier")}
        parts += [f"{name.removeprefix('train/')} {value:.3g}" for name, value in multipliers.items()]
        if rate > 0:
            left = int((self._total - step) / rate)
            parts.append(f"ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
        return "  ".join(parts)


def _is_kept(line: str, keep: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return keep(json.loads(line))
    except ValueError:  # the last line of a killed run may be cut
        return False
