"""ALGD's noise-free action on trained runs: the chain from latent 0 (released), against the best by energy of n samples.

    python benchmarks/noise_free.py runs/sweep/toy/Toy-v0/algd runs/sweep/tasks/*/algd      # after `saddlepoint sweep benchmarks/sweeps/{toy,tasks}.toml`

Every seed of each folder plays the ten episodes that its own evaluations were made of; means over seeds are printed, and all is kept in
results/noise_free.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from saddlepoint import load_policy
from saddlepoint.train.evaluate import evaluate
from saddlepoint.train.loop import EVALUATION, stream

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from learning import RESULTS, commit, machine  # noqa: E402

EPISODES = 10
SAMPLES = (4, 16, 64)


def measure(run: Path) -> dict[str, list[float]]:
    """Return and cost of each way to act."""
    found: dict[str, list[float]] = {}
    for samples in (0, *SAMPLES):
        policy = load_policy(run, acting={"evaluation": "best_of_n", "evaluation_samples": samples} if samples else {"evaluation": "zero"})
        metrics = evaluate(policy.learner, policy.env, policy.budgets, EPISODES, stream(policy.seed, EVALUATION))
        assert metrics is not None
        found[f"best of {samples}" if samples else "chain from 0"] = [metrics["eval/return_mean"], metrics["eval/cost_mean"]]
        found.setdefault("sampling", [metrics["eval/stochastic/return_mean"], metrics["eval/stochastic/cost_mean"]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs seed-0, seed-1, ...")
    folders = parser.parse_args().folders
    torch.set_num_threads(1)
    content: dict[str, object] = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": machine(), "episodes": EPISODES}
    for folder in folders:
        seeds = {run.name: measure(run) for run in sorted(folder.glob("seed-*")) if (run / "config.json").exists()}
        if not seeds:
            parser.error(f"{folder} holds no runs: make them with `saddlepoint sweep`.")
        content["/".join(folder.parts[-2:])] = seeds
        for name in next(iter(seeds.values())):
            print(f"{folder} {name}: return {np.mean([s[name][0] for s in seeds.values()]):.1f}, cost {np.mean([s[name][1] for s in seeds.values()]):.1f}")
    (RESULTS / "noise_free.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
