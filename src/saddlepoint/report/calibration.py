"""How well the critics know what an episode earns and costs: their estimates beside what was measured."""

from __future__ import annotations

import re

import numpy as np

from saddlepoint.report.numbers import decimals, fixed
from saddlepoint.report.palette import swatch
from saddlepoint.report.plots import scatter
from saddlepoint.report.runs import Environment, Run
from saddlepoint.report.tables import table

PREFIX = "eval/calibration/"
PARTS = {
    "predicted": "predicted", "measured": "measured", "correlation": "correlation",
    "error_in_costly_states": "error in costly states",
}  # fmt: skip
"""end of the metric's name -> head of the column"""
NAMED = re.compile(rf"{PREFIX}(\w+?)_predicted(_\d+)?$")


def calibration(env: Environment, styles: dict[str, int]) -> str:
    """A chart of predicted against measured and a table for each quantity; empty where no run measured any."""
    parts = []
    for quantity, end in _quantities(env.runs):
        name = f"{quantity}{end}".capitalize().replace("_", " of constraint ")
        points = [
            (f"{group.label}, seed {run.seed}", styles[group.label], *pair)
            for group in env.groups for run in group.runs if len((pair := _pairs(run, quantity, end))[0])
        ]  # fmt: skip
        if not points:
            continue
        chart = scatter(points, ("measured", "predicted"), _alt(name, points))
        parts.append(
            f'<figure><b>{name}</b> <span class="soft">each dot an evaluation, the newest full</span>{chart}</figure>'
            f"<div>{_newest(env, quantity, end, styles)}</div>"
        )
    if not parts:
        return ""
    return (
        '<h3>Calibration of the critics</h3><p class="soft">What the critics expect of an episode from states that the policy meets,'
        " beside the discounted sum that followed. Above the line they expect too much, below it too little; a cost critic below the"
        f' line lets the policy overspend.</p><div class="grid2">{"".join(parts)}</div>'
    )


def _quantities(runs: list[Run]) -> list[tuple[str, str]]:
    """(quantity, end of the name) of all calibrations: ("cost", ""), ("cost_0", "") and so on, costs first."""
    names = {name for run in runs for line in run.evaluations() for name in line}
    found = {(match[1], match[2] or "") for name in names if (match := NAMED.match(name))}
    return sorted(found, key=lambda pair: (not pair[0].startswith("cost"), pair))


def _pairs(run: Run, quantity: str, end: str) -> tuple[np.ndarray, np.ndarray]:
    """Measured and predicted of the evaluations that have both as finite numbers, each (evaluations,)."""
    names = [f"{PREFIX}{quantity}_{part}{end}" for part in ("measured", "predicted")]
    rows = [[line[name] for name in names] for line in run.evaluations() if all(name in line for name in names)]
    table = np.array(rows, float).reshape(-1, 2)
    table = table[np.isfinite(table).all(1)]
    return table[:, 0], table[:, 1]


def _newest(env: Environment, quantity: str, end: str, styles: dict[str, int]) -> str:
    """The newest numbers of every run that has some."""
    names = {part: f"{PREFIX}{quantity}_{part}{end}" for part in PARTS}
    found = []
    for group in env.groups:
        for run in group.runs:
            lines = [line for line in run.evaluations() if names["predicted"] in line]
            if lines:
                found.append((group.label, run, lines[-1]))
    shown = [part for part in PARTS if any(names[part] in line for *_, line in found)]
    columns = {part: [float(line.get(names[part], np.nan)) for *_, line in found] for part in shown}
    places = {part: 2 if part == "correlation" else decimals(columns["predicted"] + columns.get("measured", [])) for part in shown}
    rows = [
        [swatch(label, styles[label]), str(run.seed), *(fixed(columns[part][i], places[part]) for part in shown)]
        for i, (label, run, _) in enumerate(found)
    ]
    return table(f"Calibration, {quantity}{end}", ["method", "seed", *(PARTS[part] for part in shown)], rows, numbers=True, kind="narrow")


def _alt(name: str, points: list[tuple[str, int, np.ndarray, np.ndarray]]) -> str:
    newest = "; ".join(f"{label}: predicted {y[-1]:.3g} of measured {x[-1]:.3g}" for label, _, x, y in points)
    return f"{name}: predicted against measured. Newest: {newest}."
