"""Run folders written by hand, whose numbers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.train import run
from saddlepoint.train.config import TrainConfig
from saddlepoint.types import EnvShape

SHAPE = EnvShape(3, (-1.0, -1.0), (1.0, 1.0), 1)
BUDGET = CostBudget(10.0, horizon=100)


def constant(value: float) -> Callable[[int], float]:
    return lambda step: value


def write_run(
    folder: Path, env: str = "tests/A-v0", seed: int = 0, *, system: str = "algd", last: int = 3000,
    budget: CostBudget = BUDGET, returns: Callable[[int], float] = float, cost: float = 5.0, **learner: Any,
) -> Path:  # fmt: skip
    """A run with an evaluation every 1000 steps: ``returns(step)`` noise-free and one less stochastic, ``cost`` an episode."""
    folder.mkdir(parents=True)
    config = TrainConfig(env=env, seed=seed, total_steps=last, out=folder, quiet=True)
    content = run.describe(system, config, replace(ALGDConfig(energy="augmented"), **learner), SHAPE, (budget,), {"device": "cpu"})
    run.write(folder, content)
    lines: list[dict[str, Any]] = []
    for step in range(1000, last + 1, 1000):
        head = {"step": step, "wall_s": step / 100 + seed}
        lines.append(head | {"kind": "train", "train/multiplier": 0.5, "train/effective_multiplier": 0.7, "train/updates": step,
                             **numbers("train", returns(step), 2 * cost, budget), "train/episodes": 4.0})  # fmt: skip
        lines.append(head | {"kind": "eval", **numbers("eval", returns(step), cost, budget),
                             **numbers("eval/stochastic", returns(step) - 1, cost, budget), "eval/episodes": 10.0})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def numbers(prefix: str, value: float, cost: float, budget: CostBudget) -> dict[str, float]:
    return {f"{prefix}/return_mean": value, f"{prefix}/cost_mean": cost, f"{prefix}/discounted_cost_mean": cost / 4,
            f"{prefix}/violation_rate": float(cost > budget.episode)}  # fmt: skip
