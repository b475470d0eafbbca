"""Long learning tests (`make test-slow`): the toy to a threshold that a broken algorithm misses."""

from __future__ import annotations

from pathlib import Path

import pytest

from saddlepoint import ALGD, ALGDConfig, TrainConfig, train
from saddlepoint.train.log import read_metrics


def last_evaluation(out: Path, energy: str) -> dict[str, float]:
    config = TrainConfig(
        env="saddlepoint/Toy-v0", total_steps=10_000, warmup_steps=1000, eval_every=10_000, checkpoint_every=10_000,
        replay_size=20_000, threads=1, compile="off", out=out, quiet=True,
    )  # fmt: skip
    learner = ALGDConfig(energy=energy, critic_hidden=(64, 64), policy_hidden=(64, 64))
    train(config, ALGD, learner)
    return [line for line in read_metrics(out) if line["kind"] == "eval"][-1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_algd_goes_round_the_hazard_and_no_constraint_goes_through_it(tmp_path):
    """Waiting before the hazard earns about 10 and straight on costs about 27 steps inside: more than 13 at cost <= 1 needs the way round."""
    safe = last_evaluation(tmp_path / "safe", "augmented")
    assert safe["eval/return_mean"] > 13
    assert safe["eval/cost_mean"] <= 1
    broken = last_evaluation(tmp_path / "broken", "none")
    assert broken["eval/cost_mean"] > 5
