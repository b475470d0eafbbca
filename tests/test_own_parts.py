"""examples/own_parts.py: an energy, a critic and a score network of one's own train, resume and act through the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saddlepoint.cli import main
from saddlepoint.policies import load_policy
from saddlepoint.train import checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = (
    "--env saddlepoint/Toy-v0 --warmup-steps 60 --eval-every 150 --checkpoint-every 150 --updates-per-step 0.3 --batch-size 16"
    " --critic-hidden 16 16 --policy-hidden 16 16 --replay-size 1000 --threads 1 --compile off --quiet"
).split()


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sys.modules.pop("own_parts", None)


@pytest.mark.parametrize(
    "part", [("--energy", "own_parts:squared_hinge"), ("--critic-network", "own_parts:HuberCritic"), ("--score-network", "own_parts:AttentionScore")]
)
def test_a_part_of_ones_own_trains_resumes_and_acts(part, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert main(["train", "algd", *SMALL, *part, "--total-steps", "150", "--out", str(once)]) == 0
    assert main(["train", "algd", *SMALL, *part, "--total-steps", "100", "--out", str(twice)]) == 0
    assert main(["train", "algd", "--resume", str(twice), "--total-steps", "150", "--quiet"]) == 0
    a, b = (checkpoint.load(checkpoint.latest(folder)[0]).learner for folder in (once, twice))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert load_policy(once).act(np.zeros((4, 6), np.float32)).shape == (4, 2)


def test_the_huber_critic_is_squared_error_near_its_target(generator):
    import own_parts

    critic = own_parts.HuberCritic(2, 3, 1, (8,), "relu", generator)
    state, action = torch.randn(5, 3), torch.randn(5, 1)
    target = critic(state, action[None])[:, 0].detach() + 0.1
    assert float(critic.loss(state, action, target, 1.0).detach()) == pytest.approx(10 * 0.01, rel=1e-4)
    assert float(critic.loss(state, action, target + 100, 1.0).detach()) == pytest.approx(10 * 2 * (100.1 - 0.5), rel=1e-3)
