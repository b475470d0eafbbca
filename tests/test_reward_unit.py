"""Rewards are counted in units of what random actions earn, so that beta, lambda and rho mean the same in every task."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.replay import Replay
from saddlepoint.systems import SYSTEMS
from saddlepoint.types import EnvShape

SMALL: dict[str, Any] = {"critic_hidden": (16, 16), "policy_hidden": (16, 16), "batch_size": 32}
ALL = ["algd", "sac", "sac-lag", "sac-pid", "cal"]


def replay(scale: float) -> Replay:
    ring, rng = Replay(64, 3, 2, 1), np.random.default_rng(0)
    for _ in range(64):
        observation, following = rng.normal(size=(2, 1, 3)).astype("f")
        action, reward, cost = rng.uniform(-1, 1, (1, 2)), scale * rng.normal(size=1), rng.random((1, 1))
        ring.add(observation, action.astype("f"), reward.astype("f"), cost.astype("f"), following, np.zeros(1, bool), np.zeros(1, bool))
    return ring


def learner(name: str, **options: Any) -> Any:
    system = SYSTEMS[name]
    config = replace(system.presets()["default"], **SMALL, **options)
    return system.learner_class()(config, EnvShape(3, (-1.0, -1.0), (1.0, 1.0), 1), (CostBudget(25.0, horizon=100),))


@pytest.mark.parametrize("name", ALL)
def test_the_size_of_rewards_changes_nothing(name: str) -> None:
    """Rewards 1,024 times as large, a power of two: every weight, multiplier and moment to the bit; only the unit itself is 1,024 times as large."""
    states = []
    for scale in (1.0, 1024.0):
        agent = learner(name)
        metrics = agent.update(replay(scale), 3)
        assert metrics["reward_unit"] == pytest.approx(replay(scale).reward_size())
        states.append(agent.state_dict())
    small, large = states
    assert large.pop("reward_unit") == 1024 * small.pop("reward_unit")
    assert all(torch.equal(small[key], large[key]) for key in small)


@pytest.mark.parametrize("name", ALL)
def test_the_unit_is_found_once_and_kept(name: str) -> None:
    agent = learner(name)
    agent.update(replay(1.0), 1)
    unit = agent.reward_unit
    agent.update(replay(50.0), 1)
    again = learner(name)
    again.load_state_dict(agent.state_dict())
    assert again.reward_unit == agent.reward_unit == unit
    raw = learner(name, reward_unit="one")
    raw.update(replay(50.0), 1)
    assert raw.reward_unit == 1.0
