"""The page itself: one HTML file that asks nothing of any other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from saddlepoint import __version__
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.report.calibration import calibration
from saddlepoint.report.compared import Compared, common_step, compare, notes
from saddlepoint.report.curves import learning_curves
from saddlepoint.report.media import Landscapes, clips
from saddlepoint.report.numbers import number, plural
from saddlepoint.report.palette import styles as named_styles
from saddlepoint.report.palette import swatch
from saddlepoint.report.runs import Environment, Run, group_runs
from saddlepoint.report.runtable import run_table
from saddlepoint.report.stats import ENOUGH
from saddlepoint.report.tables import across_environments, final_table, reliability, settings_tables
from saddlepoint.report.verdict import verdict_strip

MANY_RUNS = 8
"""on one environment: from here on the lines of single seeds beside a mean are shown on request only"""
CHOICES = {
    "policy": ("Policy", {"eval": "Noise-free", "sampled": "Sampled", "train": "Training"}),
    "axis": ("Horizontal axis", {"steps": "Steps", "wall": "Wall-clock"}),
    "seeds": ("Seeds", {"on": "Seeds", "off": "Means"}),
}
"""attribute of the page -> what it is about, and its values with the words on their buttons"""


def build_page(
    runs: Sequence[Run], landscapes: Landscapes | None, reload_seconds: int | None = None, page: Path = Path("report.html")
) -> str:
    """The report of ``runs`` as HTML for the file ``page``; without ``landscapes`` it has no energies.

    With ``reload_seconds`` it reloads itself.
    """
    environments = group_runs(runs)
    styles = named_styles(group.label for env in environments for group in env.groups)
    compared = {env.name: compare(env) for env in environments}
    evaluated = {name: found for name, found in compared.items() if found.rows}
    overall = across_environments(evaluated, styles) if evaluated else ""
    sections = [
        _environment(env, f"env{i}" if len(environments) > 1 else None, compared[env.name], styles, landscapes, page)
        for i, env in enumerate(environments)
    ]
    reload = f'<meta http-equiv="refresh" content="{reload_seconds}">' if reload_seconds else ""
    seeds = "off" if max(len(env.runs) for env in environments) > MANY_RUNS else "on"
    name = environments[0].name if len(environments) == 1 else f"{len(environments)} environments"
    return (
        f'<!doctype html><html lang="en" data-axis="steps" data-policy="eval" data-seeds="{seeds}"><head><meta charset="utf-8">{reload}'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(name)}: saddlepoint report</title><style>{_own('page.css')}</style></head><body>"
        f"{_head(runs, environments, len(styles), bool(overall), reload_seconds, name)}{_bar(environments, styles)}"
        f'<main>{"".join(sections)}{overall}</main>'
        f'<div id="tip" role="status" hidden></div><script>{_own("page.js")}</script></body></html>'
    )


def _head(
    runs: Sequence[Run], environments: Sequence[Environment], methods: int, overall: bool, reload_seconds: int | None, name: str
) -> str:
    follows = f" It follows running runs and reloads every {reload_seconds} s." if reload_seconds else ""
    links = [f'<li><a href="#env{i}">{escape(env.name)}</a></li>' for i, env in enumerate(environments)]
    links += ['<li><a href="#all">All environments</a></li>'] if overall else []
    contents = f'<nav aria-label="Environments"><ul>{"".join(links)}</ul></nav>' if len(links) > 1 else ""
    return (
        f'<header><h1>{escape(name)}</h1><button type="button" id="theme">Dark page</button></header>'
        f'<p class="soft">{plural(len(runs), "run")} of {plural(methods, "method")}. saddlepoint {__version__},'
        f' {time.strftime("%Y-%m-%d %H:%M")}.{follows}</p>{contents}'
    )


def _bar(environments: Sequence[Environment], styles: dict[str, int]) -> str:
    """Legend and choices, which stay in view."""
    seeds: dict[str, int] = {}
    for env in environments:
        for group in env.groups:
            seeds[group.label] = max(seeds.get(group.label, 0), len(group.runs))
    legend = "".join(
        f'<button type="button" class="method" data-method="{styles[label]}" aria-pressed="true" title="show or hide {escape(label)}">'
        f"{swatch(label, styles[label])}</button>"
        for label in styles
    )
    hidden = {"seeds"} if max(seeds.values()) < ENOUGH else set()  # there is no mean, so nothing to choose
    choices = "".join(
        f'<span class="choice" role="group" aria-label="{escape(about)}">'
        + "".join(
            f'<button type="button" data-name="{name}" data-value="{value}" aria-pressed="false">{words}</button>'
            for value, words in values.items()
        )
        + "</span>"
        for name, (about, values) in CHOICES.items()
        if name not in hidden
    )
    return f'<div id="bar"><div class="legend">{legend}</div><div class="choices">{choices}</div></div>'


def _environment(
    env: Environment, anchor: str | None, compared: Compared, styles: dict[str, int], landscapes: Landscapes | None, page: Path
) -> str:
    head = f'<h2 id="{anchor}">{escape(env.name)}</h2>' if anchor else ""  # a lone environment is the page's own heading
    parts = [f"<section>{head}{_budgets(env.runs[0].budgets)}"]
    parts.append(f'{verdict_strip(compared, styles)}<p class="soft step">{escape(common_step(env, compared))}</p>')
    parts += [f'<p class="note">{escape(sentence)}</p>' for sentence in notes(env)]
    parts.append(f"<h3>Learning curves</h3>{_reading(env)}{learning_curves(env, styles)}")
    parts.append(calibration(env, styles))
    if compared.rows:
        episodes = sorted({int(line["eval/episodes"]) for rows in compared.rows.values() for _, line in rows if "eval/episodes" in line})
        plays = f"; each seed plays {' or '.join(map(str, episodes))} whole episodes with each policy" if episodes else ""
        parts.append(
            f"<h3>At step {compared.step:,}</h3>{final_table(compared, styles)}"
            f'<p class="soft">Mean ± standard deviation over seeds, or the seeds themselves where they are fewer than {ENOUGH}{plays}.'
            " Episodes over budget in training are all up to that step, the random ones at its start included.</p>"
            f"{reliability(compared, styles)}"
        )
    parts += [landscapes.section(env, styles) if landscapes else "", clips(env, styles, page), run_table(env, styles, page)]
    parts.append(f"<h3>Settings</h3>{settings_tables(env)}</section>")
    return "".join(parts)


def _reading(env: Environment) -> str:
    """How to read the charts, as far as it applies here."""
    banded = [group for group in env.groups if len(group.runs) >= ENOUGH]
    lines = "Lines are means over seeds, bands 95 % intervals of the mean (Student’s t); " if banded else ""
    single = "single seeds are thin and dashed each in their own way." if banded else "Each line is one seed, named at its end."
    return f'<p class="soft">{lines}{single} Point at a chart, or focus it and use the arrow keys, for its values.</p>'


def _budgets(budgets: tuple[CostBudget, ...]) -> str:
    """The budgets in one line, and folded away what they are in other units."""
    if not budgets:
        return '<p class="soft">No cost budget.</p>'
    each = [
        f"at most {number(b.limit, 4)} {'a step' if b.per == 'step' else 'an episode'}{', discounted' if b.discounted else ''}"
        for b in budgets
    ]
    words = each[0] if len(each) == 1 else "; ".join(f"cost {i} {own}" for i, own in enumerate(each))
    plural_budget = "Budget" if len(each) == 1 else "Budgets"
    rows = "".join(
        f"<li>at most {number(b.limit, 4)} per {b.per}, {'discounted' if b.discounted else 'undiscounted'} = {number(b.episode, 4)} an"
        f" episode of {b.horizon} steps = {number(b.step, 4)} a step = {number(b.critic, 4)} in discounted sum (γ = {b.gamma:g})</li>"
        for b in budgets
    )
    return (
        f'<details class="budget"><summary>{plural_budget}: {escape(words)}</summary>'
        f'<p class="soft">The same in other units:</p><ul>{rows}</ul></details>'
    )


def _own(name: str) -> str:
    return files("saddlepoint.report").joinpath(name).read_text(encoding="utf-8")
