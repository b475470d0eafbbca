"""Which learning curves an environment gets, and how the seeds of a method become lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

import numpy as np

from saddlepoint.report.plots import Curve, line_chart, number, value_range
from saddlepoint.report.runs import Environment, Group, Run
from saddlepoint.report.stats import align, cost_name, mean_interval, thin

Axis = Literal["steps", "wall"]
SOURCES = {"eval": "noise-free policy", "eval/stochastic": "stochastic policy", "train": "during training"}
FEW = 2
"""so many seeds are drawn one by one, without mean and interval"""


@dataclass(frozen=True)
class Panel:
    """One chart: a metric, which may be called differently in runs with other budgets."""

    title: str
    metric: Callable[[Run], str | None]


@dataclass(frozen=True)
class Row:
    """Panels that share their vertical axis."""

    panels: list[Panel]
    floor: float = -np.inf
    ceiling: float = np.inf
    constraint: int | None = None
    """whose budget is marked"""


def learning_curves(env: Environment, styles: dict[str, int]) -> str:
    """All charts of an environment as HTML, each against steps and against wall-clock; ``styles`` number the labels."""
    divisor, unit = _wall_unit(env)
    axes: tuple[tuple[Axis, str, float], ...] = (
        ("steps", "environment steps", 1.0), ("wall", f"wall-clock ({unit})", divisor),
    )  # fmt: skip
    figures = []
    for row in _rows(env):
        for axis, label, scale in axes:
            drawn = [_panel_curves(env, panel, row, styles, axis, scale) for panel in row.panels]
            together = [curve for curves in drawn for curve in curves]
            if not together:
                continue
            marks = _budget_marks(env, row.constraint)
            across = (0.0, max(float(curve.x[-1]) for curve in together))
            up = value_range(together, [level for level, _ in marks])
            for panel, curves in zip(row.panels, drawn, strict=True):
                if curves:
                    chart = line_chart(curves, label, _alt(panel.title, label, curves), across, up, marks)
                    figures.append(f'<figure class="by-{axis}"><b>{escape(panel.title)}</b>{chart}</figure>')
    return f'<div class="grid3">{"".join(figures)}</div>' if figures else "<p>There are no numbers yet.</p>"


def group_curves(group: Group, metric: Callable[[Run], str | None], style: int, axis: Axis, scale: float) -> list[Curve]:
    """The lines of one method. With one or two seeds a thin line each; with more the mean where all of them have values,
    with Student's 95 % interval, and a thin line each for what single seeds have beyond that."""
    series: list[tuple[Run, np.ndarray, np.ndarray]] = []
    for run in group.runs:
        name = metric(run)
        steps, wall, values = run.series(name) if name else (np.zeros(0),) * 3
        if len(values):
            series.append((run, steps if axis == "steps" else wall / scale, values))
    single = [Curve(f"{group.label}, seed {run.seed}", style, thin(x), thin(y), thin=True) for run, x, y in series]
    if len(series) <= FEW:
        return single
    x, values = align([(x, y) for _, x, y in series])
    if not len(x):
        return single
    interval = mean_interval(values)
    mean = Curve(f"{group.label}, mean of {len(series)} seeds", style, x, interval.value, (interval.low, interval.high))
    # On the wall-clock axis every seed ends at another moment: only what goes on beyond a tenth of it is a longer run.
    return [mean, *(_from(curve, x[-1]) for curve in single if curve.x[-1] > 1.1 * x[-1])]


def _from(curve: Curve, start: float) -> Curve:
    """What a curve has from ``start`` on, with its interpolated value there."""
    later = curve.x > start
    first = np.interp(start, curve.x, curve.y)
    return replace(curve, x=np.concatenate([[start], curve.x[later]]), y=np.concatenate([[first], curve.y[later]]))


def _panel_curves(
    env: Environment, panel: Panel, row: Row, styles: dict[str, int], axis: Axis, scale: float
) -> list[Curve]:
    curves = [c for group in env.groups for c in group_curves(group, panel.metric, styles[group.label], axis, scale)]
    # Student's interval knows nothing of bounds; a share above 1 or a cost below 0 would only mislead.
    return [
        replace(c, band=(c.band[0].clip(row.floor, row.ceiling), c.band[1].clip(row.floor, row.ceiling))) if c.band else c
        for c in curves
    ]


def _rows(env: Environment) -> list[Row]:
    constraints = max(len(run.budgets) for run in env.runs)
    rows = [Row([Panel(f"Return, {words}", _same(f"{prefix}/return_mean")) for prefix, words in SOURCES.items()])]
    for i in range(constraints):
        which = f" {i}" if constraints > 1 else ""
        discounted = {run.budgets[i].discounted for run in env.runs if i < len(run.budgets)}
        kind = "Cost (discounted where its budget is)" if len(discounted) > 1 else "Discounted cost" if True in discounted else "Cost"
        name = f"{kind}{which}"
        panels = [Panel(f"{name}, {words}", _cost_metric(prefix, i)) for prefix, words in SOURCES.items()]
        rows.append(Row(panels, floor=0.0, constraint=i))
    panels = [Panel(f"Episodes over budget, {words}", _same(f"{prefix}/violation_rate")) for prefix, words in SOURCES.items()]
    rows.append(Row(panels, floor=0.0, ceiling=1.0))
    for i in range(constraints):
        end = f"_{i}" if constraints > 1 else ""
        which = f" of constraint {i}" if constraints > 1 else ""
        panels = [
            Panel(f"Multiplier λ{which}", _same(f"train/multiplier{end}")),
            Panel(f"Effective multiplier, the slope of the penalty{which}", _same(f"train/effective_multiplier{end}")),
        ]
        rows.append(Row(panels, floor=0.0))
    return rows


def _same(name: str) -> Callable[[Run], str | None]:
    return lambda run: name


def _cost_metric(prefix: str, constraint: int) -> Callable[[Run], str | None]:
    return lambda run: cost_name(prefix, run.budgets, constraint) if constraint < len(run.budgets) else None


def _budget_marks(env: Environment, constraint: int | None) -> list[tuple[float, str]]:
    if constraint is None:
        return []
    budgets = [run.budgets[constraint] for run in env.runs if constraint < len(run.budgets)]
    levels = sorted({budget.critic if budget.discounted else budget.episode for budget in budgets})
    return [(level, f"budget {number(level)}") for level in levels]


def _wall_unit(env: Environment) -> tuple[float, str]:
    longest = max((run.lines[-1]["wall_s"] for run in env.runs if run.lines), default=0.0)
    return (3600.0, "hours") if longest > 7200 else (60.0, "minutes") if longest > 120 else (1.0, "seconds")


def _alt(title: str, axis: str, curves: list[Curve]) -> str:
    ends = "; ".join(f"{curve.label}: {number(curve.y[-1])} at {number(curve.x[-1])}" for curve in curves)
    return f"{title} against {axis}. At the end {ends}."
