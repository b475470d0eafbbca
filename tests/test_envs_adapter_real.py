"""The adapter on the real Safety-Gymnasium 1.0.0, which needs Python 3.10: SADDLEPOINT_SAFETY_GYMNASIUM names an interpreter that has it.

A server runs there; the environment of the six-tuple API that we adapt and train on here speaks to it through a pipe.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from saddlepoint import ALGD, ALGDConfig, TrainConfig, train
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs import SafetyGymnasiumAdapter, check_env
from saddlepoint.train.log import read_metrics

PYTHON = os.environ.get("SADDLEPOINT_SAFETY_GYMNASIUM", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="SADDLEPOINT_SAFETY_GYMNASIUM names no interpreter with safety-gymnasium 1.0.0"
)

SERVER = """
import json, sys
import numpy as np
import safety_gymnasium
env = safety_gymnasium.make("SafetyPointGoal1-v0")
def plain(value):
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
space = env.action_space
print("ready", json.dumps([env.observation_space.shape[0], space.low.tolist(), space.high.tolist()]), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    if "action" in ask:
        observation, *rest, info = env.step(np.array(ask["action"]))
        print(json.dumps([observation.tolist(), *map(plain, rest), {k: plain(v) for k, v in info.items()}]), flush=True)
    else:
        observation, info = env.reset(seed=ask["seed"])
        print(json.dumps([observation.tolist(), {}]), flush=True)
"""


class Remote:
    """A SafetyPointGoal1-v0 that lives in the other interpreter: what a user of Safety-Gymnasium has."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [PYTHON, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout
        while not (line := self.process.stdout.readline()).startswith("ready"):
            assert line, f"{PYTHON} cannot import safety_gymnasium"
        size, low, high = json.loads(line.removeprefix("ready"))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,))
        self.action_space = gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32))

    def _ask(self, **question: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = self._ask(seed=seed)
        return np.array(observation, np.float32), info

    def step(self, action: np.ndarray) -> Any:
        observation, *rest = self._ask(action=np.asarray(action, float).tolist())
        return np.array(observation, np.float32), *rest

    def close(self) -> None:
        self.process.kill()


@pytest.fixture(scope="module", autouse=True)
def registered():
    gym.register("RealPointGoal1-v0", entry_point=lambda **_: SafetyGymnasiumAdapter(Remote()), max_episode_steps=30)
    yield
    del gym.registry["RealPointGoal1-v0"]


def test_everything_passes_through_and_the_cost_moves_into_info():
    raw, adapted, paid = Remote(), SafetyGymnasiumAdapter(Remote()), 0.0
    for seed in range(4):  # straight on, into something in one layout at least
        np.testing.assert_array_equal(raw.reset(seed=seed)[0], adapted.reset(seed=seed)[0])
        for _ in range(200):
            observation, reward, cost, terminated, truncated, _ = raw.step(np.array([1.0, 0.0]))
            got = adapted.step(np.array([1.0, 0.0]))
            np.testing.assert_array_equal(got[0], observation)
            assert got[1:4] == (reward, terminated, truncated)
            assert got[4]["cost"] == cost
            paid += cost
    assert paid > 0
    raw.close()
    adapted.close()


def test_the_real_environment_passes_our_check_and_trains(tmp_path: Path):
    shape = check_env("RealPointGoal1-v0", steps=60)
    assert (shape.observation, shape.constraints) == (60, 1)
    config = TrainConfig(
        env="RealPointGoal1-v0", total_steps=60, warmup_steps=40, eval_every=60, log_every=20,
        checkpoint_every=60, replay_size=100, threads=1, quiet=True, out=tmp_path / "run",
    )  # fmt: skip
    small = ALGDConfig(critic_hidden=(16, 16), policy_hidden=(16,), batch_size=8)
    run = train(config, ALGD, small, (CostBudget(25.0),))
    last = [line for line in read_metrics(run) if line["kind"] == "train"][-1]
    assert last["train/updates"] == 20
    assert np.isfinite(last["train/cost_critic_loss"])
