"""What the checks of every answer cost: a step of ``GuardedEnv`` beside the environment's own, in turns.

Three ways to make the same steps: ``own``, the environment as ``make_env`` gives it; ``carried``, which also does what
any training loop must (actions inside the bounds, a float32 copy of the observation, the cost as a vector, one record)
and checks nothing; and ``guarded``. All three step one environment, since two of a kind differ by where they lie in
memory. ``acting`` adds a choice of ALGD's default policy, ``training`` an update as well: what evaluations and runs do at
every step. An episode is cut into pieces of a few steps, and the fastest of all rounds counts for each piece, because other
programs only ever slow a piece down.

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

from algd_update import DEFAULT, ours
from learning import commit, machine
from saddlepoint.envs.guarded import Answer, GuardedEnv
from saddlepoint.types import EnvSetup

RESULTS = Path(__file__).resolve().parent / "results"
TASKS = ("saddlepoint/HalfCheetahVelocity-v0", "saddlepoint/PointGoal1-v0")
PIECES, STEPS = 8, 16


class Carried(GuardedEnv):
    """The same work without a check."""

    def step_once(self, action: np.ndarray) -> Answer:
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


def shares(step: float, checks: float, env: Any) -> dict[str, float]:
    """What part the checks are of a step with its action, and of one that also learns; times in microseconds."""
    work = ours("default", "auto", False, 25.0, DEFAULT | {"observation": env.observation_space.shape[0], "action": env.action_space.shape[0]})
    act, update = (1e6 * min(seconds(lambda _, do=work[name]: do(), [None] * 4) for _ in range(60)) for name in ("act", "update"))
    acting, training = step + act, step + act + update
    return {
        "acting_us": round(acting, 1), "acting_share": round(checks / acting, 5),
        "training_us": round(training, 1), "training_share": round(checks / training, 6),
    }  # fmt: skip


def main(rounds: int = 300) -> None:
    found = {}
    for task in TASKS:
        setup = EnvSetup(task, {}, action_repeat=1)
        envs = {"carried": Carried.open(setup), "guarded": GuardedEnv.open(setup)}
        inner = envs["guarded"].env
        envs["carried"]._stepped, envs["guarded"].constraints = inner, 1
        steps: dict[str, Callable[[Any], Any]] = {"own": inner.step, **{name: env.step for name, env in envs.items()}}
        shape = (PIECES, STEPS, *inner.action_space.shape)
        pieces = [list(piece) for piece in np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)]
        best = {name: np.full(PIECES, np.inf) for name in steps}
        draw = random.Random(0)
        for _ in range(rounds):
            for name in draw.sample(list(steps), len(steps)):
                inner.reset(seed=0)
                for i, piece in enumerate(pieces):
                    best[name][i] = min(best[name][i], seconds(steps[name], piece))
        own, carried, guarded = (1e6 * float(best[name].mean()) for name in steps)
        found[task] = {
            "own_us": round(own, 2), "carried_us": round(carried, 2), "guarded_us": round(guarded, 2),
            "checks_us": round(guarded - carried, 2), "checks_share": round((guarded - carried) / own, 4),
            **shares(guarded, guarded - carried, inner),
        }  # fmt: skip
        print(task, found[task], flush=True)
    content = {"command": f"python benchmarks/guard.py {rounds}", "commit": commit(), "machine": machine(), "tasks": found}
    (RESULTS / "guard.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
