"""The tables of the page: final numbers, what rliable says of them, the runs, and the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import combinations
from typing import Any

import numpy as np

from saddlepoint.report import stats
from saddlepoint.report.compared import POLICIES, Compared
from saddlepoint.report.numbers import ABSENT, decimals, fixed, number, percent, spread
from saddlepoint.report.palette import swatch
from saddlepoint.report.plots import interval_axis, interval_bar
from saddlepoint.report.runs import OWN, Environment, Run
from saddlepoint.report.scale import ticks, widen

SCORES: tuple[tuple[str, Callable[[Run, dict[str, Any]], float], float | None], ...] = (
    ("return, noise-free policy", lambda run, line: line.get("eval/return_mean", np.nan), None),
    ("return, sampled policy", lambda run, line: line.get("eval/stochastic/return_mean", np.nan), None),
    ("cost in budgets, noise-free policy", lambda run, line: stats.cost_ratio(line, "eval", run.budgets), 1.0),
    ("cost in budgets, sampled policy", lambda run, line: stats.cost_ratio(line, "eval/stochastic", run.budgets), 1.0),
)
"""what is compared: its name, its value for a run, and the level that is marked"""


def final_table(compared: Compared, styles: dict[str, int]) -> str:
    """Return, cost and violations of every method: mean ± standard deviation over seeds, or the seeds where they are few."""
    names = list(POLICIES.values())
    constraints = max(len(rows[0][0].budgets) for rows in compared.rows.values())
    heads: list[tuple[str, list[str]]] = [("method", [""]), ("seeds", [""]), ("return", names)]
    columns: list[Callable[[Run, dict[str, Any]], float]] = [
        lambda run, line, p=prefix: line.get(f"{p}/return_mean", np.nan) for prefix in POLICIES  # type: ignore[misc]
    ]  # fmt: skip
    for i in range(constraints):
        bounds = sorted({stats.cost_of(line, "eval", run.budgets)[i][1] for rows in compared.rows.values() for run, line in rows})
        words = ", ".join(number(bound, 4) for bound in bounds)
        discounted = any(run.budgets[i].discounted for rows in compared.rows.values() for run, _ in rows)
        name = ("discounted " if discounted else "") + "cost" + (f" {i}" if constraints > 1 else "")
        heads.append((f"{name} (budget {words})", names))
        columns += [
            lambda run, line, p=prefix, i=i: stats.cost_of(line, p, run.budgets)[i][0] for prefix in POLICIES  # type: ignore[misc]
        ]  # fmt: skip
    found = [compared.column(column) for column in columns]
    pairs = [found[i] | {f"{label} ": v for label, v in found[i + 1].items()} for i in range(0, len(found), 2)]
    places = [decimals([value for own in pair.values() for value in own]) for pair in pairs for _ in POLICIES]
    heads += [("episodes over budget", [*names, "in training"])] if constraints else []
    rows = []
    for label, own in compared.rows.items():
        cells = [spread(column[label].tolist(), digits) for column, digits in zip(found, places, strict=True)]
        if constraints:
            cells += [percent(float(np.mean([line.get(f"{p}/violation_rate", np.nan) for _, line in own]))) for p in POLICIES]
            cells.append(percent(float(np.mean([_in_training(run, line["step"]) for run, line in own]))))
        rows.append([swatch(label, styles[label]), str(len(own)), *cells])
    return grouped_table("Final numbers", heads, rows)


def reliability(compared: Compared, styles: dict[str, int]) -> str:
    """Interquartile means, and the probability that one method beats another, for methods with ``ENOUGH`` seeds; empty without such."""
    several = Compared(compared.step, {label: rows for label, rows in compared.rows.items() if len(rows) >= stats.ENOUGH})
    if not several.rows:
        return ""
    alone = [label for label in compared.rows if label not in several.rows]
    few = f'<p class="note">Fewer than {stats.ENOUGH} seeds, so no interval is estimated: {escape(", ".join(alone))}.</p>' if alone else ""
    parts = []
    for title, score, mark in SCORES:
        scores = {label: own[:, None] for label, own in several.column(score).items()}
        if all(np.isfinite(own).all() for own in scores.values()):
            parts.append(interval_table(f"Interquartile mean of {title}", stats.interquartile_mean(scores), styles, mark))
    returns = {label: own[:, None] for label, own in several.column(SCORES[0][1]).items()}
    parts.append(_improvement_table("Probability of a higher return, noise-free policy", returns, styles))
    seeds = min(map(len, several.rows.values()))
    rough = f" With {seeds} seeds they are rough: the bootstrap knows {seeds} values." if seeds < 10 else ""
    return (
        f'<h3>Intervals at step {compared.step:,}</h3>{few}<div class="grid2">{"".join(parts)}</div>'
        f'<p class="soft">95 % intervals of a stratified bootstrap over seeds (rliable).{rough}</p>'
    )


def across_environments(found: dict[str, Compared], styles: dict[str, int]) -> str:
    """IQM and probability of improvement over all environments of methods with ``ENOUGH`` seeds on each; else empty."""
    everywhere = set.intersection(
        *({label for label, rows in own.rows.items() if len(rows) >= stats.ENOUGH} for own in found.values())
    )
    labels = [label for label in styles if label in everywhere]
    if len(found) < 2 or len(labels) < 2:
        return ""
    seeds = min(len(own.rows[label]) for own in found.values() for label in labels)
    columns: dict[str, list[np.ndarray]] = {label: [] for label in labels}
    for own in found.values():
        scores = {label: np.array([line["eval/return_mean"] for _, line in own.rows[label][:seeds]]) for label in labels}
        for label, normal in stats.normalise(scores).items():
            columns[label].append(normal)
    matrix = {label: np.stack(own, axis=1) for label, own in columns.items()}
    iqm = interval_table("Interquartile mean of the normalised return", stats.interquartile_mean(matrix), styles, None)
    return (
        f'<section><h2 id="all">All {len(found)} environments</h2><p class="soft">Returns of the noise-free policy, normalised on each'
        " environment so that 0 is the worst and 1 the best of the runs compared here: a scale of this page only. The first"
        f" {seeds} seeds of each method on each environment. Cost is not in it.</p>"
        f'<div class="grid2">{iqm}{_improvement_table("Probability of a higher return", matrix, styles)}</div></section>'
    )


def settings_tables(env: Environment) -> str:
    """The settings in which the runs differ, and folded away all others, a column for each system."""
    runs = env.runs
    differ = ""
    if env.differing:
        differ = table("Settings that differ", ["run", "system", "seed", *env.differing], [
            [escape(str(run.folder)), escape(run.system), str(run.seed), *(escape(run.settings.get(name, ABSENT)) for name in env.differing)]
            for run in runs
        ])  # fmt: skip
    first = {run.system: run.settings for run in reversed(runs)}
    names = dict.fromkeys(name for settings in first.values() for name in settings if name not in (*env.differing, *OWN))
    rows = [[escape(name), *(escape(settings.get(name, ABSENT)) for settings in first.values())] for name in names]
    folded = table("Settings in common", ["setting", *first], rows, kind="wrapping")
    return f"{differ}<details><summary>{len(rows)} settings in which runs of a system do not differ</summary>{folded}</details>"


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False, kind: str = "") -> str:
    """A table that scrolls sideways by itself under its first column; cells are HTML already.

    ``numbers``: all but the first column are set to the right.
    """
    return grouped_table(title, [(name, [""]) for name in heads], rows, numbers, kind)


def grouped_table(
    title: str, heads: Sequence[tuple[str, list[str]]], rows: Sequence[Sequence[str]], numbers: bool = True, kind: str = ""
) -> str:
    """The same with two lines of heads: (name, names below it), [""] where there is nothing below."""
    right = ' class="number"' if numbers else ""
    two = any(len(below) > 1 for _, below in heads)
    first = "".join(_head(name, below, right if i else "", two) for i, (name, below) in enumerate(heads))
    second = "".join(f'<th scope="col"{right}>{escape(name)}</th>' for _, below in heads if len(below) > 1 for name in below)
    body = "".join(
        "<tr>" + "".join(f'<th scope="row">{cell}</th>' if i == 0 else f"<td{right}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll {kind}" role="region" tabindex="0" aria-label="{escape(title)}"><table><thead><tr>{first}</tr>'
        f"{f'<tr>{second}</tr>' if two else ''}</thead><tbody>{body}</tbody></table></div>"
    )


def interval_table(title: str, found: dict[str, stats.Interval], styles: dict[str, int], mark: float | None) -> str:
    """Numbers with their intervals, each with a bar on one scale. A row is a method, or two as ``x > y``, in the colour of the first."""
    ends = [end for interval in found.values() for end in (interval.low, interval.high)] + [mark] * (mark is not None)
    low, high = widen(min(ends), max(ends))
    round_ends = ticks(low, high, 4)
    span = (min([low, *round_ends]), max([high, *round_ends]))
    places = decimals([end for interval in found.values() for end in interval])
    rows = []
    for label, interval in found.items():
        first = styles[label.split(" > ")[0]]
        name = escape(label) if " > " in label else swatch(label, first)
        value, lower, upper = (fixed(end, places) for end in interval)
        between = f"{lower} to {upper}" if interval.high > interval.low else "no spread"  # a bootstrap of equal values knows none
        rows.append([name, f"<b>{value}</b>", between, interval_bar(interval, span, first, mark)])
    body = "".join(f'<tr><th scope="row">{a}</th><td class="number">{b}</td><td class="number">{c}</td><td>{d}</td></tr>' for a, b, c, d in rows)
    head = f'<th></th><th class="number">value</th><th class="number">95 %</th><th>{interval_axis(span)}</th>'
    return (
        f'<figure><b>{escape(title)}</b><div class="scroll interval" role="region" tabindex="0" aria-label="{escape(title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>"
    )


def _head(name: str, below: list[str], right: str, two: bool) -> str:
    if len(below) > 1:
        return f'<th scope="colgroup" class="group" colspan="{len(below)}">{escape(name)}</th>'
    return f'<th scope="col"{right}{" rowspan=2" if two else ""}>{escape(name)}</th>'


def _improvement_table(title: str, scores: dict[str, np.ndarray], styles: dict[str, int]) -> str:
    pairs = {f"{x} > {y}": (scores[x], scores[y]) for x, y in combinations(scores, 2)}
    return interval_table(title, stats.probability_of_improvement(pairs), styles, 0.5) if pairs else ""


def _in_training(run: Run, until: int) -> float:
    lines = [line for line in run.lines if line["step"] <= until and line.get("train/episodes", 0) > 0 and "train/violation_rate" in line]
    rates, episodes = (np.array([line[name] for line in lines]) for name in ("train/violation_rate", "train/episodes"))
    return stats.training_violations(rates, episodes)

