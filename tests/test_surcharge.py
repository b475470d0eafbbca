"""The cost that moves lambda is that of the policy that the budget binds: what the noise-free policy cost more than the sampled one is added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import ALGDConfig
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.replay import Replay
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.log import read_metrics
from saddlepoint.train.loop import LARGEST_SURCHARGE
from saddlepoint.train.start import train
from saddlepoint.train.verdict import surcharge
from saddlepoint.types import ActMode, EnvShape, Metrics
from tests.test_train_loop import CONFIG, assert_same_runs
from tests.toys import Tiny, TinyConfig

LOOSE = CostBudget(limit=6.0, horizon=12)


def evaluation(noise_free: tuple[float, float], sampled: tuple[float, float]) -> dict[str, float]:
    """Mean costs of two constraints."""
    return {f"{prefix}/{name}_{i}_mean": cost for prefix, costs in (("eval", noise_free), ("eval/stochastic", sampled))
            for i, cost in enumerate(costs) for name in ("cost", "discounted_cost")}  # fmt: skip


def test_the_units_are_those_of_the_critics_budget() -> None:
    plain, discounted = CostBudget(25.0, horizon=1000, gamma=0.99), CostBudget(3.0, discounted=True, horizon=1000, gamma=0.9)
    found = evaluation((40.0, 1.0), (30.0, 1.5))
    spread = 10.0 * np.mean(0.99 ** np.arange(1000))  # 10 more an episode, spread evenly over it
    for binds, wanted in (("sampled", [0.0, 0.0]), ("noise-free", [spread, -0.5]), ("both", [spread, 0.0])):
        assert surcharge(found, (plain, discounted), binds) == pytest.approx(wanted)  # type: ignore[arg-type]


class Charged(Tiny):
    """Keeps to costs without noise and away from them with it, and moves by the measured cost."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.budgets = arguments[2]

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        noise = 0.1 * torch.rand(len(observation), 1, generator=generator) if mode != "deterministic" else 0.0
        target = 1.0 if mode == "deterministic" else -1.0  # the cost is 1 above 0
        return (target + noise - observation[:, :1] + 0 * self.weight.sum()).clamp(self.low, self.high)

    def update(self, replay: Replay, updates: int) -> Metrics:
        metrics = super().update(replay, updates)
        spent = float(replay.spent(self.budgets, 100)[0])
        self.weight = self.weight + 1e-3 * spent
        return dict(metrics) | {"spent": spent}


def go(out: Path, resume: bool = False, **changes: Any) -> Path:
    return train(replace(CONFIG, out=out, **changes), Charged, TinyConfig(), (LOOSE,), resume=resume)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("both") / "run")


def test_the_dearer_policy_counts_as_far_as_the_budget_binds_it(both: Path, tmp_path: Path) -> None:
    charged = load(latest(both)[0]).state["surcharge"]
    sampled = go(tmp_path / "sampled", binds="sampled")
    assert not load(latest(sampled)[0]).state["surcharge"].any()
    lines = [line for line in read_metrics(both) if line["kind"] == "eval"]
    assert [line["step"] for line in lines] == [132, 261, 390, 420]
    assert all(line["eval/cost_mean"] > line["eval/stochastic/cost_mean"] + LOOSE.limit / 2 for line in lines)
    # Three evaluations are due, and each is more than half a budget over; that of the end is not due.
    assert charged == pytest.approx(LARGEST_SURCHARGE * LOOSE.critic * (1 - 0.5**3))


def test_a_run_in_two_parts_is_the_run_in_one(both: Path, tmp_path: Path) -> None:
    for stop in (200, 300):
        run = go(tmp_path / f"run-{stop}", total_steps=stop)
        assert_same_runs(both, go(run, resume=True))


def test_lambda_rises_with_the_surcharge() -> None:
    replay = Replay(100, 2, 1, 1)
    for t in range(50):
        x = np.zeros((1, 2), np.float32)
        replay.add(x, np.zeros((1, 1), np.float32), np.zeros(1), np.ones((1, 1)) * 0.1, x, np.zeros(1, bool), np.array([t % 10 == 9]))
    budget = CostBudget(2.0, horizon=10, gamma=0.97)  # an episode costs 1
    assert float(replay.spent((budget,), 20)) == pytest.approx(budget.critic / 2)
    replay.surcharge[0] = budget.critic  # the noise-free policy's costs 3
    assert float(replay.spent((budget,), 20)) == pytest.approx(1.5 * budget.critic)
    shape = EnvShape(2, (-1.0,), (1.0,), 1)
    rises = {}
    for charge in (0.0, budget.critic):
        replay.surcharge[0] = charge
        agent = ALGD(ALGDConfig(critic_hidden=(16,), policy_hidden=(16,), batch_size=16), shape, (budget,))
        before = float(agent.multiplier)
        agent.update(replay, 5)
        rises[charge] = float(agent.multiplier) - before
    assert rises[0.0] < 0 < rises[budget.critic]
