"""What the checks of every answer cost: a step of ``GuardedEnv`` beside the environment's own, in turns.

Three ways to make the same steps: ``own``, the environment as ``make_env`` gives it; ``carried``, which also does what
any training loop must (actions inside the bounds, a float32 copy of the observation, the cost as a vector, one record)
and checks nothing; and ``guarded``. An episode is cut into pieces of a few steps, and the fastest of all rounds counts
for each piece, because other programs only ever slow a piece down.

    python benchmarks/guard.py [ROUNDS]        # benchmarks/results/guard.json
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from learning import commit, machine
from saddlepoint.envs import make_env
from saddlepoint.envs.guarded import Answer, GuardedEnv
from saddlepoint.types import EnvSetup

RESULTS = Path(__file__).resolve().parent / "results"
TASKS = ("saddlepoint/HalfCheetahVelocity-v0", "saddlepoint/PointGoal1-v0")
PIECES, STEPS = 8, 16


class Carried(GuardedEnv):
    """The same work without a check."""

    def step(self, action: np.ndarray) -> Answer:
        fitted = np.maximum(action, self._low)
        if fitted.dtype is self._dtype:
            np.minimum(fitted, self._high, out=fitted)
        else:
            fitted = np.minimum(np.maximum(action.astype(self._dtype), self._low), self._high)
        self.age += 1
        seen, reward, terminated, truncated, info = self._stepped.step(fitted)
        cost, success = np.array((info["cost"],), float), info.get("success", np.nan)
        return tuple.__new__(Answer, (seen.astype(np.float32), float(reward), cost, terminated, truncated, success))


def seconds(step: Callable[[Any], Any], actions: list[np.ndarray]) -> float:
    """A step."""
    began = time.process_time()
    for action in actions:
        step(action)
    return (time.process_time() - began) / len(actions)


def main(rounds: int = 300) -> None:
    found = {}
    for task in TASKS:
        setup = EnvSetup(task, {}, action_repeat=1)
        envs: dict[str, Any] = {"own": make_env(task), "carried": Carried.open(setup), "guarded": GuardedEnv.open(setup)}
        envs["guarded"].constraints = 1
        shape = (PIECES, STEPS, *envs["own"].action_space.shape)
        pieces = [list(piece) for piece in np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)]
        best = {name: np.full(PIECES, np.inf) for name in envs}
        draw = random.Random(0)
        for _ in range(rounds):
            for env in envs.values():
                env.reset(seed=0)
            for i, piece in enumerate(pieces):
                for name in draw.sample(list(envs), len(envs)):
                    best[name][i] = min(best[name][i], seconds(envs[name].step, piece))
        own, carried, guarded = (1e6 * float(best[name].mean()) for name in envs)
        found[task] = {
            "own_us": round(own, 2), "carried_us": round(carried, 2), "guarded_us": round(guarded, 2),
            "checks_us": round(guarded - carried, 2), "checks_share": round((guarded - carried) / own, 4),
        }  # fmt: skip
        print(task, found[task], flush=True)
    content = {"command": f"python benchmarks/guard.py {rounds}", "commit": commit(), "machine": machine(), "tasks": found}
    (RESULTS / "guard.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
