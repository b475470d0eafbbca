"""Predictions against what follows: closed forms, and a learner that knows or does not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.constrained.calibration import blindness, calibration, has_future, to_go
from saddlepoint.train.evaluate import evaluate
from saddlepoint.types import UserError


def test_calibration_of_known_vectors() -> None:
    rng = np.random.default_rng(0)
    measured, other = rng.random(500), rng.random(500)
    exact = calibration(measured, measured, paid=np.ones(500))
    assert exact.correlation == pytest.approx(1)
    assert exact.error_in_costly_states == 0
    off = calibration(2 - measured, measured)
    assert off.correlation == pytest.approx(-1)
    assert off.predicted == pytest.approx(2 - measured.mean())
    assert calibration(other, measured).correlation == pytest.approx(np.corrcoef(other, measured)[0, 1])
    paid = measured > 0.9
    assert calibration(other, measured, paid).error_in_costly_states == pytest.approx((other - measured)[paid].mean())
    flat = calibration(np.ones(5), np.zeros(5))
    assert np.isnan(flat.correlation)
    assert np.isnan(flat.error_in_costly_states)
    with pytest.raises(ValueError, match="one length"):
        calibration(np.ones(5), np.ones(4))


def test_sums_to_go_stop_at_the_end_of_an_episode() -> None:
    paid, ended = np.ones((6, 1)), np.zeros((6, 1), bool)
    ended[3] = True
    np.testing.assert_allclose(to_go(paid, 0.5, ended)[:, 0], [1.875, 1.75, 1.5, 1, 1.5, 1])


def test_only_states_with_a_future_are_measured() -> None:
    playing = np.ones((10, 2), bool)
    ended, terminated = np.zeros((10, 2), bool), np.zeros((10, 2), bool)
    ended[-1] = True
    terminated[-1, 1] = True  # the task itself ended: all of its future was seen
    keep = has_future(playing, ended, terminated, 0.75)
    assert keep[:, 0].tolist() == [True] * 7 + [False] * 3  # 1 / (1 - 0.75) = 4 steps
    assert keep[:, 1].all()
    assert has_future(playing, ended, terminated, 0.99)[:, 0].sum() == 6  # half an episode, where that is less


class Waits:
    """Goes straight on in the toy; ``knows`` what that costs, or says the same everywhere but for noise."""

    def __init__(self, knows: bool) -> None:
        self.config, self.knows = SimpleNamespace(gamma=0.99), knows

    def act(self, observation: torch.Tensor, mode: str, generator: torch.Generator) -> torch.Tensor:
        return torch.cat([torch.ones(len(observation), 1), -observation[:, 1:2] * 4], -1).clamp(-1, 1)

    def predict(self, observation: torch.Tensor, action: torch.Tensor) -> dict[str, torch.Tensor]:
        x = observation[:, 0]
        left = ((0.66 - x.clamp(min=-0.66)).clamp(min=0) / 0.05).unsqueeze(-1)  # steps inside the hazard from here on
        cost = (1 - 0.9**left) / 0.1 * 0.9 ** ((-0.66 - x).clamp(min=0) / 0.05).unsqueeze(-1)
        return {"reward": x, "cost": cost if self.knows else torch.sin(1000 * observation[:, :1])}


def test_an_evaluation_says_whether_the_critic_knows() -> None:
    budgets = (CostBudget(1.0, horizon=60, gamma=0.9),)
    seeing, blind = (evaluate(Waits(knows), "saddlepoint/Toy-v0", budgets, 10, seed=0) for knows in (True, False))
    assert seeing is not None
    assert blind is not None
    assert seeing["eval/calibration/cost_correlation"] > 0.95
    assert seeing["eval/calibration/cost_predicted"] == pytest.approx(seeing["eval/calibration/cost_measured"], rel=0.15)
    assert abs(seeing["eval/calibration/cost_error_in_costly_states"]) < 1
    assert blindness(seeing, budgets, "eval") is None
    assert "blind" in (blindness(blind, budgets, "eval") or "")
    assert "eval/stochastic/calibration/reward_correlation" in blind


def test_of_two_constraints_the_one_is_named_whose_critic_is_blind() -> None:
    budgets = (CostBudget(5.0), CostBudget(40.0))
    told = {f"eval/calibration/cost_{i}_{name}": value for i, found in enumerate(((0.9, 30.0, 30.0), (0.1, 2.0, 30.0)))
            for name, value in zip(("correlation", "predicted", "measured"), found, strict=True)}  # fmt: skip
    assert blindness(told, budgets, "eval") == "the cost critic of constraint 2, whose budget is 40, is blind: it says 2 where 30 follows, correlation 0.10"


def test_a_learner_that_predicts_without_a_discount_is_refused() -> None:
    learner = Waits(knows=True)
    learner.config = SimpleNamespace()
    with pytest.raises(UserError, match="Waits has predict but its config has no gamma"):
        evaluate(learner, "saddlepoint/Toy-v0", (CostBudget(1.0, horizon=60, gamma=0.9),), 2, seed=0)
