"""Cost and return of runs with --budget-range against the dial: benchmarks/results/dial.json and dial.png.

    saddlepoint train algd --env saddlepoint/Toy-v0 --budget-range 1 25 --cost-limit 1 --total-steps 12000 --out runs/dial-toy
    python benchmarks/dial.py runs/dial-toy [RUN ...]      # evaluates each at eight budgets, twenty episodes a policy
    python benchmarks/dial.py                              # the figure again, from the JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from learning import commit, machine
from saddlepoint import figures
from saddlepoint.policies import load_policy
from saddlepoint.train import run as run_folder
from saddlepoint.train.evaluate import evaluate
from saddlepoint.train.threads import use_threads

RESULTS = Path(__file__).resolve().parent / "results"
POINTS, EPISODES, SEED = 8, 20, 1_000_000
KEPT = [f"{p}/{k}" for p in ("eval", "eval/stochastic") for k in ("return_mean", "return_std", "cost_mean", "cost_std", "violation_rate")]


def measured(folder: Path) -> dict[str, Any]:
    """Evaluations of a run at ``POINTS`` budgets, even in their logarithm."""
    content = run_folder.read(folder)
    low, high = content["train"]["budget_range"]
    found = []
    for limit in np.geomspace(low, high, POINTS):
        policy = load_policy(folder, budget=float(limit), compile=True)
        metrics = evaluate(policy.learner, policy.setup, policy.budgets, EPISODES, SEED)
        assert metrics is not None
        found.append({"budget": float(limit)} | {key: metrics[key] for key in KEPT})
        both = [f"{metrics[f'{p}/return_mean']:.1f} at {metrics[f'{p}/cost_mean']:.2f}" for p in ("eval", "eval/stochastic")]
        print(f"{folder} at {limit:.3g}: {', '.join(both)}")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "environment": content["train"]["env"], "seed": content["train"]["seed"], "total_steps": content["train"]["total_steps"],
        "budget_range": [low, high], "wall_s": last["wall_s"], "commit": commit(), "machine": machine(),
        "command": f"saddlepoint train algd --env {content['train']['env']} --budget-range {low:g} {high:g} --cost-limit {content['budgets'][0]['limit']:g}"
                   f" --total-steps {content['train']['total_steps']} --seed {content['train']['seed']}",
        "episodes": EPISODES, "dial": found,
    }  # fmt: skip


def draw(runs: list[dict[str, Any]]) -> None:
    """Cost above, return below, a column for each task."""
    tasks = sorted({run["environment"] for run in runs})
    with figures.style():
        figure, axes = plt.subplots(2, len(tasks), figsize=(4.4 * len(tasks), 6), squeeze=False)
        for column, task in zip(axes.T, tasks, strict=True):
            for run in (run for run in runs if run["environment"] == task):
                budgets = [point["budget"] for point in run["dial"]]
                for prefix, dashes, colour, name in (("eval", "-", 0, "noise-free"), ("eval/stochastic", "--", 1, "sampled")):
                    for axis, key in zip(column, ("cost_mean", "return_mean"), strict=True):
                        values = [point[f"{prefix}/{key}"] for point in run["dial"]]
                        axis.plot(budgets, values, dashes, color=figures.COLOURS[colour], marker="o", ms=3, label=f"{name}, seed {run['seed']}")
            column[0].plot(budgets, budgets, ":", color=figures.INK, lw=1, label="the budget")
            column[0].set(title=task.removeprefix("saddlepoint/").removesuffix("-v0"), ylabel="cost of an episode")
            column[1].set(xlabel="budget that the policy is turned to, an episode", ylabel="return")
            for axis in column:
                axis.set_xscale("log")
                axis.set_xticks(budgets, [f"{budget:.2g}" if budget < 99 else f"{budget:.0f}" for budget in budgets])
                axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes[0, 0].legend()
        figure.savefig(RESULTS / "dial.png")


def main() -> None:
    use_threads(1)
    path = RESULTS / "dial.json"
    runs = json.loads(path.read_text())["runs"] if path.is_file() else []
    for folder in map(Path, sys.argv[1:]):
        new = measured(folder)
        same = ("environment", "seed")
        runs = [run for run in runs if any(run[key] != new[key] for key in same)] + [new]
        path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    draw(runs)


if __name__ == "__main__":
    main()
