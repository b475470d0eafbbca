"""Held actions: sums, ends, limits and budgets against the environment stepped by hand, and a whole run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from saddlepoint.baselines.config import SACConfig
from saddlepoint.baselines.sac import SAC
from saddlepoint.constrained.budget import CostBudget, spent
from saddlepoint.envs import EnvBatch, env_spec, make_env
from saddlepoint.envs.tasks import TASKS
from saddlepoint.policies import load_policy
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.evaluate import evaluate
from saddlepoint.train.start import as_kept, cut_after, train
from saddlepoint.types import EnvSetup, EnvShape, UserError
from tests.test_envs_batch import HOPPER, SPOILT, seeds
from tests.test_envs_snapshot import through_files
from tests.test_train_loop import CONFIG, assert_same_runs
from tests.toys import BUDGET, ENV, Tiny, TinyConfig

TOY = "saddlepoint/Toy-v0"


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize(("id", "repeat", "limit"), [(TOY, 4, 60), (TOY, 7, 60), (HOPPER, 3, 50), (SPOILT, 2, 100)])
def test_rewards_and_costs_are_the_sums_of_the_simulator_s_steps(
    id: str, repeat: int, limit: int, processes: bool
) -> None:
    count = 2
    batch = EnvBatch(
        EnvSetup(id, {"max_episode_steps": limit}, action_repeat=repeat), count, seed=3, processes=processes
    )
    single = [make_env(id, max_episode_steps=limit) for _ in range(count)]
    batch.reset()
    for env, seed in zip(single, seeds(3, count)):
        env.reset(seed=seed)
    ends, rng = 0, np.random.default_rng(0)
    for _ in range(30):
        action = rng.uniform(-1, 1, (count, batch.shape.action)).astype(np.float32)
        step = batch.step(action)
        for i, env in enumerate(single):
            reward, cost = 0.0, np.zeros(batch.shape.constraints)
            for _ in range(repeat):
                observation, own, terminated, truncated, info = env.step(action[i].copy())
                reward, cost = reward + float(own), cost + info["cost"]
                if terminated or truncated:
                    break
            assert step.reward[i] == np.float32(reward)
            np.testing.assert_array_equal(step.cost[i], np.float32(cost))
            np.testing.assert_array_equal(step.next_observation[i], observation.astype(np.float32))
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            if terminated or truncated:
                ends += 1
                observation, _ = env.reset()
            np.testing.assert_array_equal(step.observation[i], observation.astype(np.float32))
    assert ends >= 2
    batch.close()


@pytest.mark.parametrize("repeat", [1, 3, 4, 7])
def test_an_episode_and_its_budget_are_the_same_in_decisions(repeat: int) -> None:
    for id in (TOY, HOPPER, "saddlepoint/HopperSpeed-v0"):
        plain, held = env_spec(id), env_spec(EnvSetup(id, action_repeat=repeat))
        assert held.horizon == math.ceil(plain.horizon / repeat)
        assert held.action_repeat == repeat
        for a, b in zip(plain.budgets, held.budgets):
            assert (b.horizon, b.per, b.discounted) == (held.horizon, a.per, a.discounted)
            assert b.episode == pytest.approx(a.episode, rel=1e-12)
    spec = EnvBatch(EnvSetup(TOY, action_repeat=repeat), 1, seed=0).spec
    assert spec.budgets == (CostBudget(1.0, horizon=math.ceil(60 / repeat)),)


def test_a_task_can_have_a_default_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env_spec(EnvSetup(TOY, action_repeat=0)).action_repeat == 1
    monkeypatch.setitem(TASKS, TOY, replace(TASKS[TOY], action_repeat=4))
    assert env_spec(EnvSetup(TOY, action_repeat=0)).horizon == 15
    assert env_spec(EnvSetup(TOY, action_repeat=2)).horizon == 30
    with pytest.raises(UserError, match="--action-repeat must be at least 1"):
        TrainConfig(env=TOY, action_repeat=-1).validate()


class Counting(gym.Env):
    """Changes the action that it is given, as a careless environment does; terminates after 10 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        reward = float(action[0])
        action *= 2
        return np.full(1, self.t, np.float32), reward, self.t == 10, False, {"cost": 0.0}


gym.register("tests/Counting-v0", Counting)


def test_a_termination_ends_the_hold_and_an_action_stays_as_it_was() -> None:
    batch = EnvBatch(EnvSetup("tests/Counting-v0", action_repeat=4), 1, seed=0)
    batch.reset()
    given = np.full((1, 1), 0.5, np.float32)
    steps = [batch.step(given) for _ in range(3)]
    assert [step.reward.item() for step in steps] == [2.0, 2.0, 1.0]
    assert [step.next_observation.item() for step in steps] == [4, 8, 10]
    assert [step.terminated.item() for step in steps] == [False, False, True]
    assert given.item() == 0.5


@pytest.mark.parametrize("id", [TOY, HOPPER])
def test_a_held_batch_is_restored_to_the_bit(id: str) -> None:
    setup = EnvSetup(id, {"max_episode_steps": 50}, action_repeat=3)
    first = EnvBatch(setup, 2, seed=2)
    actions = np.random.default_rng(3).uniform(-1, 1, (30, 2, first.shape.action)).astype(np.float32)
    first.reset()
    for action in actions[:11]:
        first.step(action)
    state = through_files(first.snapshot())
    second = EnvBatch(setup, 2, seed=77)
    assert second.restore(state)
    for action in actions[11:]:
        for a, b in zip(first.step(action), second.step(action)):
            np.testing.assert_array_equal(a, b)


