"""Trained runs that act otherwise: ALGD's noise-free chain against the best of n samples by energy, MBDPO by each of its planners.

    python benchmarks/acting.py noise_free runs/sweep/{toy,tasks}/*/algd/seed-?             # after `saddlepoint sweep benchmarks/sweeps/toy.toml`, `tasks.toml`
    python benchmarks/acting.py planners runs/bench/{cartpole-swingup/denoise,pendulum-swingup/wide}-?      # after `python benchmarks/learning.py run ...`

Every run plays the ten episodes that its own evaluations were made of; all is kept in results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from saddlepoint import load_policy
from saddlepoint.train.evaluate import evaluate
from saddlepoint.train.loop import EVALUATION, stream

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from learning import RESULTS, commit, machine  # noqa: E402

EPISODES = 10
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "noise_free": {"chain from 0": {"evaluation": "zero"}}
    | {f"best of {n}": {"evaluation": "best_of_n", "evaluation_samples": n} for n in (4, 16, 64)},
    "planners": {planner: {"planner": planner} for planner in ("score", "policy")},
}


def measure(run: Path, ways: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Mean return and cost of each way to act without noise, and of sampling by the first."""
    found: dict[str, list[float]] = {}
    for name, acting in ways.items():
        policy = load_policy(run, acting=acting)
        metrics = evaluate(policy.learner, policy.env, policy.budgets, EPISODES, stream(policy.seed, EVALUATION))
        assert metrics is not None
        found[name] = [metrics["eval/return_mean"], metrics["eval/cost_mean"]]
        found.setdefault("sampling", [metrics["eval/stochastic/return_mean"], metrics["eval/stochastic/cost_mean"]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(WAYS))
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": machine(), "episodes": EPISODES}
    for run in arguments.runs:
        content.setdefault("/".join(run.parts[-3:-1]), {})[run.name] = found = measure(run, WAYS[arguments.name])
        print(run, "; ".join(f"{name} {earned:.1f} at {cost:.1f}" for name, (earned, cost) in found.items()), flush=True)
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
