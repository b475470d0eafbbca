"""`make demo`: ALGD learns to run under a cost budget, in about ten minutes on two cores.

HalfCheetah may run faster than 3.21 m/s in 25 of the 1,000 steps of an episode. The run folder then holds curves.png, a video, the checkpoints and the policy.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from saddlepoint import figures
from saddlepoint.cli import main as saddlepoint
from saddlepoint.evaluate import evaluate_command
from saddlepoint.train.log import read_metrics
from saddlepoint.types import UserError

STEPS = int(os.environ.get("DEMO_STEPS", "15000"))
SEED = int(os.environ.get("DEMO_SEED", "0"))


def draw(run: Path) -> Path:
    """Return, cost and multiplier over the run, from its metrics.jsonl."""
    lines = read_metrics(run)
    panels = [
        ("Return", [("eval", "eval/return_mean", "evaluation"), ("train", "train/return_mean", "while training")]),
        (
            "Cost of an episode",
            [("eval", "eval/cost_mean", "evaluation"), ("train", "train/cost_mean", "while training")],
        ),
        ("Multiplier", [("train", "train/multiplier", "lambda"), ("train", "train/effective_multiplier", "effective")]),
    ]
    path = run / "curves.png"
    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
        for axis, (title, curves) in zip(axes, panels, strict=True):
            for colour, (kind, key, label) in zip(figures.COLOURS, curves):
                points = [(line["step"], line[key]) for line in lines if line["kind"] == kind and key in line]
                axis.plot(*zip(*points, strict=True), color=colour, marker="o" if kind == "eval" else None, label=label)
            axis.set(title=title, xlabel="environment steps")
            axis.xaxis.set_major_formatter(figures.thousands)
            axis.legend()
        figures.mark_budget(axes[1], 25)
        figure.savefig(path)
        plt.close(figure)
    return path


def main() -> int:
    run = Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    flags = f"--env saddlepoint/HalfCheetahVelocity-v0 --total-steps {STEPS} --warmup-steps 1500 --eval-every 5000 --checkpoint-every 5000 --seed {SEED}"
    fast = "--cost-gamma 0.97 --replay-size 100000"
    code = saddlepoint(["train", "algd", *flags.split(), *fast.split(), "--out", str(run)])
    if code:
        return code
    try:
        evaluate_command([str(run), "--episodes", "10", "--video"])
    except UserError as error:  # it says what is missing for a video, such as EGL; the curves and the policy are there all the same
        print(f"going on, but {error}")
    print(f"curves: {draw(run)}")
    print(f"policy: from saddlepoint import load_policy; load_policy({str(run)!r}).act(observation)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
