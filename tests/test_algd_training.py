"""ALGD through the whole house: real environments, the loop, checkpoints, and a policy loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saddlepoint import ALGD, ALGDConfig, TrainConfig, load_policy, train
from saddlepoint.cli import main
from saddlepoint.train.checkpoint import latest, load

SMALL = ALGDConfig(critic_hidden=(16, 16), policy_hidden=(16,), batch_size=16)


def config(env: str, **changes) -> TrainConfig:
    base = TrainConfig(
        env=env, total_steps=260, warmup_steps=60, updates_per_step=0.5, eval_every=10_000, checkpoint_every=100, log_every=50,
        replay_size=1000, threads=1, compile="off", quiet=True, seed=3,
    )  # fmt: skip
    return replace(base, **changes)


def assert_same(a: Path, b: Path) -> None:
    one, two = (load(latest(run)[0]) for run in (a, b))
    assert one.step == two.step
    for part in ("learner", "replay"):
        left, right = vars(one)[part], vars(two)[part]
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("env", ["saddlepoint/ToyTwo-v0", "saddlepoint/HopperVelocity-v0", "saddlepoint/PointGoal1-v0"])
def test_stopped_and_resumed_runs_equal_one_in_one_go(env, tmp_path):
    short = {} if "Toy" in env else {"max_episode_steps": 120}
    train(config(env, out=tmp_path / "whole", env_kwargs=short), ALGD, SMALL)
    train(config(env, out=tmp_path / "parts", env_kwargs=short, total_steps=130), ALGD, SMALL)
    train(config(env, out=tmp_path / "parts", env_kwargs=short), ALGD, SMALL, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_loaded_policy_acts_like_the_trained_one(tmp_path):
    run = train(config("saddlepoint/Toy-v0", out=tmp_path / "run"), ALGD, SMALL)
    policy = load_policy(run)
    observation = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    agent = ALGD(SMALL, policy.shape, policy.budgets, seed=99)
    agent.load_state_dict(load(latest(run)[0]).learner)
    wanted = agent.act(torch.from_numpy(observation), "deterministic", torch.Generator())
    np.testing.assert_array_equal(policy.act(observation), wanted.numpy())
    one = policy.act(observation, "stochastic", torch.Generator().manual_seed(1))
    policy.reset()  # the noise of the next sample would follow that of this one
    np.testing.assert_array_equal(policy.act(observation, "stochastic", torch.Generator().manual_seed(1)), one)
    assert policy.act(observation[0]).shape == (2,)


def test_a_run_with_a_budget_of_its_own_resumes_without_saying_it_again(tmp_path, capsys):
    small = "--critic-hidden 16 16 --policy-hidden 16 --batch-size 16 --threads 1 --compile off --quiet --replay-size 1000"
    start = f"train algd --env saddlepoint/Toy-v0 --cost-limit 3 --total-steps 120 --warmup-steps 60 {small}"
    run = tmp_path / "run"
    assert main([*start.split(), "--out", str(run)]) == 0
    assert main(["train", "algd", "--resume", str(run), "--total-steps", "180", "--quiet"]) == 0
    assert load(latest(run)[0]).step == 180
    assert main(["train", "algd", "--resume", str(run), "--total-steps", "200", "--cost-limit", "4"]) == 2
    assert "another cost budget" in capsys.readouterr().err


def test_an_environment_of_the_users_own_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_package.py").write_text(
        "import gymnasium as gym\n"
        "from saddlepoint.envs.toy import ToyEnv\n"
        "gym.register('Mine-v0', entry_point=ToyEnv, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    small = "--critic-hidden 16 16 --policy-hidden 16 --batch-size 16 --threads 1 --compile off --quiet --replay-size 1000"
    start = f"train algd --env my_package:Mine-v0 --total-steps 80 --warmup-steps 60 {small}"
    assert main([*start.split(), "--cost-limit", "2", "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert main([*start.split(), "--out", str(tmp_path / "other")]) == 2
    assert "--cost-limit" in capsys.readouterr().err
    assert main(["train", "algd", "--env", "no_such_module:Mine-v0", "--cost-limit", "1"]) == 2
    assert "no_such_module" in capsys.readouterr().err


def test_metrics_that_cannot_be_written_are_one_sentence(tmp_path, monkeypatch):
    import errno

    from saddlepoint.train.log import RunLog
    from saddlepoint.types import UserError

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunLog, "write", full)
    with pytest.raises(UserError, match=r"No space left.*--resume"):
        train(config("saddlepoint/Toy-v0", out=tmp_path / "run"), ALGD, SMALL)
