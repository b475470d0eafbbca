"""Running statistics against numpy; what they do in training, resume, evaluation, load_policy and export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saddlepoint.baselines.config import SACConfig
from saddlepoint.baselines.sac import SAC
from saddlepoint.export import export
from saddlepoint.nn.normaliser import NormalisedLearner, NormalisedPlanner, Normaliser, normalised
from saddlepoint.policies import load_policy
from saddlepoint.replay import Replay
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.start import train
from saddlepoint.types import EnvSetup, Planner, UserError
from tests.test_train_loop import CONFIG, assert_same_runs
from tests.toys import BUDGET, Tiny, TinyConfig

SMALL = SACConfig(policy_hidden=(8,), critic_hidden=(8,), batch_size=4)


def test_statistics_are_numpy_s_in_whatever_pieces_they_come() -> None:
    rows = np.random.default_rng(0).normal([1e4, -1e-3, 0.0, 7.0], [1e2, 1e-4, 1.0, 0.0], (500, 4))
    normaliser = Normaliser(4)
    for piece in np.split(rows, [1, 3, 4, 60, 61, 300]):
        normaliser.update(torch.as_tensor(piece, dtype=torch.float64))
    np.testing.assert_allclose(normaliser.mean, rows.mean(0), rtol=1e-10)
    np.testing.assert_allclose(normaliser.square / normaliser.count, rows.var(0), rtol=1e-6, atol=1e-12)
    wanted = np.clip((rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-8), -10, 10)
    np.testing.assert_allclose(normaliser(torch.as_tensor(rows, dtype=torch.float32)), wanted, atol=2e-3)
    assert normaliser(torch.full((1, 4), 1e9)).tolist() == [[10.0] * 4]


def test_one_row_leaves_observations_as_they_are() -> None:
    normaliser = Normaliser(2)
    normaliser.update(torch.full((1, 2), 3.0))
    assert normaliser(torch.tensor([[3.0, 4.0]])).tolist() == [[3.0, 4.0]]


class Seeing(Tiny):
    """Remembers what it was shown."""

    def act(self, observation: Any, mode: Any, generator: Any) -> Any:
        self.acted_on = observation
        return super().act(observation, mode, generator)

    def update(self, replay: Any, updates: int) -> Any:
        batch = replay.sample(64, torch.Generator().manual_seed(0))
        self.learnt_from = batch
        return super().update(replay, updates)


def test_a_learner_sees_normalised_observations_and_the_replay_stays_raw() -> None:
    from saddlepoint.types import EnvShape

    shape = EnvShape(2, (-1.0,), (0.5,), 1)
    inner = Seeing(TinyConfig(), shape, (BUDGET,), 0, torch.device("cpu"))
    learner = normalised(inner, 2, "cpu")
    replay = Replay(100, 2, 1, 1)
    rows = np.random.default_rng(1).normal(50, 3, (100, 2)).astype(np.float32)
    zeros = np.zeros(1, np.float32)
    for before, after in zip(rows, np.roll(rows, -1, axis=0)):
        replay.add(before[None], zeros[None], zeros, zeros[None], after[None], zeros, zeros)
        learner.observe(torch.as_tensor(before[None]))
    learner.update(replay, 1)
    batch = inner.learnt_from
    assert abs(float(batch.observation.mean())) < 0.5
    assert 0.5 < float(batch.next_observation.std()) < 1.5
    assert float(replay.state_dict()["observation"].mean()) > 40
    before = learner.state_dict()
    learner.act(torch.as_tensor(rows), "deterministic", torch.Generator())
    assert abs(float(inner.acted_on.mean())) < 0.1
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name])  # acting leaves the statistics alone
    other = normalised(Seeing(TinyConfig(), shape, (BUDGET,), 1, torch.device("cpu")), 2, "cpu")
    other.load_state_dict(before)
    one = torch.as_tensor(rows[:5])
    unused = torch.Generator()
    assert torch.equal(other.act(one, "deterministic", unused), learner.act(one, "deterministic", unused))
    with pytest.raises(UserError, match="statistics"):
        other.load_state_dict(inner.state_dict())


def test_a_planner_stays_one_and_others_do_not_become_one() -> None:
    class Plans(Tiny):
        memory_size = 3

        def act_on(self, observation: Any, memory: Any, mode: Any, generator: Any) -> Any:
            return observation, memory

    from saddlepoint.types import EnvShape

    args = (TinyConfig(), EnvShape(2, (-1.0,), (0.5,), 1), (BUDGET,), 0, torch.device("cpu"))
    planner, plain = normalised(Plans(*args), 2, "cpu"), normalised(Tiny(*args), 2, "cpu")
    assert isinstance(planner, NormalisedPlanner)
    assert isinstance(planner, Planner)
    assert not isinstance(plain, Planner)
    planner.normaliser.update(torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    seen, _ = planner.act_on(torch.tensor([[2.0, 2.0]]), torch.zeros(1, 3), "explore", torch.Generator())
    np.testing.assert_allclose(seen, [[1.0, 1.0]], rtol=1e-6)


def go(out: Path, steps: int, resume: bool = False) -> Path:
    return train(
        replace(CONFIG, out=out, total_steps=steps, normalise_observations=True),
        Tiny,
        TinyConfig(),
        (BUDGET,),
        resume=resume,
    )


def test_a_resumed_run_has_the_same_statistics_to_the_bit(tmp_path: Path) -> None:
    whole, part = go(tmp_path / "whole", 420), go(tmp_path / "part", 230)
    saved = load(latest(part)[0])
    assert (
        saved.learner["observations.count"] == saved.step + 3
    )  # each new observation once, the first ones of all environments included
    go(part, 420, resume=True)
    assert_same_runs(whole, part)
    with pytest.raises(UserError, match="--normalise-observations True"):
        train(replace(CONFIG, out=part), Tiny, TinyConfig(), (BUDGET,), resume=True)


def test_policy_and_export_have_the_statistics(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    config = TrainConfig(
        env="saddlepoint/Toy-v0", total_steps=70, warmup_steps=60, out=tmp_path / "run", quiet=True, normalise_observations=True,
        env_kwargs={"jitter": [0.0, 0.5]},
    )  # fmt: skip
    run = train(config, SAC, SMALL)
    assert json.loads((run / "config.json").read_text())["train"]["env_kwargs"] == {"jitter": [0.0, 0.5]}
    policy = load_policy(run)
    assert isinstance(policy.learner, NormalisedLearner)
    assert policy.setup == EnvSetup("saddlepoint/Toy-v0", {"jitter": [0.0, 0.5]}, action_repeat=1)
    rows = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    with torch.no_grad():
        by_hand = policy.learner.inner.act(
            policy.learner.normaliser(torch.as_tensor(rows)), "deterministic", torch.Generator()
        )
    np.testing.assert_array_equal(policy.act(rows), by_hand)
    export(run, tmp_path / "policy.onnx")
    found = onnxruntime.InferenceSession((tmp_path / "policy.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    action, _ = found.run(None, {"observation": rows})
    np.testing.assert_allclose(action, policy.act(rows), atol=1e-5)


def test_a_blind_policy_raises_or_holds(tmp_path: Path) -> None:
    config = TrainConfig(env="saddlepoint/Toy-v0", total_steps=70, warmup_steps=60, out=tmp_path / "run", quiet=True)
    policy = load_policy(train(config, SAC, SMALL))
    rows = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    blind = rows.copy()
    blind[1, 4] = np.nan
    for on_nan, words in (
        ("raise", r"not finite \(entry 4 is nan\): correct it, or give on_nan"),
        ("hold", "no action yet to hold"),
    ):
        with pytest.raises(UserError, match=words):
            policy.act(blind, on_nan=on_nan)  # type: ignore[arg-type]
    first = policy.act(rows[::-1].copy())
    held = policy.act(blind, on_nan="hold")
    np.testing.assert_array_equal(held[1], first[1])
    np.testing.assert_allclose(held[[0, 2]], policy.act(rows)[[0, 2]], atol=1e-6)
    with pytest.raises(UserError, match="on_nan must be"):
        policy.act(rows, on_nan="skip")  # type: ignore[arg-type]
    policy.reset()
    with pytest.raises(UserError, match="no action yet"):
        policy.act(blind[1], on_nan="hold")
