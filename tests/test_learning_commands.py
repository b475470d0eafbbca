"""benchmarks/learning.py: its commands are still what the command line takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from saddlepoint.commands import fresh_run, parse_training
from saddlepoint.systems import SYSTEMS


@pytest.fixture
def learning(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import learning

    yield learning
    sys.modules.pop("learning", None)


def test_the_command_line_takes_every_experiment(learning):
    for name in learning.EXPERIMENTS:
        for label, seed, (_, system, *flags), _ in learning.planned(name):
            if seed == 0:
                config, _, _ = fresh_run(parse_training(system, flags), SYSTEMS[system])
                assert config.seed == 0, label


def test_the_first_version_of_the_small_preset(learning):
    """As the runs before the preset changed were made, beside what a variant changes."""
    for label, flags in learning.PLANNERS.items():
        command = [*learning.first_small(flags).split(), "--env", "saddlepoint/Toy-v0"]
        config, learner, _ = fresh_run(parse_training("mbdpo", command), SYSTEMS["mbdpo"])
        assert (config.warmup_actions, config.catch_up) == ("held" if "held" in flags else "random", False)
        if learner.planner == "denoise":
            assert (learner.levels, learner.beta_last) == ("betas", 0.25 if label == "wide" else 0.025)
        if learner.td_action != "prior":
            assert learner.td_levels == 2
