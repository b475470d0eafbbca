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
POLICIES = (("eval", "-", "noise-free"), ("eval/stochastic", "--", "sampling"))
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
    heads = ["task", "budget", "method", "seeds", "decisions", "noise-free: return, cost", "sampling: return, cost"]
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


def draw(trials: list[Trial], path: Path) -> None:
    tasks = list(dict.fromkeys(trial["environment"] for trial in trials))
    with figures.style():
        figure, axes = plt.subplots(2, len(tasks), figsize=(3.4 * len(tasks), 5.6), squeeze=False)
        for column, task in zip(axes.T, tasks, strict=True):
            for trial in (trial for trial in trials if trial["environment"] == task):
                steps = [line["step"] for line in trial["eval"]]
                for prefix, style, _ in POLICIES:
                    look = {"color": COLOURS[trial["label"]], "ls": style, "lw": 1.2, "alpha": 0.85}
                    column[0].plot(steps, [line[f"{prefix}/return_mean"] for line in trial["eval"]], **look)
                    column[1].plot(steps, [line[f"{prefix}/cost_mean"] / limit_of(task) for line in trial["eval"]], **look)
            figures.mark_budget(column[1], 1)
            column[0].set(title=task.removeprefix("saddlepoint/").removesuffix("-v0"))
            column[1].set(xlabel="decisions", ylim=(0, None))
            for axis in column:
                axis.xaxis.set_major_formatter(figures.thousands)
        axes[0, 0].set(ylabel="return")
        axes[1, 0].set(ylabel="cost of an episode, in budgets")
        labels = [label for label in COLOURS if any(trial["label"] == label for trial in trials)]
        lines = [plt.Line2D([], [], color=COLOURS[label], label=label) for label in labels]
        lines += [plt.Line2D([], [], color="k", ls=style, label=name) for _, style, name in POLICIES]
        axes[0, 0].legend(handles=lines, fontsize=8)
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
