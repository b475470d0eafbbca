"""Cost in budgets and return of every evaluation of the suite, as a figure of benchmarks/results/suite.json.

    saddlepoint sweep benchmarks/suite.toml --jobs 1
    python benchmarks/comparison.py --name suite runs/sweep/suite
    python benchmarks/suite.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from saddlepoint.envs.tasks import env_spec

RESULTS = Path(__file__).resolve().parent / "results"
COLOURS = {"algd": "#0072B2", "sac-lag": "#D55E00", "sac-pid": "#009E73", "cal": "#CC79A7"}


def main() -> None:
    (found,) = json.loads((RESULTS / "suite.json").read_text()).values()
    tasks = sorted({trial["environment"] for trial in found["finished"]})
    figure, axes = plt.subplots(2, len(tasks), figsize=(3.6 * len(tasks), 5.6), layout="constrained", squeeze=False)
    for column, task in zip(axes.T, tasks, strict=True):
        limit = env_spec(task).budgets[0].episode
        for trial in (trial for trial in found["finished"] if trial["environment"] == task):
            steps = [line["step"] for line in trial["eval"]]
            for prefix, style in (("eval", "-"), ("eval/stochastic", "--")):
                colour = COLOURS.get(trial["label"], "#555555")
                column[0].plot(steps, [line[f"{prefix}/return_mean"] for line in trial["eval"]], style, color=colour)
                column[1].plot(steps, [line[f"{prefix}/cost_mean"] / limit for line in trial["eval"]], style, color=colour)
        column[1].axhline(1, color="k", lw=1, ls=":")
        column[0].set(title=task.removeprefix("saddlepoint/").removesuffix("-v0"))
        column[1].set(xlabel="decisions", yscale="symlog", ylim=(0, None))
    axes[0, 0].set(ylabel="return")
    axes[1, 0].set(ylabel="cost of an episode, in budgets")
    labels = sorted({trial["label"] for trial in found["finished"]})
    lines = [plt.Line2D([], [], color=COLOURS.get(label, "#555555"), label=label) for label in labels]
    lines += [plt.Line2D([], [], color="k", ls=style, label=name) for style, name in (("-", "noise-free"), ("--", "sampling"))]
    axes[0, 0].legend(handles=lines, fontsize=8)
    figure.savefig(RESULTS / "suite.png", dpi=120)


if __name__ == "__main__":
    main()
