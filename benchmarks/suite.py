"""Return and cost in budgets of every evaluation of the suite, as a figure of benchmarks/results/suite.json.

    saddlepoint sweep benchmarks/suite.toml --jobs 1
    python benchmarks/comparison.py --name suite runs/sweep/suite
    python benchmarks/suite.py [--name suite]
"""

from __future__ import annotations

import argparse
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
NAMES = {"algd": "ALGD", "sac-lag": "SAC-Lag", "sac-pid": "SAC-PID", "cal": "CAL"}
POLICIES = {"eval": ("-", "noise-free"), "eval/stochastic": ("--", "sampled")}
TICKS = (0, 0.5, 1, 2, 5, 10, 20)
"""of costs in budgets"""


def series(trials: list[dict[str, Any]], key: str) -> list[np.ndarray]:
    """(2, evaluations) steps and values of each trial that has the number."""
    return [np.array([(line["step"], line[key]) for line in trial["eval"] if key in line]).T for trial in trials]


def draw(axis: Any, curves: list[np.ndarray], colour: str, dashes: str) -> None:
    """Each seed; where there are several, thin beside their mean as far as all of them go."""
    several = len(curves) > 1
    for curve in curves:
        axis.plot(*curve, dashes, color=colour, lw=0.9 if several else 1.8, alpha=0.4 if several else 1)
    if several:
        length = min(curve.shape[1] for curve in curves)
        axis.plot(curves[0][0, :length], np.mean([curve[1, :length] for curve in curves], 0), dashes, color=colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="suite", help="of the file in results/")
    name = parser.parse_args().name
    (found,) = json.loads((RESULTS / f"{name}.json").read_text()).values()
    trials = found["finished"]
    tasks = sorted({trial["environment"] for trial in trials})
    labels = sorted({trial["label"] for trial in trials}, key=lambda label: (label not in NAMES, label))
    colours = dict(zip(labels, figures.COLOURS, strict=False))
    with figures.style():
        figure, axes = plt.subplots(2, len(tasks), figsize=(2.9 * len(tasks) + 0.4, 5.2), squeeze=False)
        for (above, below), task in zip(axes.T, tasks, strict=True):
            limit = env_spec(task).budgets[0].episode
            for label in labels:
                own = [trial for trial in trials if (trial["environment"], trial["label"]) == (task, label)]
                for prefix, (dashes, _) in POLICIES.items():
                    draw(above, series(own, f"{prefix}/return_mean"), colours[label], dashes)
                    costs = [np.array([curve[0], curve[1] / limit]) for curve in series(own, f"{prefix}/cost_mean")]
                    draw(below, costs, colours[label], dashes)
            figures.mark_budget(below, 1.0, f"budget {limit:g}")
            above.set(title=task.removeprefix("saddlepoint/").removesuffix("-v0"))
            below.set(xlabel="decisions")
            most = max(float(np.max(line.get_ydata())) for line in below.get_lines())
            if most > 4:  # an early spike would hide the rest
                below.set_yscale("symlog", linthresh=1, linscale=1.4)
            below.set_ylim(0, 1.25 * most)
            below.set_yticks([tick for tick in TICKS if tick <= 1.25 * most])
            below.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            below.yaxis.set_major_formatter("{x:g}")
            for axis in (above, below):
                axis.xaxis.set_major_formatter(figures.thousands)
                axis.locator_params(axis="x", nbins=4)
        axes[0, 0].set(ylabel="return")
        axes[1, 0].set(ylabel="cost of an episode, in budgets")
        lines = [plt.Line2D([], [], color=colours[label], label=NAMES.get(label, label)) for label in labels]
        lines += [plt.Line2D([], [], color=figures.INK, ls=dashes, label=words) for dashes, words in POLICIES.values()]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
        figure.savefig(RESULTS / f"{name}.png")
        plt.close(figure)


if __name__ == "__main__":
    main()
