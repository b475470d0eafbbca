"""Which learning curves an environment gets, and how the seeds of a method become lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

import numpy as np

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.report.numbers import number
from saddlepoint.report.plots import BOTTOM, TOP, Curve, line_chart, value_range
from saddlepoint.report.runs import Environment, Group, Run
from saddlepoint.report.scale import budget_scale
from saddlepoint.report.stats import ENOUGH, align, cost_name, mean_interval, thin

Axis = Literal["steps", "wall"]
SOURCES = {"eval": "eval", "sampled": "eval/stochastic", "train": "train"}
"""what the reader can choose to see, and the metrics' prefix"""
NAMES = {"eval": "noise-free policy", "sampled": "sampled policy", "train": "training episodes"}


@dataclass(frozen=True)
class Chart:
    """One quantity against steps or wall-clock."""

    title: str
    metric: Callable[[Run, str], str | None]
    """name of the metric for a run and a prefix; the same for all prefixes where ``sources`` is false"""
    sources: bool = True
    """whether there is one of it for each of ``SOURCES``"""
    floor: float = -np.inf
    ceiling: float = np.inf
    constraint: int | None = None
    """the constraint whose budget is marked"""

    def bounds(self, env: Environment) -> list[float]:
        """The bound of each run that has the constraint, in the semantics in which it was stated."""
        if self.constraint is None:
            return []
        return [bound_of(run.budgets[self.constraint]) for run in env.runs if self.constraint < len(run.budgets)]


def bound_of(budget: CostBudget) -> float:
    """The bound on what ``cost_name`` names: discounted or not, as the budget was stated."""
    return budget.critic if budget.discounted else budget.episode


def learning_curves(env: Environment, styles: dict[str, int]) -> str:
    """All charts of an environment as HTML, each against steps and against wall-clock; ``styles`` number the labels."""
    divisor, unit = _wall_unit(env)
    axes: tuple[tuple[Axis, str, float], ...] = (
        ("steps", "environment steps", 1.0), ("wall", f"wall-clock ({unit})", divisor),
    )  # fmt: skip
    figures = [text for chart in charts(env) if (text := _figures(env, chart, styles, axes))]
    if not figures:
        return "<p>Curves begin with the second line of metrics and the second evaluation.</p>"
    # Two columns; where that would leave one chart alone in its row, the last three share a row.
    odd = len(figures) % 2 == 1 and len(figures) >= 3
    large, small = (figures[:-3], figures[-3:]) if odd else (figures, [])
    rows = [f'<div class="grid2">{"".join(large)}</div>'] if large else []
    rows += [f'<div class="grid3 charts">{"".join(small)}</div>'] if small else []
    return "".join(rows)


def charts(env: Environment) -> list[Chart]:
    """Return, the cost of each constraint, episodes over budget and the multipliers."""
    constraints = max(len(run.budgets) for run in env.runs)
    found = [Chart("Return", lambda run, prefix: f"{prefix}/return_mean")]
    for i in range(constraints):
        found.append(Chart(f"Cost{_which(i, constraints)}", _cost_metric(i), floor=0.0, constraint=i))
    if constraints:
        over = Chart("Episodes over budget, share", lambda run, prefix: f"{prefix}/violation_rate", floor=0, ceiling=1)
        found.append(over)
    for i in range(constraints):
        end = f"_{i}" if constraints > 1 else ""
        of = _which(i, constraints)
        found.append(Chart(f"Multiplier λ{of}", _same(f"train/multiplier{end}"), sources=False, floor=0.0))
        slope = f"Slope of the penalty{of} (effective multiplier)"
        found.append(Chart(slope, _same(f"train/effective_multiplier{end}"), sources=False, floor=0.0))
    return found


def group_curves(
    group: Group, metric: Callable[[Run], str | None], style: int, axis: Axis, scale: float,
    unit: Callable[[Run], float] = lambda run: 1.0,
) -> list[Curve]:  # fmt: skip
    """The lines of one method, in units of ``unit``: one for each seed, and from ``ENOUGH`` seeds on their mean where all
    of them have values, with Student's 95 % interval."""
    single = []
    for rank, run in enumerate(group.runs):
        name = metric(run)
        steps, wall, values = run.series(name) if name else (np.zeros(0),) * 3
        if len(values):
            x, y = thin(steps if axis == "steps" else wall / scale), thin(values / unit(run))
            single.append(Curve(f"{group.label}, seed {run.seed}", style, x, y, seed=run.seed, rank=rank))
    if len(single) < ENOUGH:
        return single
    x, values = align([(curve.x, curve.y) for curve in single])
    if not len(x):
        return single
    interval = mean_interval(values)
    mean = Curve(f"{group.label}, mean of {len(single)} seeds", style, x, interval.value, (interval.low, interval.high))
    # On the wall-clock axis every seed ends at another moment: only what goes on beyond a tenth of it is a longer run.
    beyond = [_from(curve, x[-1]) for curve in single if curve.x[-1] > 1.1 * x[-1]]
    return [mean, *(replace(curve, beside_mean=True) for curve in single), *beyond]


