"""Data sets from runs: a replay cut into its episodes, transition for transition, and new episodes of a policy."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from saddlepoint import TrainConfig, train
from saddlepoint.cli import main
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PRESETS
from saddlepoint.offline.collect import collect
from saddlepoint.offline.dataset import Dataset
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.types import UserError

TOY, PENDULUM = "tests/CollectToy-v0", "tests/CollectPendulum-v0"
gym.register(TOY, "saddlepoint.envs.toy:ToyEnv", max_episode_steps=13)
gym.register(PENDULUM, "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)


TINY = replace(
    PRESETS["small"], width=16, latent=16, encoder_width=16, batch_size=4, critics=2, bins=11, steps=3, planner="policy"
)


def run_of(env: str, out: Path, **changes) -> Path:
    config = TrainConfig(
        env=env, out=out, total_steps=90, warmup_steps=80, eval_every=10_000, eval_episodes=10, checkpoint_every=1000, log_every=50, replay_size=1000,
        threads=1, compile="off", quiet=True, num_envs=2,
    )  # fmt: skip
    budgets = (CostBudget(2.0, horizon=13),) if env == TOY else None
    return train(replace(config, **changes), MBDPO, TINY, budgets)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    home = tmp_path_factory.mktemp("runs")
    return [run_of(TOY, home / "toy", replay_size=60), run_of(PENDULUM, home / "pendulum")]


def test_a_replay_cut_into_episodes(runs, tmp_path, capsys):
    """The toy's ring has been overwritten: 60 of 90 transitions are left. Every transition comes back in its place."""
    assert main(["collect", *map(str, runs), "--out", str(tmp_path / "data")]) == 0
    assert "150 steps" in capsys.readouterr().out
    data = Dataset(tmp_path / "data")
    assert [(task.env, task.observation, len(task.action_low), task.episode_length) for task in data.tasks] == [
        (TOY, 6, 2, 13),
        (PENDULUM, 3, 1, 20),
    ]
    assert data.steps == 60 + 90
    episodes = [data.episode(number) for number in range(len(data))]
    for number, folder in enumerate(runs):
        replay = load(latest(folder)[0]).replay
        task = data.tasks[number]
        rows, envs, head, filled = replay["position"].tolist()
        order = [(head + i) % rows if filled == rows else i for i in range(filled)]
        high = np.array(task.action_high, np.float32)
        ours = [episode for episode in episodes if episode["task"] == number]
        after = np.concatenate([episode["observation"][1:, : task.observation] for episode in ours])
        before = np.concatenate([episode["observation"][:-1, : task.observation] for episode in ours])
        action = np.concatenate([episode["action"][:, : len(high)] for episode in ours])
        slots = [row * envs + env for env in range(envs) for row in order]
        np.testing.assert_array_equal(before, replay["observation"].numpy()[slots])
        np.testing.assert_array_equal(after, replay["next_observation"].numpy()[slots])
        np.testing.assert_allclose(action * high, replay["action"].numpy()[slots], atol=1e-6)
        np.testing.assert_array_equal(
            np.concatenate([episode["reward"] for episode in ours]), replay["reward"].numpy()[slots]
        )
        assert max(len(episode["reward"]) for episode in ours) == task.episode_length
        ends = np.concatenate([np.eye(len(episode["reward"]))[-1] for episode in ours])
        assert not replay["terminated"].numpy()[slots][ends == 0].any()


def test_new_episodes_of_the_policies(runs, tmp_path):
    command = ["collect", *map(str, runs), "--episodes", "12", "--mode", "stochastic", "--seed", "5", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "two")]) == 0
    one, two = Dataset(tmp_path / "one"), Dataset(tmp_path / "two")
    assert len(one) == 24
    assert (tmp_path / "one" / "action.f32").read_bytes() == (tmp_path / "two" / "action.f32").read_bytes()
    assert one.digest() == two.digest()
    pendulum = [one.episode(number) for number in range(12, 24)]
    assert {len(episode["reward"]) for episode in pendulum} == {20}
    starts = {tuple(episode["observation"][0]) for episode in pendulum}
    assert len(starts) == 12
    # The pendulum's reward is a known function of the state and the torque.
    for episode in pendulum:
        cos, sin, speed = episode["observation"][:-1, :3].T
        wanted = -(np.arctan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * (2 * episode["action"][:, 0]) ** 2)
        np.testing.assert_allclose(episode["reward"], wanted, atol=1e-4)


def test_runs_of_one_environment_are_one_task(runs, tmp_path):
    shutil.copytree(runs[1], tmp_path / "again")
    data = collect([runs[1], tmp_path / "again"], tmp_path / "data")
    assert (len(data.tasks), data.steps) == (1, 180)


def test_mistakes(runs, tmp_path, capsys):
    for args, said in (
        ([], "collect needs run folders"),
        ([str(runs[0])], "give --out"),
        ([str(tmp_path), "--out", "x"], "is not a run folder"),
        ([str(runs[0]), "--out", "x", "--mode", "explore"], "--mode does nothing here"),
        ([str(runs[0]), "--out", "x", "--episodes", "-1"], "--episodes must lie from 0 to 1,000,000"),
        ([str(runs[0]), "--out", "x", "--episodes", "9" * 26], "--episodes must lie from 0 to 1,000,000"),
        ([str(runs[0]), "--out", "x", "--episodes", "1", "--seed", "9" * 30], "--seed must lie from 0"),
        ([str(runs[0]), "--out", str(runs[0])], "exists already"),
        ([str(runs[0]), f"{runs[0]}/.", "--out", "x"], "is given twice"),
        ([str(runs[0]), "--out", "/proc/data"], "/proc/data cannot be written"),
    ):
        assert main(["collect", *args]) == 2, args
        assert said in capsys.readouterr().err
    (tmp_path / "config.json").write_text(
        '{"format": 1, "system": "mbdpo", "train": {"data": "x", "seed": 0}, "learner": {}, "resolved": {}, "tasks": []}'
    )
    with pytest.raises(UserError, match="not a run on one environment"):
        collect([tmp_path], tmp_path / "data")
