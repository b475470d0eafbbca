"""The strip at the top: each method with its return, its cost as a bar against the budget, and whether it keeps it."""

from __future__ import annotations

from html import escape

import numpy as np

from saddlepoint.report import stats
from saddlepoint.report.compared import POLICIES, Compared
from saddlepoint.report.numbers import decimals, fixed, number, plural
from saddlepoint.report.palette import COLOURS, swatch
from saddlepoint.report.scale import Scale, budget_scale, tick_labels, widen

BADGES = {"ok": "✓", "over": "✕", "mixed": "◐", "none": ""}


def _returns(compared: Compared, prefix: str) -> dict[str, np.ndarray]:
    """The returns of each method's seeds, for the policy that ``prefix`` names."""
    return compared.column(lambda run, line: line.get(f"{prefix}/return_mean", np.nan))


def verdict_strip(compared: Compared, styles: dict[str, int]) -> str:
    """One row a method, those that keep the budget first and then by return; empty where nothing was evaluated."""
    if not compared.rows:
        return ""
    returns = {prefix: _returns(compared, prefix) for prefix in POLICIES}
    ordered = sorted(compared.rows, key=lambda label: (-_share(compared, label), -returns["eval"][label].mean()))
    every = np.concatenate([values for own in returns.values() for values in own.values()])
    places = decimals(every.tolist())
    span = Scale(*widen(float(np.nanmin(every)), float(np.nanmax(every))), 2.0, 98.0)
    budgets = budget_scale(_largest(compared), 0.0, 100.0)
    rows = "".join(
        f'<article class="row s{styles[label] % COLOURS} m{styles[label]}">{_who(compared, label, styles)}{_badge(compared, label)}'
        f'<div class="earn">{_earned(returns, label, places, span)}</div>{_spent(compared, label, budgets)}</article>'
        for label in ordered
    )
    return f'<p class="lead">{_lead(compared, ordered, returns["eval"], places)}</p><div class="verdict">{rows}</div>'


def _share(compared: Compared, label: str) -> float:
    return compared.keeping(label) / len(compared.rows[label])


def _lead(compared: Compared, ordered: list[str], returns: dict[str, np.ndarray], places: int) -> str:
    """The verdict in one sentence; nothing is claimed of methods that keep the budget in some seeds only."""
    if not any(run.budgets for rows in compared.rows.values() for run, _ in rows):
        return "These runs have no cost budget."
    keeping = [label for label in ordered if _share(compared, label) == 1]
    if len(compared.rows) == 1:
        (label,) = ordered
        seeds, kept = len(compared.rows[label]), compared.keeping(label)
        if seeds == 1:
            return f"<b>{escape(label)}</b> {'keeps' if kept else 'does not keep'} its budget (one seed)."
        return f"<b>{escape(label)}</b> keeps its budget in {kept} of {seeds} seeds."
    if not keeping:
        return "No method keeps its budget in all of its seeds."
    best = max(keeping, key=lambda label: returns[label].mean())
    earned = fixed(float(returns[best].mean()), places)
    others = f"the {len(keeping)} methods" if len(keeping) > 1 else "all methods"
    words = "earns most" if len(keeping) > 1 else "is the only one"
    seeds = len(compared.rows[best])
    how = "one seed" if seeds == 1 else f"mean of {seeds} seeds"
    return f"Of {others} <b>{escape(best)}</b> {words} within the budget in every seed: return {earned} ({how})."


def _who(compared: Compared, label: str, styles: dict[str, int]) -> str:
    return f'<div class="who"><b>{swatch(label, styles[label])}</b><small>{plural(len(compared.rows[label]), "seed")}</small></div>'


def _badge(compared: Compared, label: str) -> str:
    rows = compared.rows[label]
    if not rows[0][0].budgets:
        return '<div class="badge none">no budget</div>'
    seeds, kept = len(rows), compared.keeping(label)
    kind = "ok" if kept == seeds else "over" if kept == 0 else "mixed"
    words = {"ok": "within budget", "over": "over budget", "mixed": f"{kept} of {seeds} seeds within"}[kind]
    each = {name: compared.within(label, prefix) for prefix, name in POLICIES.items()}
    if seeds == 1:
        details = [f"{name} {'within' if count else 'over'}" for name, count in each.items()]
    else:
        details = [f"{name} {count} of {seeds} within" for name, count in each.items()]
    small = "".join(f"<small>{detail}</small>" for detail in details)
    return f'<div class="badge {kind}"><span>{BADGES[kind]} {words}</span>{small}</div>'