def _figures(env: Environment, chart: Chart, styles: dict[str, int], axes: tuple[tuple[Axis, str, float], ...]) -> str:
    """The figures of one chart, on each axis and from each source, which share their vertical axis."""
    bounds = chart.bounds(env)
    in_budgets = bool(bounds) and min(bounds) > 0
    figures = []
    for axis, label, scale in axes:
        drawn = {
            source: _curves(env, chart, source, styles, axis, scale, in_budgets)
            for source in (SOURCES if chart.sources else {"": ""})
        }
        together = [curve for curves in drawn.values() for curve in curves]
        if not any(len(curve.x) > 1 for curve in together):  # single values stand in the verdict and the tables
            continue
        across = (0.0, max(float(curve.x[-1]) for curve in together))
        up, marks, bent = _vertical(together, sorted(set(bounds)), in_budgets)
        for source, curves in drawn.items():
            title = chart.title + (", in budgets" if in_budgets else "")
            note = _note(NAMES.get(source, ""), sorted(set(bounds)), in_budgets, bent)
            picture = line_chart(curves, label, _alt(f"{title}, {note}", label, curves), across, up, marks, bent)
            body = picture or '<p class="soft">No run has this number.</p>'
            kind = f"by-{axis}" + (f" from-{source}" if source else "")
            figures.append(
                f'<figure class="{kind}"><b>{escape(title)}</b> <span class="soft">{escape(note)}</span>{body}</figure>'
            )
    return "".join(figures)


def _vertical(
    curves: list[Curve], bounds: list[float], in_budgets: bool
) -> tuple[tuple[float, float], list[tuple[float, str]], bool]:
    """The range of the vertical axis, its marks, and whether it is logarithmic above the budget."""
    if not in_budgets:
        marks = [(level, f"budget {number(level, 4)}") for level in bounds]
        return value_range(curves, [level for level, _ in marks]), marks, False
    scale = budget_scale(max(float(curve.y.max()) for curve in curves), BOTTOM, TOP)
    return (scale.low, scale.high), [(1.0, "budget")], scale.bent


def _note(source: str, bounds: list[float], in_budgets: bool, bent: bool) -> str:
    parts = [source] if source else []
    if in_budgets:
        one = f"budget {number(bounds[0], 4)}" if len(bounds) == 1 else "of each run's own budget"
        parts.append(one + (", logarithmic above" if bent else ""))
    return "; ".join(parts)


def _curves(
    env: Environment, chart: Chart, source: str, styles: dict[str, int], axis: Axis, scale: float, in_budgets: bool
) -> list[Curve]:
    prefix = SOURCES.get(source, "")
    found = []
    for group in env.groups:
        bound = _bound(group.runs[0], chart.constraint) if in_budgets else None
        own = group_curves(
            group, lambda run: chart.metric(run, prefix), styles[group.label], axis, scale,
            lambda run: _bound(run, chart.constraint) or 1.0 if in_budgets else 1.0,
        )  # fmt: skip
        # Student's interval knows nothing of bounds; a share above 1 or a cost below 0 would only mislead.
        for curve in own:
            band = curve.band and (curve.band[0].clip(chart.floor, chart.ceiling), curve.band[1].clip(chart.floor, chart.ceiling))
            found.append(replace(curve, band=band, bound=bound))
    return found


def _bound(run: Run, constraint: int | None) -> float | None:
    return bound_of(run.budgets[constraint]) if constraint is not None and constraint < len(run.budgets) else None


def _from(curve: Curve, start: float) -> Curve:
    """What a curve has from ``start`` on, with its interpolated value there."""
    later = curve.x > start
    first = np.interp(start, curve.x, curve.y)
    return replace(curve, x=np.concatenate([[start], curve.x[later]]), y=np.concatenate([[first], curve.y[later]]))


def _which(constraint: int, constraints: int) -> str:
    return f" {constraint}" if constraints > 1 else ""


def _same(name: str) -> Callable[[Run, str], str | None]:
    return lambda run, prefix: name


def _cost_metric(constraint: int) -> Callable[[Run, str], str | None]:
    def name(run: Run, prefix: str) -> str | None:
        return cost_name(prefix, run.budgets, constraint) if constraint < len(run.budgets) else None

    return name


def _wall_unit(env: Environment) -> tuple[float, str]:
    longest = max((run.wall_s for run in env.runs), default=0.0)
    return (3600.0, "hours") if longest > 7200 else (60.0, "minutes") if longest > 120 else (1.0, "seconds")


def _alt(title: str, axis: str, curves: list[Curve]) -> str:
    shown = [curve for curve in curves if not curve.beside_mean]
    ends = "; ".join(f"{curve.label}: {number(curve.y[-1])} at {number(curve.x[-1])}" for curve in shown)
    return f"{title} against {axis}. At the end {ends}."
