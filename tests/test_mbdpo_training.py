"""MBDPO through the whole house: with and without a cost, stopped and resumed, and loaded again with its plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from saddlepoint import ALGD, ALGDConfig, TrainConfig, load_policy, train
from saddlepoint.cli import main
from saddlepoint.commands import fresh_run, parse_training
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.check import check_env
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PRESETS
from saddlepoint.systems import SYSTEMS
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.log import read_metrics
from saddlepoint.types import EnvShape, UserError

TINY = replace(
    PRESETS["small"], width=16, latent=16, encoder_width=16, proposals=8, elites=3, policy_rollouts=2, steps=3, batch_size=8, score_states=2,
    score_proposals=4, critics=2, cost_members=2, mppi_iterations=2, bins=11, time_embedding=4,
)  # fmt: skip
FLAGS = [
    "--width", "16", "--latent", "16", "--encoder-width", "16", "--proposals", "8", "--elites", "3", "--policy-rollouts", "2", "--steps", "3",
    "--batch-size", "8", "--score-states", "2", "--score-proposals", "4", "--critics", "2", "--bins", "11", "--total-steps", "120",
    "--warmup-steps", "60", "--eval-every", "100000", "--replay-size", "1000", "--threads", "1", "--compile", "off", "--quiet",
    "--eval-envs", "10",
]  # fmt: skip
COSTLY, FREE = "tests/ShortToy-v0", "tests/ShortPendulum-v0"
gym.register(COSTLY, "saddlepoint.envs.toy:ToyEnv", max_episode_steps=23)
gym.register(FREE, "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)
BUDGET = (CostBudget(2.0, horizon=23),)


def config(env: str, out: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        env=env, out=out, total_steps=120, warmup_steps=60, updates_per_step=0.3, eval_every=10_000, checkpoint_every=50, log_every=50,
        replay_size=1000, threads=1, compile="off", quiet=True, seed=3, num_envs=2, eval_envs=10,
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.parametrize("name", ["denoise", "mppi", "shielded", "compiled", "compiled bfloat16"])
def test_stopped_and_resumed_runs_equal_one_in_one_go(name, tmp_path):
    """Stopped in mid-episode, so that the plans in memory matter."""
    learner, compile = replace(TINY, planner=name) if name in ("denoise", "mppi") else TINY, "off"
    if name == "shielded":
        learner = replace(TINY, shield=True, acting_average=10)
    if name.startswith("compiled"):
        learner, compile = replace(TINY, width=32, latent=32, encoder_width=32, precision="bfloat16" if "bfloat16" in name else "float32"), "on"
    train(config(COSTLY, tmp_path / "whole", compile=compile), MBDPO, learner, BUDGET)
    train(config(COSTLY, tmp_path / "parts", compile=compile, total_steps=90), MBDPO, learner, BUDGET)
    train(config(COSTLY, tmp_path / "parts", compile=compile), MBDPO, learner, BUDGET, resume=True)
    one, two = (load(latest(tmp_path / run)[0]) for run in ("whole", "parts"))
    assert np.abs(one.state["memory"]).max() > 0
    np.testing.assert_array_equal(one.state["memory"], two.state["memory"])
    for part in ("learner", "replay"):
        left, right = vars(one)[part], vars(two)[part]
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    if name == "compiled":
        # By the prior: so little trained, plans are worth the same to within ten roundings, which then choose the elites.
        eager, compiled = (load_policy(tmp_path / "whole", acting={"planner": "policy"}, compile=on) for on in (False, True))
        assert eager.learner.model.dynamics.packed is None
        assert compiled.learner.model.dynamics.packed is not None
        observation = np.zeros(eager.shape.observation)
        np.testing.assert_allclose(eager.act(observation), compiled.act(observation), atol=1e-5)


def test_the_command_line_on_the_toy(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "mbdpo", "--preset", "small", "--env", COSTLY, "--cost-limit", "2", *FLAGS, "--out", str(run)]) == 0
    line = [line for line in read_metrics(run) if line["kind"] == "train"][-1]
    assert line["train/updates"] == 120  # the preset makes up for the 60 steps of the warm-up
    assert line.keys() >= {"train/reward_loss", "train/cost_loss", "train/multiplier", "train/effective_multiplier", "train/score_loss"}
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    assert "over budget" in said
    assert "note: --preset small of mbdpo also sets --warmup-actions=turns --catch-up" in said


def test_the_small_preset_says_how_a_run_begins():
    def begun(*flags: str) -> tuple[str, bool]:
        run, _, _ = fresh_run(parse_training("mbdpo", ["--env", FREE, *flags]), SYSTEMS["mbdpo"])
        return run.warmup_actions, run.catch_up

    assert begun() == ("random", False)
    assert begun("--preset", "small") == ("turns", True)
    assert begun("--preset", "small", "--warmup-actions", "random", "--no-catch-up") == ("random", False)
    assert begun("--preset", "small", "--warmup-steps", "0")[1] is False


def test_an_environment_without_a_cost(tmp_path, capsys):
    assert check_env(FREE, needs_cost=False) == EnvShape(3, (-2.0,), (2.0,), 0)
    run = tmp_path / "run"
    assert main(["train", "mbdpo", "--env", FREE, *FLAGS, "--out", str(run)]) == 0
    assert main(["train", "mbdpo", "--resume", str(run), "--total-steps", "140", "--quiet"]) == 0
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    assert "return" in said
    assert "budget" not in said
    assert load_policy(run).budgets == ()
    assert main(["train", "mbdpo", "--env", FREE, *FLAGS, "--cost-limit", "5", "--out", str(tmp_path / "other")]) == 2
    assert "leave out the budget (the cost flags)" in capsys.readouterr().err
    assert main(["train", "mbdpo", "--env", FREE, *FLAGS, "--rho", "2", "--out", str(tmp_path / "other")]) == 2
    assert "--rho does nothing here" in capsys.readouterr().err
    with pytest.raises(UserError, match='puts no "cost"'):
        train(config(FREE, tmp_path / "algd"), ALGD, ALGDConfig())


def test_a_loaded_policy_goes_on_from_its_plan(tmp_path):
    policy = load_policy(train(config(COSTLY, tmp_path / "run", total_steps=80), MBDPO, TINY, BUDGET))
    observation = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)

    def act() -> np.ndarray:
        return policy.act(observation, generator=torch.Generator().manual_seed(policy.seed))

    first, second = act(), act()
    assert not np.array_equal(first, second)
    policy.reset(np.array([True, False]))
    np.testing.assert_array_equal(act()[0], first[0])
    for _ in range(2):  # its own generator goes on from step to step, and begins anew with all episodes
        policy.reset()
        np.testing.assert_array_equal(policy.act(observation), first)
        assert not np.array_equal(policy.act(observation), second)
    assert policy.act(observation[0]).shape == (2,)


def test_a_shielded_policy_is_told_what_steps_cost(tmp_path, capsys):
    """Its memory counts the episode's cost, in training too; acting may have another setting than the run."""
    run = train(config(COSTLY, tmp_path / "run", total_steps=80), MBDPO, replace(TINY, shield=True, acting_average=10), BUDGET)
    saved = load(latest(run)[0])
    counted = saved.state["memory"][:, -2:]
    np.testing.assert_allclose(counted[:, 0], saved.state["sums"]["costs"][:, 0], rtol=1e-5)
    np.testing.assert_array_equal(counted[:, 1], saved.state["sums"]["lengths"])
    policy, observation = load_policy(run), np.zeros(6, np.float32)
    first = policy.act(observation)
    with pytest.raises(UserError, match="has not been told what the last step cost"):
        policy.act(observation)
    for odd in ([1.0, 2.0], "x", [1.0, [2.0]], None, {}):
        with pytest.raises(UserError, match="pay takes 1 finite cost"):
            policy.pay(odd)
    policy.pay(0.5)
    policy.act(observation)
    policy.reset()
    np.testing.assert_array_equal(policy.act(observation), first)
    free = load_policy(run, acting={"shield": False, "average_acts": "never"})
    free.act(observation)
    free.pay(0.5)
    free.act(observation)
    assert main(["evaluate", str(run), "--acting", "shield=false"]) == 0
    assert main(["evaluate", str(run), "--acting", "planner=policy"]) == 2
    assert "acting: shield checks plans that are imagined" in capsys.readouterr().err
    assert main(["train", "mbdpo", "--env", FREE, *FLAGS, "--shield", "--out", str(tmp_path / "other")]) == 2
    assert "--shield does nothing here: the environment reports no cost" in capsys.readouterr().err
