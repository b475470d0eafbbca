"""What the sweeps of ``benchmarks/sweeps/`` have found so far, as one file of numbers.

    saddlepoint sweep benchmarks/sweeps/toy.toml          # and tasks.toml; each goes on where it stopped
    python benchmarks/comparison.py runs/sweep/toy runs/sweep/tasks
    python benchmarks/comparison.py --name ablation runs/sweep/ablation

Writes benchmarks/results/comparison.json, or that of another ``--name``: of every finished trial its command, seed, commits, seconds, evaluations and the
multiplier's swing, beside the commit and machine of the sweep's newest start.
The page is `saddlepoint report runs/sweep/toy --out page.html`.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from saddlepoint.train.log import read_metrics

RESULTS = Path(__file__).resolve().parent / "results"
POLICIES = ("eval", "eval/stochastic")
KEPT = ("step", "wall_s", *(f"{policy}/{name}" for policy in POLICIES for name in ("return_mean", "cost_mean", "violation_rate")))
CALIBRATION = tuple(f"{policy}/calibration/{what}_{name}" for policy in POLICIES for what in ("cost", "reward")
                    for name in ("predicted", "measured", "correlation", "error_in_costly_states"))  # fmt: skip


def collect(folder: Path) -> dict[str, Any]:
    sweep = json.loads((folder / "sweep.json").read_text())
    finished = [trial for trial in sweep["trials"] if trial["state"] == "finished"]
    for trial in finished:
        lines = read_metrics(folder / Path(*Path(trial["folder"]).parts[-3:]))
        trial["eval"] = [{name: line[name] for name in (*KEPT, *CALIBRATION) if name in line} for line in lines if line["kind"] == "eval"]
        last = trial["eval"][-1]
        lambdas = [line["train/multiplier"] for line in lines if "train/multiplier" in line and line["step"] > last["step"] / 2]
        # How far lambda went to and fro: a steady fall, with the budget kept, is none.
        swing = sum(abs(b - a) for a, b in pairwise(lambdas)) - abs(lambdas[-1] - lambdas[0]) if lambdas else 0.0
        trial["multiplier_swing_second_half"] = swing
        paid = [line["train/cost_mean"] for line in lines if "train/cost_mean" in line]
        trial["train_cost_mean"] = sum(paid) / len(paid) if paid else None  # of an episode, over the lines of training
        print(f"{trial['environment']} {trial['label']} seed {trial['seed']}: return {last['eval/return_mean']:.1f}, cost {last['eval/cost_mean']:.1f};"
              f" sampling {last['eval/stochastic/return_mean']:.1f}, {last['eval/stochastic/cost_mean']:.1f};"
              f" swing of lambda in the second half {swing:.2f}")  # fmt: skip
    return {"file": sweep["file"], "commit": sweep["commit"], "machine": sweep["machine"], "states": sweep["states"], "finished": finished}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, help="folders of sweeps")
    parser.add_argument("--name", default="comparison", help="of the file in benchmarks/results/")
    arguments = parser.parse_args()
    found = {folder.name: collect(folder) for folder in arguments.sweeps}
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(found, indent=1))
