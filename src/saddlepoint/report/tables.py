"""The tables of the page: final numbers, what rliable says of them, and the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import combinations
from typing import Any

import numpy as np

from saddlepoint.report import stats
from saddlepoint.report.plots import interval_bar, number
from saddlepoint.report.runs import ABSENT, OWN, Environment, Run

Finals = dict[str, list[tuple[Run, dict[str, Any]]]]
"""label -> its runs that were evaluated, each with the line of the evaluation that is compared"""
SCORES: tuple[tuple[str, Callable[[Run, dict[str, Any]], float], float | None], ...] = (
    ("return, noise-free policy", lambda run, line: line["eval/return_mean"], None),
    ("return, stochastic policy", lambda run, line: line["eval/stochastic/return_mean"], None),
    ("cost / budget, noise-free policy", lambda run, line: stats.cost_ratio(line, "eval", run.budgets), 1.0),
    ("cost / budget, stochastic policy", lambda run, line: stats.cost_ratio(line, "eval/stochastic", run.budgets), 1.0),
)
"""what is compared: its name, its value for a run, and the level that is marked"""


def final_evaluations(env: Environment) -> tuple[int, Finals]:
    """The last step by which every run of ``env`` was evaluated, and each run's last evaluation up to then.

    Runs without an evaluation are left out; (0, {}) when no run has one.
    """
    evaluated = [run for run in env.runs if run.evaluations()]
    if not evaluated:
        return 0, {}
    step = min(run.evaluations()[-1]["step"] for run in evaluated)
    finals: Finals = {}
    for group in env.groups:
        rows = [(run, [line for line in run.evaluations() if line["step"] <= step]) for run in group.runs]
        finals[group.label] = [(run, lines[-1]) for run, lines in rows if lines]
    return step, {label: rows for label, rows in finals.items() if rows}


def final_table(finals: Finals, styles: dict[str, int]) -> str:
    """Return, cost and violations of every method: mean ± standard deviation over seeds."""
    # With hyphens at which no line is broken.
    heads = [
        "method", "seeds", "return, noise‑free", "return, stochastic", "cost, noise‑free", "cost, stochastic", "cost budget",
        "seeds over, noise‑free", "seeds over, stochastic", "episodes over, noise‑free", "episodes over, stochastic",
        "episodes over, in training",
    ]  # fmt: skip
    rows = []
    for label, own in finals.items():
        over = [sum(any(c > b for c, b in stats.cost_of(line, p, run.budgets)) for run, line in own) for p in ("eval", "eval/stochastic")]
        rows.append([
            swatch(label, styles[label]), str(len(own)), *(_spread([line[f"{p}/return_mean"] for _, line in own]) for p in ("eval", "eval/stochastic")),
            *(_costs(own, p) for p in ("eval", "eval/stochastic")), _bounds(own), *(f"{count} of {len(own)}" for count in over),
            *(_percent([line[f"{p}/violation_rate"] for _, line in own]) for p in ("eval", "eval/stochastic")),
            _percent([_in_training(run, line["step"]) for run, line in own]),
        ])  # fmt: skip
    return table("Final numbers", heads, rows, numbers=True)


def reliability(finals: Finals, styles: dict[str, int]) -> str:
    """Interquartile means, and the probability that one method beats another, on one environment. Methods of one seed are left out."""
    several = {label: rows for label, rows in finals.items() if len(rows) > 1}
    if not several:
        return '<p class="note">No method has two seeds here, so there is nothing to estimate an interval from.</p>'
    parts = []
    for title, score, mark in SCORES:
        scores = {label: np.array([[score(run, line)] for run, line in rows]) for label, rows in several.items()}
        if all(np.isfinite(own).all() for own in scores.values()):
            parts.append(interval_table(f"IQM of {title}", stats.interquartile_mean(scores), styles, mark))
    parts.append(_improvement_table("Probability of improvement in return, noise-free policy", {
        label: np.array([[line["eval/return_mean"]] for _, line in rows]) for label, rows in several.items()
    }, styles))  # fmt: skip
    alone = [label for label in finals if label not in several]
    left_out = f'<p class="note">One seed only, so left out here: {escape(", ".join(alone))}.</p>' if alone else ""
    return (
        f'{left_out}<div class="grid2">{"".join(parts)}</div><p class="soft">95 % intervals of a stratified bootstrap over seeds (rliable),'
        " which are rough with few seeds.</p>"
    )


def across_environments(finals: dict[str, Finals], styles: dict[str, int]) -> str:
    """IQM and probability of improvement over all environments of methods with two seeds or more on each; empty where that is no comparison."""
    everywhere = set.intersection(*({label for label, rows in own.items() if len(rows) > 1} for own in finals.values()))
    labels = [label for label in styles if label in everywhere]
    if len(finals) < 2 or len(labels) < 2:
        return ""
    seeds = min(len(own[label]) for own in finals.values() for label in labels)
    columns: dict[str, list[np.ndarray]] = {label: [] for label in labels}
    for own in finals.values():
        scores = {label: np.array([line["eval/return_mean"] for _, line in own[label][:seeds]]) for label in labels}
        for label, normal in stats.normalise(scores).items():
            columns[label].append(normal)
    matrix = {label: np.stack(own, axis=1) for label, own in columns.items()}
    return (
        f'<h2 id="all">All {len(finals)} environments</h2><p class="soft">Returns of the noise-free policy, normalised on each environment so that 0 is the'
        f" worst and 1 the best of the runs compared here: a scale of this page only. The first {seeds} seeds of each method on each environment;"
        " cost is not in it.</p>"
        f'<div class="grid2">{interval_table("IQM of normalised return", stats.interquartile_mean(matrix), styles, None)}'
        f"{_improvement_table('Probability of improvement in return', matrix, styles)}</div>"
    )


def settings_tables(env: Environment) -> str:
    """The settings in which the runs differ, and folded away all others, a column for each system."""
    runs = env.runs
    heads = ["run", "system", "seed", *env.differing]
    differ = table("Settings that differ", heads, [
        [escape(str(run.folder)), escape(run.system), str(run.seed), *(escape(run.settings.get(name, ABSENT)) for name in env.differing)]
        for run in runs
    ])  # fmt: skip
    first = {run.system: run.settings for run in reversed(runs)}
    names = dict.fromkeys(name for settings in first.values() for name in settings if name not in (*env.differing, *OWN))
    rows = [[escape(name), *(escape(settings.get(name, ABSENT)) for settings in first.values())] for name in names]
    folded = table("Settings in common", ["setting", *first], rows, wrap=True)
    return f"{differ}<details><summary>{len(rows)} settings in which runs of a system do not differ</summary>{folded}</details>"


def table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False, wrap: bool = False, kind: str = ""
) -> str:
    """A table that scrolls sideways by itself; cells are HTML already. ``numbers``: all but the first column to the right."""
    cell_kind = ' class="number"' if numbers else ' class="wrap"' if wrap else ""
    head = "".join(f'<th scope="col"{cell_kind if numbers and i else ""}>{escape(name)}</th>' for i, name in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f'<th scope="row">{cell}</th>' if i == 0 else f"<td{cell_kind}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll {kind}" role="region" tabindex="0" aria-label="{escape(title)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def interval_table(title: str, found: dict[str, stats.Interval], styles: dict[str, int], mark: float | None) -> str:
    """Numbers with their intervals, each with a bar on one scale. A row is a method, or two as ``x > y``, in the colour of the first."""
    ends = [end for interval in found.values() for end in (interval.low, interval.high)] + [mark] * (mark is not None)
    span = (min(ends), max(ends))
    rows = []
    for label, interval in found.items():
        first = styles[label.split(" > ")[0]]
        name = escape(label) if " > " in label else swatch(label, first)
        value, low, high = (number(end, 3) for end in interval)
        rows.append([name, f"{value} [{low}, {high}]", interval_bar(interval, span, first, mark)])
    heads = ["", "value [95 %]", f"{number(span[0], 3)} to {number(span[1], 3)}"]
    return f"<figure><b>{escape(title)}</b>{table(title, heads, rows, kind='interval')}</figure>"


def swatch(label: str, style: int) -> str:
    """A label with the colour of its lines."""
    return f'<span class="swatch s{style % 7}{" dashed" * (style >= 7)}"></span>{escape(label)}'


def _improvement_table(title: str, scores: dict[str, np.ndarray], styles: dict[str, int]) -> str:
    pairs = {f"{x} > {y}": (scores[x], scores[y]) for x, y in combinations(scores, 2)}
    return interval_table(title, stats.probability_of_improvement(pairs), styles, 0.5) if pairs else ""


def _costs(rows: list[tuple[Run, dict[str, Any]]], prefix: str) -> str:
    constraints = len(rows[0][0].budgets)
    return "; ".join(_spread([stats.cost_of(line, prefix, run.budgets)[i][0] for run, line in rows]) for i in range(constraints)) or "–"


def _bounds(rows: list[tuple[Run, dict[str, Any]]]) -> str:
    run, line = rows[0]
    words = "; ".join(number(bound) for _, bound in stats.cost_of(line, "eval", run.budgets))
    return words + " discounted" * any(budget.discounted for budget in run.budgets)


def _in_training(run: Run, until: int) -> float:
    lines = [line for line in run.lines if line["step"] <= until and line.get("train/episodes", 0) > 0]
    rates, episodes = (np.array([line[name] for line in lines]) for name in ("train/violation_rate", "train/episodes"))
    return stats.training_violations(rates, episodes)


def _spread(values: list[float]) -> str:
    return number(float(np.mean(values))) + (f" ± {number(float(np.std(values, ddof=1)), 2)}" if len(values) > 1 else "")


def _percent(values: list[float]) -> str:
    mean = 100 * float(np.mean(values))
    return f"{mean:.1f} %" if np.isfinite(mean) else "–"
