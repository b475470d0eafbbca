"""What is compared: each run's last evaluation up to the step that all evaluated runs have reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from saddlepoint.report import stats
from saddlepoint.report.numbers import plural
from saddlepoint.report.runs import BUDGET, Environment, Run

Row = tuple[Run, dict[str, Any]]
"""a run with the line of its evaluation that is compared"""
POLICIES = {"eval": "noise-free", "eval/stochastic": "sampled"}
"""prefix of the metrics -> what the policy is called on the page"""


@dataclass(frozen=True)
class Compared:
    """The evaluations of one environment that are compared."""

    step: int
    rows: dict[str, list[Row]]
    """label -> its runs that were evaluated; empty when none was"""

    def column(self, value: Callable[[Run, dict[str, Any]], float]) -> dict[str, np.ndarray]:
        """``value`` of every run, (runs,) for each label."""
        return {label: np.array([value(run, line) for run, line in rows]) for label, rows in self.rows.items()}

    def within(self, label: str, prefix: str) -> int:
        """How many seeds keep every budget with the policy of ``prefix``, in the mean over their episodes."""
        return sum(stats.within(line, prefix, run.budgets) for run, line in self.rows[label])

    def keeping(self, label: str) -> int:
        """How many seeds keep every budget with the policies that it binds, which are both unless the run says otherwise."""
        return sum(all(stats.within(line, p, run.budgets) for p in run.binding) for run, line in self.rows[label])


def compare(env: Environment) -> Compared:
    """The last step by which every run of ``env`` was evaluated, and each run's last evaluation up to then.

    Runs without an evaluation are left out; step 0 and no rows when no run has one.
    """
    evaluated = [run for run in env.runs if run.evaluations()]
    if not evaluated:
        return Compared(0, {})
    step = min(run.evaluations()[-1]["step"] for run in evaluated)
    rows: dict[str, list[Row]] = {}
    for group in env.groups:
        upto = [(run, [line for line in run.evaluations() if line["step"] <= step]) for run in group.runs]
        rows[group.label] = [(run, lines[-1]) for run, lines in upto if lines]
    return Compared(step, {label: own for label, own in rows.items() if own})


def common_step(env: Environment, compared: Compared) -> str:
    """One sentence on the step at which runs are compared, which names the runs that set it where others went further."""
    evaluated = [run for run in env.runs if run.evaluations()]
    if not evaluated:
        return "No run has been evaluated yet."
    last = [run.evaluations()[-1]["step"] for run in evaluated]
    if len(evaluated) == 1:
        return f"Evaluation at step {compared.step:,}."
    if max(last) == compared.step:
        return f"All {len(evaluated)} runs are compared at step {compared.step:,}, their last evaluation."
    short = [str(run.folder) for run, step in zip(evaluated, last, strict=True) if step == compared.step]
    further = len(evaluated) - len(short)
    named = short[0] if len(short) == 1 else f"{short[0]} and {plural(len(short) - 1, 'more run')}"
    advice = "leave the short ones out to compare later, or " if len(short) <= further else ""
    return (
        f"Compared at step {compared.step:,}, where {named} ended. {plural(further, 'run')} went further, up to step"
        f" {max(last):,}: {advice}see each run’s own end under “Runs”."
    )


def notes(env: Environment) -> list[str]:
    """What a reader must know before comparing the runs of an environment, in sentences."""
    found = []
    budgets = {run.settings[BUDGET] for run in env.runs}
    if len(budgets) > 1:
        found.append(
            "The runs have different cost budgets, so they do not solve one problem: " + "; ".join(sorted(budgets)) + "."
        )
    if few := [f"{group.label} ({len(group.runs)})" for group in env.groups if len(group.runs) < stats.ENOUGH]:
        found.append(f"Fewer than {stats.ENOUGH} seeds, so shown one by one, without intervals: {', '.join(few)}.")
    if bound := {run.binding for run in env.runs if run.budgets and len(run.binding) == 1}:
        names = " or ".join(sorted(POLICIES[prefix] for (prefix,) in bound))
        found.append(f"Runs were told that the budget binds the {names} policy only; the verdict goes by that.")
    for group in env.groups:
        twice = [str(seed) for seed, times in Counter(run.seed for run in group.runs).items() if times > 1]
        if twice:
            found.append(f"{group.label} has several runs of seed {', '.join(twice)}, which are not independent.")
    if empty := [str(run.folder) for run in env.runs if not run.evaluations()]:
        found.append(f"Not evaluated yet, so not compared: {', '.join(empty)}.")
    found += [f"Damaged metrics: {fault}." for run in env.runs for fault in run.faults]
    return found
