"""What the checks of every answer cost: a simulator step of ``GuardedEnv`` beside the environment's own, in turns.

    python benchmarks/guard.py        # benchmarks/results/guard.json
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import numpy as np

from learning import commit, machine
from saddlepoint.envs import make_env
from saddlepoint.envs.guarded import GuardedEnv
from saddlepoint.types import EnvSetup

RESULTS = Path(__file__).resolve().parent / "results"
TASKS = ("saddlepoint/HalfCheetahVelocity-v0", "saddlepoint/PointGoal1-v0")
ROUNDS, STEPS = 30, 300


def seconds(env: object, actions: np.ndarray) -> float:
    """Of ``STEPS`` steps of one episode."""
    env.reset(seed=0)  # type: ignore[attr-defined]
    began = time.process_time()
    for action in actions:
        env.step(action)  # type: ignore[attr-defined]
    return (time.process_time() - began) / STEPS


def main() -> None:
    found = {}
    for task in TASKS:
        plain, guarded = make_env(task), GuardedEnv.open(EnvSetup(task))
        actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, *plain.action_space.shape)).astype(np.float32)
        rounds = [(seconds(plain, actions), seconds(guarded, actions)) for _ in range(ROUNDS)]
        own, checked = (1e6 * statistics.median(column) for column in zip(*rounds, strict=True))
        found[task] = {"own_us": round(own, 2), "guarded_us": round(checked, 2), "share": round(checked / own - 1, 4)}
        print(task, found[task])
    content = {"command": "python benchmarks/guard.py", "commit": commit(), "machine": machine(), "rounds": ROUNDS, "tasks": found}
    (RESULTS / "guard.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
