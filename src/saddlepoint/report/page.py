"""The page itself: one HTML file that asks nothing of any other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from html import escape

from saddlepoint import __version__
from saddlepoint.report.assets import SCRIPT, STYLE
from saddlepoint.report.curves import FEW, learning_curves
from saddlepoint.report.media import Landscapes, clips
from saddlepoint.report.runs import BUDGET, Environment, Run, group_runs
from saddlepoint.report.tables import (
    Finals,
    across_environments,
    final_evaluations,
    final_table,
    reliability,
    settings_tables,
    swatch,
)


def build_page(runs: Sequence[Run], landscapes: Landscapes | None, reload_seconds: int | None = None) -> str:
    """The report of ``runs`` as HTML; without ``landscapes`` it has no energies. With ``reload_seconds`` it reloads itself."""
    environments = group_runs(runs)
    labels = sorted({group.label for env in environments for group in env.groups})
    styles = {label: number for number, label in enumerate(labels)}
    finals = {env.name: final_evaluations(env) for env in environments}
    evaluated = {name: found for name, (_, found) in finals.items() if found}
    overall = across_environments(evaluated, styles) if evaluated else ""
    sections = [
        _environment(env, f"env{i}", *finals[env.name], styles, landscapes) for i, env in enumerate(environments)
    ]
    links = [f'<li><a href="#env{i}">{escape(env.name)}</a></li>' for i, env in enumerate(environments)]
    links += ['<li><a href="#all">All environments</a></li>'] if overall else []
    reload = f'<meta http-equiv="refresh" content="{reload_seconds}">' if reload_seconds else ""
    follows = f" It follows running runs and reloads every {reload_seconds} s." if reload_seconds else ""
    return (
        f'<!doctype html><html lang="en" data-axis="steps"><head><meta charset="utf-8">{reload}'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>saddlepoint: {escape(', '.join(env.name for env in environments))}</title><style>{STYLE}</style></head><body>"
        '<header><h1>Comparison of runs</h1><div role="group" aria-label="How the page is shown">'
        '<button type="button" data-axis="steps" aria-pressed="true">Steps</button> '
        '<button type="button" data-axis="wall" aria-pressed="false">Wall-clock</button> '
        '<button type="button" id="theme">Dark page</button></div></header>'
        f'<p class="soft">{len(runs)} runs; saddlepoint {__version__}, {time.strftime("%Y-%m-%d %H:%M")}.{follows}'
        " Lines are means over seeds and bands Student’s 95 % intervals of the mean; with one or two seeds each seed is a thin line."
        " Point at a chart, or focus it and use the arrow keys, for its values.</p>"
        f"<nav aria-label=\"Environments\"><ul>{''.join(links)}</ul></nav><main>{''.join(sections)}{overall}</main>"
        f'<div id="tip" role="status" hidden></div><script>{SCRIPT}</script></body></html>'
    )


def notes(env: Environment, step: int) -> list[str]:
    """What a reader must know before comparing the runs of an environment, in sentences."""
    found = []
    budgets = {run.settings[BUDGET] for run in env.runs}
    if len(budgets) > 1:
        found.append("The runs have different cost budgets, so their returns are not those of one problem: " + "; ".join(sorted(budgets)) + ".")
    lone = [group.label for group in env.groups if len(group.runs) == 1]
    if lone:
        found.append(f"One seed only, which says nothing of the spread: {', '.join(lone)}.")
    if pairs := [group.label for group in env.groups if len(group.runs) == FEW]:
        found.append(f"Two seeds only: {', '.join(pairs)}.")
    for group in env.groups:
        twice = [str(seed) for seed, times in Counter(run.seed for run in group.runs).items() if times > 1]
        if twice:
            found.append(f"{group.label} has several runs of seed {', '.join(twice)}, which are not independent.")
    empty = [str(run.folder) for run in env.runs if not run.evaluations()]
    if empty:
        found.append(f"Not yet evaluated, so not in the tables: {', '.join(empty)}.")
    longer = [run for run in env.runs if run.evaluations() and run.evaluations()[-1]["step"] > step]
    if longer:
        found.append(
            f"The tables compare evaluations up to step {step:,}, the last that every evaluated run has reached;"
            f" {len(longer)} of {len(env.runs)} runs went further, as the curves show."
        )
    return found


def _environment(
    env: Environment, anchor: str, step: int, finals: Finals, styles: dict[str, int], landscapes: Landscapes | None
) -> str:
    legend = "".join(
        f"<li>{swatch(g.label, styles[g.label])} ({len(g.runs)} {'seed' if len(g.runs) == 1 else 'seeds'})</li>" for g in env.groups
    )
    budgets = " and ".join(budget.describe() for budget in env.runs[0].budgets)
    parts = [
        f'<section><h2 id="{anchor}">{escape(env.name)}</h2>',
        f'<p class="soft">Cost budget: {escape(budgets or "none")}.</p>',
        *(f'<p class="note">{escape(sentence)}</p>' for sentence in notes(env, step)),
        f'<ul class="legend">{legend}</ul>{learning_curves(env, styles)}',
    ]
    if finals:
        episodes = sorted({int(line["eval/episodes"]) for rows in finals.values() for _, line in rows})
        parts += [
            f"<h3>Evaluation at step {step:,}</h3>{final_table(finals, styles)}",
            f'<p class="soft">Mean ± standard deviation over seeds; each seed plays {" or ".join(map(str, episodes))} whole episodes with each'
            " policy. “Over” means over the cost budget: seeds whose mean cost is, and the share of single episodes; in training those are all"
            " episodes up to that step, the random ones at its start included.</p>",
            f"<h3>Interquartile mean and probability of improvement at step {step:,}</h3>{reliability(finals, styles)}",
        ]
    parts += [landscapes.section(env, styles) if landscapes else "", clips(env, styles), f"<h3>Settings</h3>{settings_tables(env)}</section>"]
    return "".join(parts)
