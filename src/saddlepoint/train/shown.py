"""How far a run is and how well it goes: as lines of text, as a panel of a terminal, as a bar in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, NamedTuple

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.train.verdict import TITLES, cost_in_words, mean_costs

if TYPE_CHECKING:
    from rich.console import RenderableType

MEASURES = {"train/reward_mean": "reward", "train/cost_mean": "cost", "eval/reward_mean": "held-out reward"}
"""what is shown of a run without episodes"""
TRAINING = "train"


class Row(NamedTuple):
    """Episodes of one policy."""

    prefix: str
    """``train``, or of an evaluation"""
    value: float
    """mean return"""
    costs: list[tuple[float, float]]
    """mean cost and limit of each constraint, in the sum that its budget is on"""


class Shown(NamedTuple):
    """What is shown of a run."""

    unit: str
    done: float
    total: int
    elapsed: float
    """seconds, of all starts"""
    left: float | None
    """seconds"""
    rate: float | None
    """updates a second"""
    doing: str
    budgets: tuple[CostBudget, ...]
    rows: list[Row]
    numbers: list[tuple[str, float]]

    def head(self) -> list[str]:
        """How far and how fast."""
        parts = [
            f"{self.unit} {int(self.done):,} of {self.total:,} ({100 * self.done / self.total:.0f}%)",
            f"{clock(self.elapsed)} elapsed",
        ]
        if self.rate is not None:
            parts.append(f"{self.rate:.0f} updates/s")
        if self.left is not None:
            parts.append(f"{clock(self.left)} left")
        return [*parts, *([self.doing] if self.doing else [])]

    def lines(self) -> list[str]:
        """How far; training; the last evaluation."""
        words = {row.prefix: self._in_words(row) for row in self.rows}
        training = [f"training {words[TRAINING]}"] if TRAINING in words else []
        training += [f"{name} {value:.3g}" for name, value in self.numbers]
        evaluated = "; ".join(f"{title} {words[prefix]}" for prefix, title in TITLES.items() if prefix in words)
        found = ["  ".join(self.head()), "  ".join(training), f"evaluation: {evaluated}" if evaluated else ""]
        return [line for line in found if line]

    def panel(self) -> RenderableType:
        """The same for a terminal: a bar, and a table with each constraint in a column of its own."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(self.total, min(self.done, self.total)))
        parts: list[RenderableType] = [Text("  ".join(self.head()), no_wrap=True, overflow="ellipsis"), bar]
        if self.rows:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            table.add_column("mean of episodes")
            table.add_column("return", justify="right")
            for i, budget in enumerate(self.budgets):
                name = "discounted cost" if budget.discounted else "cost"
                table.add_column(f"{name} {i}" if len(self.budgets) > 1 else name, justify="right")
            for row in self.rows:
                costs = [Text(cost_in_words(cost, limit), "red" if cost > limit else "green") for cost, limit in row.costs]
                table.add_row(TITLES.get(row.prefix, "training"), f"{row.value:.1f}", *costs)
            parts.append(table)
        if self.numbers:
            parts.append(Text("  ".join(f"{name} {value:.3g}" for name, value in self.numbers), no_wrap=True, overflow="ellipsis"))
        return Panel(Group(*parts), title="saddlepoint", title_align="left", border_style="dim")

    def page(self) -> str:
        """The same as HTML for a notebook."""
        bar = f'<progress style="width: 100%" max="{self.total}" value="{min(self.done, self.total):.3f}"></progress>'
        return f"{bar}<pre>{html.escape(chr(10).join(self.lines()))}</pre>"

    def _in_words(self, row: Row) -> str:
        costs = [f"{'discounted cost' if budget.discounted else 'cost'} {cost_in_words(*pair)}" for budget, pair in zip(self.budgets, row.costs)]
        return f"return {row.value:.1f}{', ' if costs else ''}{' and '.join(costs)}"


def rows_of(metrics: dict[str, float], budgets: tuple[CostBudget, ...]) -> list[Row]:
    """Training, then the policies of the last evaluation, as far as ``metrics`` has them."""
    prefixes = [prefix for prefix in (TRAINING, *TITLES) if f"{prefix}/return_mean" in metrics]
    return [Row(prefix, metrics[f"{prefix}/return_mean"], mean_costs(metrics, budgets, prefix)) for prefix in prefixes]


def numbers_of(metrics: dict[str, float]) -> list[tuple[str, float]]:
    """Multipliers, and what a run without episodes measures."""
    found = [] if "train/return_mean" in metrics else [(title, metrics[name]) for name, title in MEASURES.items() if name in metrics]
    return found + [(name.removeprefix("train/"), value) for name, value in metrics.items() if name.startswith("train/multiplier")]


def clock(seconds: float) -> str:
    """Seconds as 1:02:03."""
    whole = max(int(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
