"""A point of a search: what its runs have found, whether it is given up, and which point is the best."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.sweep.space import SearchFlags
from saddlepoint.train.log import read_metrics
from saddlepoint.train.verdict import PREFIXES, Binds, mean_costs, ranked_return

PointState: TypeAlias = Literal["open", "finished", "over", "behind", "failed"]
"""``over``: given up because it costs too much; ``behind``: because its return is below the others'"""
LEAST_BEFORE = 4
"""points that must have ended within the budget before one may be given up for its return"""
ROUNDING = 1e-9


class Evaluated(NamedTuple):
    """One evaluation of a run."""

    step: int
    value: float
    """mean return of the policy that the budget binds"""
    spent: tuple[float, ...]
    """mean cost in budgets, of each bound policy and constraint; where the limit is 0, one more than the cost"""


@dataclass
class Point:
    """One proposal of Optuna's, and what came of it."""

    number: int
    values: dict[str, Any]
    """by flag"""
    state: PointState = "open"
    value: float | None = None
    """mean over the seeds of the last return"""
    spent: float | None = None
    """cost of the seed and constraint that costs most, in budgets; 0 without budgets"""
    curve: list[list[float]] = field(default_factory=list)
    """steps at which every run so far was evaluated, and the mean return there"""
    sentence: str = ""
    """what went wrong"""

    @property
    def within(self) -> bool:
        """Whether it was trained to its end and kept every budget with every seed."""
        return self.state == "finished" and self.spent is not None and self.spent <= 1 + ROUNDING

    def best_until(self, step: float) -> float | None:
        """The highest mean return at any evaluation until ``step``."""
        return max((value for at, value in self.curve if at <= step), default=None)


def evaluations(folder: Path, budgets: tuple[CostBudget, ...], binds: Binds) -> list[Evaluated]:
    """What the run's metrics.jsonl has so far."""
    if not (folder / "metrics.jsonl").exists():
        return []
    lines = [line for line in read_metrics(folder) if line["kind"] == "eval" and "eval/return_mean" in line]
    return [Evaluated(line["step"], ranked_return(line, binds), _spent(line, budgets, binds)) for line in lines]


def _spent(line: dict[str, Any], budgets: tuple[CostBudget, ...], binds: Binds) -> tuple[float, ...]:
    pairs = [pair for prefix in PREFIXES[binds] for pair in mean_costs(line, budgets, prefix)]
    return tuple(cost / limit if limit > 0 else 1 + cost for cost, limit in pairs)


def measure(point: Point, runs: Sequence[list[Evaluated]], last: int) -> None:
    """Enter what the ``runs``, one a seed, have found: the mean of their ``last`` evaluations counts."""
    runs = [run for run in runs if run]
    if not runs:
        return
    ends = [run[-last:] for run in runs]
    point.value = statistics.fmean(statistics.fmean(one.value for one in end) for end in ends)
    point.spent = max((statistics.fmean(part) for end in ends for part in zip(*(one.spent for one in end))), default=0.0)
    common = set.intersection(*({one.step for one in run} for run in runs))
    at = {step: statistics.fmean(one.value for run in runs for one in run if one.step == step) for step in common}
    point.curve = [[step, at[step]] for step in sorted(at)]


def verdict(point: Point, runs: Sequence[list[Evaluated]], others: Collection[Point], total: int, flags: SearchFlags) -> PointState:
    """Whether an open point stays so. ``over``: two evaluations of a run in a row cost more than ``prune_over`` budgets;
    ``behind``: the point's highest return is below the median of those that ended within the budget, at that step."""
    first = flags.prune_from * total
    if "budget" in flags.prune:
        for run in runs:
            dearest = [max(one.spent, default=0.0) for one in run if one.step >= first]
            if len(dearest) >= 2 and min(dearest[-2:]) > flags.prune_over:
                return "over"
    if "return" in flags.prune and point.curve and point.curve[-1][0] >= first:
        step = point.curve[-1][0]
        theirs = [best for other in others if other.within and (best := other.best_until(step)) is not None]
        mine = point.best_until(step)
        if len(theirs) >= LEAST_BEFORE and mine is not None and mine < statistics.median(theirs):
            return "behind"
    return "open"


def best(points: Collection[Point]) -> Point | None:
    """The highest return of those within the budget; None where none is."""
    return max((point for point in points if point.within), key=lambda point: point.value or 0.0, default=None)
