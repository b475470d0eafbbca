"""The suite's table, in Markdown, and its figure: cost in budgets and return of every evaluation.

    saddlepoint sweep benchmarks/suite.toml --jobs 2        # and suite-test.toml
    python benchmarks/comparison.py --name suite runs/sweep/suite runs/sweep/suite-test
    python benchmarks/suite.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from saddlepoint import figures
from saddlepoint.envs.tasks import env_spec

RESULTS = Path(__file__).resolve().parent / "results"
POLICIES = (("eval", "-", "noise-free"), ("eval/stochastic", "--", "sampled"))
COLOURS = dict(zip(("algd", "sac-lag", "sac-pid", "cal", "algd-plain"), figures.COLOURS, strict=False))

Trial = dict[str, Any]


def limit_of(task: str) -> float:
    return env_spec(task).budgets[0].episode


def keeps(trial: Trial, line: dict[str, float]) -> bool:
    """Whether both policies were within the budget in an evaluation."""
    return all(line[f"{policy}/cost_mean"] <= limit_of(trial["environment"]) for policy, *_ in POLICIES)


def within(trial: Trial) -> bool:
    """Whether both policies were within the budget at the end."""
    return keeps(trial, trial["eval"][-1])


def best(trial: Trial) -> float | None:
    """The return, the lower of both policies', of the best evaluation within the budget (``best/``); None where there was none."""
    return max((min(line[f"{p}/return_mean"] for p, *_ in POLICIES) for line in trial["eval"] if keeps(trial, line)), default=None)


def table(trials: list[Trial]) -> str:
    """One row for each task and method: means over the seeds at the end."""
    heads = ["task", "budget", "method", "seeds", "decisions", "noise-free: return, cost", "sampled: return, cost"]
    heads += ["within, both policies", "`best/`: return, within", "training cost"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for task in dict.fromkeys(trial["environment"] for trial in trials):
        for label in [name for name in COLOURS if any((t["environment"], t["label"]) == (task, name) for t in trials)]:
            own = [trial for trial in trials if (trial["environment"], trial["label"]) == (task, label)]
            ends = [trial["eval"][-1] for trial in own]
            cells = [f"{np.mean([e[f'{p}/return_mean'] for e in ends]):,.1f}, {np.mean([e[f'{p}/cost_mean'] for e in ends]):.1f}" for p, *_ in POLICIES]
            name = task.removeprefix("saddlepoint/").removesuffix("-v0")
            paid = np.mean([trial["train_cost_mean"] for trial in own])
            kept = [value for trial in own if (value := best(trial)) is not None]
            found = f"{np.mean(kept) if kept else float('nan'):,.1f}, {len(kept)} of {len(own)}"
            rows.append(f"| {name} | {limit_of(task):.4g} | {label} | {len(own)} | {ends[0]['step']:,} | {cells[0]} | {cells[1]} |"
                        f" {sum(map(within, own))} of {len(own)} | {found} | {paid:.1f} |")  # fmt: skip
    return "\n".join(rows)


NAMES = {"algd": "ALGD", "sac-lag": "SAC-Lag", "sac-pid": "SAC-PID", "cal": "CAL", "algd-plain": "ALGD, plain energy"}
TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50)
"""of costs in budgets"""


def curves(axis: Any, series: list[np.ndarray], colour: str, dashes: str) -> None:
    """(2, evaluations) steps and values of each seed; where there are several, thin beside their mean as far as all of them go."""
    several = len(series) > 1
    for curve in series:
        axis.plot(*curve, dashes, color=colour, lw=0.9 if several else 1.8, alpha=0.4 if several else 1)
    if several:
        length = min(curve.shape[1] for curve in series)
        axis.plot(series[0][0, :length], np.mean([curve[1, :length] for curve in series], 0), dashes, color=colour)


def draw(trials: list[Trial], path: Path) -> None:
    tasks = list(dict.fromkeys(trial["environment"] for trial in trials))
    labels = [label for label in COLOURS if any(trial["label"] == label for trial in trials)]
    with figures.style():
        figure, axes = plt.subplots(2, len(tasks), figsize=(2.9 * len(tasks) + 0.4, 5.2), squeeze=False)
        for (above, below), task in zip(axes.T, tasks, strict=True):
            for label in labels:
                own = [trial["eval"] for trial in trials if (trial["environment"], trial["label"]) == (task, label)]
                for prefix, dashes, _ in POLICIES:
                    for axis, name, unit in ((above, "return", 1.0), (below, "cost", limit_of(task))):
                        series = [np.array([(line["step"], line[f"{prefix}/{name}_mean"] / unit) for line in lines]).T for lines in own]
                        curves(axis, series, COLOURS[label], dashes)
            figures.mark_budget(below, 1.0, f"budget\n{limit_of(task):g}")
            most = max(float(np.max(line.get_ydata())) for line in below.get_lines())
            if most > 4:  # an early spike would hide the rest
                below.set_yscale("symlog", linthresh=1, linscale=1.4)
            below.set_ylim(0, 1.25 * most)
            below.set_yticks([tick for tick in TICKS if tick <= 1.25 * most])
            below.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            below.yaxis.set_major_formatter("{x:g}")
            above.set(title=task.removeprefix("saddlepoint/").removesuffix("-v0"))
            below.set(xlabel="decisions")
            for axis in (above, below):
                axis.xaxis.set_major_formatter(figures.thousands)
                axis.locator_params(axis="x", nbins=4)
        axes[0, 0].set(ylabel="return")
        axes[1, 0].set(ylabel="cost of an episode, in budgets")
        lines = [plt.Line2D([], [], color=COLOURS[label], label=NAMES.get(label, label)) for label in labels]
        lines += [plt.Line2D([], [], color=figures.INK, ls=dashes, label=name) for _, dashes, name in POLICIES]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
        figure.savefig(path)


def main() -> None:
    for name, sweep in json.loads((RESULTS / "suite.json").read_text()).items():
        trials = sweep["finished"]
        print(f"{name}\n\n{table(trials)}\n")
        methods = sorted({trial["label"] for trial in trials})
        kept = {label: [within(trial) for trial in trials if trial["label"] == label] for label in methods}
        print(", ".join(f"{label}: {sum(found)} of {len(found)} within the budget" for label, found in kept.items()) + "\n")
        draw(trials, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