def held(out: Path, steps: int, resume: bool = False) -> Path:
    config = replace(CONFIG, out=out, action_repeat=3, total_steps=steps)
    return train(config, Tiny, TinyConfig(), (replace(BUDGET, horizon=4),), resume=resume)


def test_a_run_with_held_actions_resumes_and_says_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = held(tmp_path / "whole", 420)
    assert (
        "each action is held for 3 simulator steps, and counts as one step, so that an episode has 4 steps"
        in capsys.readouterr().out
    )
    part = held(tmp_path / "part", 200)
    held(part, 420, resume=True)
    assert_same_runs(whole, part)
    with pytest.raises(UserError, match="--action-repeat 3 and cannot go on with 2"):
        train(replace(CONFIG, out=part, action_repeat=2), Tiny, TinyConfig(), resume=True)
    ages = latest(whole)[0]
    assert ages.name == "420"


def test_an_evaluation_holds_actions_too() -> None:
    shape = EnvShape(2, (-1.0,), (0.5,), 1)
    policy = Tiny(TinyConfig(), shape, (BUDGET,), 3, "cpu")
    got = evaluate(policy, EnvSetup(ENV, action_repeat=5), (BUDGET,), 10, seed=11)
    assert got is not None
    assert got["eval/length_mean"] <= math.ceil(12 / 5)


def test_a_policy_knows_how_long_its_actions_hold(tmp_path: Path) -> None:
    config = TrainConfig(env=TOY, total_steps=70, warmup_steps=60, action_repeat=4, out=tmp_path / "run", quiet=True)
    run = train(config, SAC, SACConfig(policy_hidden=(8,), critic_hidden=(8,), batch_size=4))
    policy = load_policy(run)
    assert policy.setup == EnvSetup(TOY, action_repeat=4)
    assert policy.budgets == (CostBudget(1.0, horizon=15, gamma=0.97),)


def test_training_episodes_are_cut_and_evaluations_are_whole(tmp_path: Path) -> None:
    """The toy's episodes of 60 steps, cut after 15: the replay's ages, the training sums scaled to a whole episode, and whole evaluations."""
    config = TrainConfig(
        env=TOY, episode_steps=15, total_steps=120, warmup_steps=100, eval_every=120, log_every=60, out=tmp_path / "cut", quiet=True
    )
    train(config, SAC, SACConfig(policy_hidden=(8,), critic_hidden=(8,), batch_size=4))
    saved = load(latest(tmp_path / "cut")[0])
    np.testing.assert_array_equal(saved.replay["age"], np.arange(120) % 15)
    assert not saved.replay["terminated"].any()  # a cut is no end: learners bootstrap through it
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert {line["eval/length_mean"] for line in lines if line["kind"] == "eval"} == {60.0}
    trained = next(line for line in lines if line["kind"] == "train")
    assert trained["train/length_mean"] == 15.0
    assert trained["train/return_mean"] == pytest.approx(float(saved.replay["reward"][:60].sum()), rel=1e-5)  # four quarters of a whole one
    assert trained["train/cost_mean"] == pytest.approx(float(saved.replay["cost"][:60].sum()))


def test_recent_costs_of_cut_episodes_stand_for_whole_ones() -> None:
    """Episodes of 250 steps cut after 50, costing 0.2 a step: 50 of 25, whatever the sums over 50 steps say."""
    budget = CostBudget(25.0, horizon=250, gamma=0.97)
    cost, age = torch.full((400, 1, 1), 0.2), (torch.arange(400) % 50).view(-1, 1)
    assert spent((budget,), cost, age, cut=True).item() == pytest.approx(2 * budget.critic)


def test_cut_episodes_need_environments_of_their_own_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--episode-steps cuts training episodes, and --eval-envs 0"):
        train(replace(CONFIG, env=ENV, episode_steps=4, eval_envs=0, out=tmp_path / "run"), Tiny, TinyConfig(), BUDGET)


def test_navigation_holds_and_cuts_by_itself() -> None:
    goal, fixed = env_spec(EnvSetup("saddlepoint/PointGoal1-v0", action_repeat=0)), env_spec(EnvSetup("saddlepoint/PointButton1-fixed-v0", action_repeat=0))
    assert (goal.action_repeat, goal.horizon, goal.episode_steps, goal.budgets[0].episode) == (4, 250, 100, 25.0)
    assert (fixed.action_repeat, fixed.episode_steps) == (4, None)
    config = TrainConfig(env=goal.id, total_steps=100)  # what a run keeps, so that another version's defaults do not change it
    kept = as_kept(config, config.setup(), None)
    assert (kept.action_repeat, kept.episode_steps, kept.warmup_steps) == (4, 100, 10)
    assert as_kept(config, config.setup(), {"train": {"warmup_steps": 7}}).warmup_steps == 7
    assert as_kept(replace(config, episode_steps=70), config.setup(), None).episode_steps == 70
    assert as_kept(replace(config, eval_envs=0), config.setup(), None).episode_steps == 250  # evaluated in the training environments: whole episodes
    assert cut_after(replace(config, episode_steps=250, eval_envs=0), goal) is None
    assert as_kept(config, TrainConfig(env=fixed.id).setup(), None).episode_steps == 0