def _earned(returns: dict[str, dict[str, np.ndarray]], label: str, places: int, span: Scale) -> str:
    noise_free, sampled = (own[label] for own in returns.values())
    dots = "".join(f'<i class="at" style="left:{float(span(value)):.1f}%"></i>' for value in noise_free)
    mean = f'<i class="mean" style="left:{float(span(noise_free.mean())):.1f}%"></i>' if len(noise_free) > 1 else ""
    return (
        f'<small>return</small><b class="big">{fixed(float(noise_free.mean()), places)}</b>'
        f'<small>sampled {fixed(float(sampled.mean()), places)}</small>'
        f'<div class="dots" title="seeds, noise-free: {", ".join(fixed(value, places) for value in noise_free)}">{dots}{mean}</div>'
        f'<div class="ends" aria-hidden="true"><i>{fixed(span.low, places)}</i><i>{fixed(span.high, places)}</i></div>'
    )


def _spent(compared: Compared, label: str, scale: Scale) -> str:
    """A bar against the budget for each constraint and policy."""
    rows = compared.rows[label]
    constraints = len(rows[0][0].budgets)
    meters = []
    for i in range(constraints):
        for prefix, name in POLICIES.items():
            pairs = [stats.cost_of(line, prefix, run.budgets)[i] for run, line in rows]
            if not np.isfinite([cost for cost, _ in pairs]).all():
                continue
            bound = pairs[0][1]
            which = f" {i}" if constraints > 1 else ""
            kind = "discounted cost" if rows[0][0].budgets[i].discounted else "cost"
            meters.append(_meter(f"{kind}{which}, {name}", [cost for cost, _ in pairs], bound, scale))
    axis = _axis(scale) if meters else ""
    return f'<div class="spend">{"".join(meters)}{axis}</div>'


def _meter(name: str, costs: list[float], bound: float, scale: Scale) -> str:
    mean = float(np.mean(costs))
    value = fixed(mean, decimals([*costs, bound]))
    head = f'<span>{escape(name)}</span><span class="value">{value} of {number(bound, 4)}</span>'
    if bound <= 0:
        return f'<div class="meter"><div class="head">{head}</div></div>'
    at = [float(scale(cost / bound)) for cost in costs]
    dots = "".join(f'<i class="at" style="left:{min(x, 100):.1f}%"></i>' for x in at) if len(at) > 1 else ""
    budget = float(scale(1.0))
    return (
        f'<div class="meter"><div class="head">{head}</div><div class="track" style="--budget:{budget:.1f}%"'
        f' role="img" aria-label="{number(mean / bound)} of the budget">'
        f'<i class="fill" style="width:{min(float(scale(mean / bound)), 100):.1f}%"></i>{dots}<i class="limit"></i></div></div>'
    )


def _axis(scale: Scale) -> str:
    """Ticks below the bars, in budgets."""
    parts = []
    shown = [tick for tick in scale.ticks(4) if not scale.bent or tick not in (0.5,)]
    for tick, text in zip(shown, tick_labels(shown), strict=True):
        at = float(scale(tick))
        words = "budget" if tick == 1 else f"{text}×" if tick else "0"
        if tick != 1 and abs(at - float(scale(1.0))) < 14:
            continue
        edge = "left" if at < 4 else "right" if at > 93 else "centre"
        parts.append(f'<i class="{edge}" style="left:{at:.1f}%">{words}</i>')
    return f'<div class="ticks" aria-hidden="true">{"".join(parts)}</div>'


def _largest(compared: Compared) -> float:
    ratios = [
        cost / bound
        for rows in compared.rows.values() for run, line in rows for prefix in POLICIES
        for cost, bound in stats.cost_of(line, prefix, run.budgets) if bound > 0 and np.isfinite(cost)
    ]  # fmt: skip
    return max(ratios, default=1.0)
