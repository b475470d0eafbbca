"""Statistics over seeds: curves on a common axis, final numbers, and what rliable says of them. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.types import UserError

MOST_POINTS = 300
"""points of a curve that are drawn"""
ENOUGH = 3
"""so many seeds get a mean with an interval; fewer are shown one by one"""
RESAMPLES = 2000
BOOTSTRAP_SEED = 0
T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the last is used, which errs on the wide side"""


class Interval(NamedTuple):
    """A number, or (points,) of them, with the ends of its 95 % interval."""

    value: Any
    low: Any
    high: Any


def mean_interval(values: np.ndarray) -> Interval:
    """Mean over at least ``ENOUGH`` runs with Student's 95 % interval,  mean ± t s / sqrt(n).  (runs, points) -> (points,)."""
    runs = len(values)
    mean, std = values.mean(0), values.std(0, ddof=1)
    half = T_975[min(runs - 1, len(T_975)) - 1] * std / np.sqrt(runs)
    return Interval(mean, mean - half, mean + half)


def align(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Curves (x, y) of several runs on one axis: x (points,), y (runs, points), where all of them have values.

    The axis is the union of their points, at most ``MOST_POINTS`` of them; in between a run is interpolated linearly.
    Empty where the runs have no stretch in common.
    """
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    axis = np.unique(np.concatenate([x for x, _ in curves]))
    axis = thin(axis[(axis >= first) & (axis <= last)])
    return axis, np.stack([np.interp(axis, x, y) for x, y in curves])


def thin(values: np.ndarray) -> np.ndarray:
    """At most ``MOST_POINTS`` of the entries, evenly spread, the first and the last among them."""
    if len(values) <= MOST_POINTS:
        return values
    return values[np.linspace(0, len(values) - 1, MOST_POINTS).round().astype(int)]


def cost_of(line: dict[str, Any], prefix: str, budgets: tuple[CostBudget, ...]) -> list[tuple[float, float]]:
    """(mean cost of an episode, its bound) of every constraint, in the semantics in which the budget was stated.

    The cost is nan where the evaluation did not run that policy.
    """
    bounds = [budget.critic if budget.discounted else budget.episode for budget in budgets]
    return [(float(line.get(cost_name(prefix, budgets, i), np.nan)), bound) for i, bound in enumerate(bounds)]


def cost_name(prefix: str, budgets: tuple[CostBudget, ...], constraint: int) -> str:
    """The metric that holds the mean cost of one constraint."""
    name = "discounted_cost" if budgets[constraint].discounted else "cost"
    return f"{prefix}/{name}{f'_{constraint}' if len(budgets) > 1 else ''}_mean"


def cost_ratio(line: dict[str, Any], prefix: str, budgets: tuple[CostBudget, ...]) -> float:
    """max_c cost_c / budget_c, above 1 where the mean episode is over budget; nan without a positive budget."""
    pairs = cost_of(line, prefix, budgets)
    return max(cost / bound for cost, bound in pairs) if pairs and all(bound > 0 for _, bound in pairs) else float("nan")


def training_violations(rates: np.ndarray, episodes: np.ndarray) -> float:
    """The share of all training episodes that went over budget, from the share (lines,) and number (lines,) of each line."""
    return float((rates * episodes).sum() / episodes.sum()) if episodes.sum() > 0 else float("nan")


def normalise(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores (runs,) of every method on one task to [0, 1]: 0 is the worst run of any method here, 1 the best."""
    together = np.concatenate(list(scores.values()))
    low, span = together.min(), np.ptp(together)
    return {name: (own - low) / span if span > 0 else np.full_like(own, 0.5) for name, own in scores.items()}


def within(line: dict[str, Any], prefix: str, budgets: tuple[CostBudget, ...]) -> bool:
    """Whether the mean episode keeps every budget, in the semantics in which each was stated; a policy that was not run breaks none."""
    return all(not cost > bound * (1 + 1e-9) for cost, bound in cost_of(line, prefix, budgets))


def interquartile_mean(scores: dict[str, np.ndarray]) -> dict[str, Interval]:
    """IQM of (runs, tasks) for each method with a stratified bootstrap interval (rliable; Agarwal et al. 2021)."""
    from rliable import metrics

    return _bootstrap(dict(scores), lambda own: np.array([metrics.aggregate_iqm(own)]))


def improvement(x: np.ndarray, y: np.ndarray) -> float:
    """P(X > Y) + P(X = Y) / 2 for a run of each, averaged over tasks: (runs, tasks), (runs, tasks).

    The same number as rliable's ``probability_of_improvement`` without its test statistics, which make a bootstrap slow.
    """
    difference = x[:, None] - y[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def probability_of_improvement(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Interval]:
    """``improvement`` of every pair with a stratified bootstrap interval (rliable)."""
    return _bootstrap({name: list(pair) for name, pair in pairs.items()}, lambda x, y: np.array([improvement(x, y)]))


def require_rliable() -> None:
    """Raises ``UserError`` when the extra is not installed."""
    try:
        import rliable.library  # noqa: F401
    except ImportError as error:
        raise UserError(f"a report needs rliable ({error}): pip install saddlepoint[report].") from error


def _bootstrap(scores: dict[str, Any], measure: Callable[..., np.ndarray]) -> dict[str, Interval]:
    from rliable import library

    with _global_seed(BOOTSTRAP_SEED):
        points, ends = library.get_interval_estimates(scores, measure, reps=RESAMPLES)
    return {name: Interval(float(points[name][0]), *(float(end[0]) for end in ends[name])) for name in scores}


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """rliable draws from NumPy's global generator whatever ``random_state`` it is given: seed that, and put it back after."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
