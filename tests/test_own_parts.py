"""examples/own_parts.py: an energy, a critic and a score network of one's own train, resume and act through the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.energy import Constraint
from saddlepoint.cli import main
from saddlepoint.policies import load_policy
from saddlepoint.train import checkpoint
from saddlepoint.types import UserError

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
    with torch.no_grad():  # as a caller may that only acts
        assert load_policy(once).act(np.zeros((4, 6), np.float32)).shape == (4, 2)


def test_the_huber_critic_is_squared_error_near_its_target(generator):
    import own_parts

    critic = own_parts.HuberCritic(2, 3, 1, (8,), "relu", generator)
    state, action = torch.randn(5, 3), torch.randn(5, 1)
    target = critic(state, action[None])[:, 0].detach() + 0.1
    assert float(critic.loss(state, action, target, 1.0).detach()) == pytest.approx(10 * 0.01, rel=1e-4)
    assert float(critic.loss(state, action, target + 100, 1.0).detach()) == pytest.approx(10 * 2 * (100.1 - 0.5), rel=1e-3)


def test_the_energy_of_a_row_is_its_own_where_each_has_a_budget(generator):
    """-Q + lambda_i [(R_i - h_i)/unit_i]_+^2 by numpy, for two constraints and budgets that differ from row to row."""
    import own_parts

    reward, cost = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    multiplier, budget, unit = (torch.rand(2, 5, generator=generator) + 0.1 for _ in range(3))
    found = own_parts.squared_hinge(reward, cost, Constraint(multiplier, budget, unit, 1.0, 0.0))
    excess = np.maximum((cost.numpy() - budget.numpy()[:, None]) / unit.numpy()[:, None], 0)
    np.testing.assert_allclose(found, (multiplier.numpy()[:, None] * excess**2).sum(0) - reward.numpy().min(0), rtol=1e-5)


WRONG = """
from saddlepoint.diffusion.network import ScoreMLP
from saddlepoint.nn.critics import MLPCritic

def raises(reward, cost, constraint):
    return reward.nothing

def wide(reward, cost, constraint):
    return -reward  # one value for each head: autograd would train on their sum

def constant(reward, cost, constraint):
    return -reward.amin(0).detach()

class Unbuilt(MLPCritic):
    def __init__(self, *sizes):
        raise RuntimeError("no weights")

class Narrow(MLPCritic):
    def forward(self, state, action):
        return super().forward(state, action)[0]

class Unsummed(MLPCritic):
    def loss(self, state, action, target, scale):
        return (self(state, action[None])[:, 0] - target).square()

class Alone(ScoreMLP):
    def forward(self, state, x, k, head="score"):
        return super().forward(state, x, k, head).sum(-1)

number = 3
"""


@pytest.mark.parametrize(
    ("flag", "name", "words"),
    [
        ("--energy", "raises", r"--energy wrong_parts:raises raised AttributeError.*wrong_parts.py, line 6, in raises"),
        ("--energy", "wide", r"shape \(2, 3, 5\) where a tensor of shape \(3, 5\)"),
        ("--energy", "constant", "without a gradient"),
        ("--energy", "number", "raised TypeError: 'int' object is not callable"),
        ("--energy", "gone", "wrong_parts has no 'gone'"),
        ("--critic-network", "Unbuilt", "raised RuntimeError: no weights"),
        ("--critic-network", "Narrow", r"forward of .*shape \(3, 5\) where a tensor of shape \(2, 3, 5\)"),
        ("--critic-network", "Unsummed", r"loss of .*shape \(2, 5\) where a tensor of shape \(\)"),
        ("--critic-network", "number", r"makes no Critic: derive your class from saddlepoint\.nn\.critics\.Critic"),
        ("--score-network", "Alone", r"shape \(3,\) where a tensor of shape \(3, 2\)"),
        ("--score-network", "Narrow", "wrong_parts:Narrow raised TypeError"),
    ],
)  # fmt: skip
def test_a_part_that_does_not_fit_is_one_sentence_before_anything_is_written(flag, name, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "wrong_parts.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("wrong_parts", None)
    assert main(["train", "algd", *SMALL, flag, f"wrong_parts:{name}", "--total-steps", "100", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["def x(:", "raise RuntimeError('no weights')", "import math\nx = math.nothing"])
def test_a_module_of_a_part_that_cannot_be_imported_is_one_sentence(content, tmp_path, monkeypatch):
    (tmp_path / "broken_parts.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken_parts", None)
    for change in ({"energy": "broken_parts:x"}, {"critic_network": "broken_parts:x"}, {"score_network": "broken_parts:x"}):
        with pytest.raises(UserError, match=r"broken_parts:x raised .*: correct it") as error:
            ALGDConfig(**change).validate()
        assert "\n" not in str(error.value)
