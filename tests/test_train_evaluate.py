"""Episode statistics against numpy, and evaluation against episodes played by hand."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.drawing import require_picture
from saddlepoint.train.episodes import Episodes, EpisodeSums, summarise
from saddlepoint.train.evaluate import evaluate
from saddlepoint.train.video import record_video
from saddlepoint.types import ActMode, EnvShape, ForeignFault, NonFiniteError, UserError
from tests.toys import AIMING, BUDGET, ENV, Drift, Tiny, TinyConfig

POLICY = Tiny(TinyConfig(), EnvShape(2, (-1.0,), (0.5,), 1), (BUDGET,), 3, torch.device("cpu"))
BUDGETS = (CostBudget(1.0, gamma=0.9, horizon=20), CostBudget(2.0, gamma=0.5, horizon=20, discounted=True))


@given(seed=st.integers(0, 200), num_envs=st.integers(1, 4), count=st.integers(1, 40), cut=st.integers(0, 40))
def test_sums_are_those_of_the_whole_episodes(seed: int, num_envs: int, count: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, costs = rng.normal(size=(count, num_envs)), rng.random((count, num_envs, 2))
    ended = rng.random((count, num_envs)) < 0.2
    sums, got = EpisodeSums(num_envs, BUDGETS), Episodes.none(2)
    for t in range(count):
        if t == cut:  # saved and restored in mid-episode
            saved, sums = sums.state_dict(), EpisodeSums(num_envs, BUDGETS)
            sums.load_state_dict(saved)
        got = got.join(sums.add(rewards[t], costs[t], ended[t]))
    wanted = []
    for t, env in np.argwhere(ended):
        first = max((s + 1 for s in range(t) if ended[s, env]), default=0)
        inside = slice(first, t + 1)
        powers = np.array([0.9, 0.5]) ** np.arange(t + 1 - first)[:, None]
        cost = costs[inside, env]
        wanted.append((rewards[inside, env].sum(), cost.sum(0), (powers * cost).sum(0), t + 1 - first))
    assert len(got) == len(wanted)
    for i, episode in enumerate(wanted):
        for field, value in zip(got, episode, strict=True):
            np.testing.assert_allclose(field[i], value, rtol=1e-12)


def test_statistics_are_numpy_s() -> None:
    episodes = Episodes(
        np.array([1.0, 3.0, 8.0]), np.array([[0.5, 0.0], [1.5, 1.0], [0.0, 9.0]]),
        np.array([[0.5, 0.0], [1.4, 0.9], [0.0, 2.5]]), np.array([4.0, 5.0, 9.0]),
    )  # fmt: skip
    got = summarise(episodes, BUDGETS, "eval")
    assert got["eval/return_mean"] == 4.0
    assert got["eval/return_std"] == pytest.approx(np.sqrt(26 / 3))
    assert (got["eval/return_min"], got["eval/return_max"]) == (1.0, 8.0)
    assert got["eval/cost_mean"] == pytest.approx(12 / 3)
    assert got["eval/cost_0_mean"] == pytest.approx(2 / 3)
    assert got["eval/cost_1_max"] == 9.0
    assert got["eval/discounted_cost_1_mean"] == pytest.approx(3.4 / 3)
    assert got["eval/violation_rate"] == pytest.approx(2 / 3)  # the second by its sum, the third by its discounted sum
    assert got["eval/length_mean"] == 6.0
    one = Episodes(*(field[:, :1] if field.ndim == 2 else field for field in episodes))
    alone = summarise(one, BUDGETS[:1], "train")
    assert alone["train/cost_mean"] == pytest.approx(2 / 3)
    assert not [name for name in alone if "_0" in name]


@pytest.mark.parametrize("episodes", [4, 10, 23])
def test_evaluation_is_the_episodes_played_by_hand(episodes: int) -> None:
    got = evaluate(POLICY, ENV, (BUDGET,), episodes, seed=11)
    assert got is not None
    slots = min(episodes, 10)
    returns, costs = [], []
    for first in range(0, episodes, slots):
        seeds = np.random.SeedSequence(11 + first).generate_state(slots)
        for seed in seeds[: episodes - first]:
            env = gym.make(ENV)
            observation, _ = env.reset(seed=int(seed))
            total, cost, ended = 0.0, 0.0, False
            while not ended:
                action = POLICY.act(torch.as_tensor(observation)[None], "deterministic", torch.Generator())[0].numpy()
                observation, reward, terminated, truncated, info = env.step(action)
                total, cost, ended = total + float(reward), cost + info["cost"], terminated or truncated
            returns.append(total)
            costs.append(cost)
    assert got["eval/episodes"] == episodes
    assert got["eval/return_mean"] == pytest.approx(np.mean(returns), rel=1e-5)
    assert got["eval/return_min"] == pytest.approx(np.min(returns), rel=1e-5)
    assert got["eval/cost_mean"] == pytest.approx(np.mean(costs))
    assert got["eval/violation_rate"] == pytest.approx(np.mean(np.array(costs) > 2))


def test_success_is_that_of_an_episode_s_last_step() -> None:
    got = evaluate(POLICY, AIMING, (BUDGET,), 10, seed=11)
    assert got is not None
    successes = []
    for seed in np.random.SeedSequence(11).generate_state(10):
        env = gym.make(AIMING)
        observation, _ = env.reset(seed=int(seed))
        ended = False
        while not ended:
            action = POLICY.act(torch.as_tensor(observation)[None], "deterministic", torch.Generator())[0].numpy()
            observation, _, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
        successes.append(info["success"])
    assert 0 < sum(successes) < 10
    assert got["eval/success_rate"] == pytest.approx(np.mean(successes))
    assert "eval/stochastic/success_rate" in got
    assert not [name for name in evaluate(POLICY, ENV, (BUDGET,), 10, seed=11) or () if "success" in name]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not() -> None:
    first, again, other = (evaluate(POLICY, ENV, (BUDGET,), 10, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first is not None
    assert first["eval/return_mean"] != first["eval/stochastic/return_mean"]


def test_evaluation_can_be_left_and_refuses_nonsense() -> None:
    assert evaluate(POLICY, ENV, (BUDGET,), 10, 0, stop=lambda: True) is None
    with pytest.raises(UserError, match="episodes must lie from 1 to 1,000,000, not 0"):
        evaluate(POLICY, ENV, (BUDGET,), 0, 0)

    class Lost(Tiny):
        def act(self, observation: torch.Tensor, mode: ActMode, generator: torch.Generator) -> torch.Tensor:
            return super().act(observation, mode, generator) * float("nan")

    lost = Lost(TinyConfig(), EnvShape(2, (-1.0,), (0.5,), 1), (BUDGET,), 3, torch.device("cpu"))
    with pytest.raises(NonFiniteError, match="action that is not finite"):
        evaluate(lost, ENV, (BUDGET,), 10, 0)


class Still:
    def act(self, observation: torch.Tensor, mode: ActMode, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(len(observation), 2)


def test_a_film_is_an_mp4_with_every_step(tmp_path: Path) -> None:
    import imageio.v2 as imageio

    path = tmp_path / "videos" / "1.mp4"
    steps = record_video(Still(), "saddlepoint/Toy-v0", path, seed=0)
    assert imageio.get_reader(path).count_frames() == steps + 1
    assert [file.name for file in path.parent.iterdir()] == ["1.mp4"]


@pytest.mark.parametrize("limit", [100, 2000])
def test_a_film_on_a_full_disk_is_not_kept(limit: int, tmp_path: Path) -> None:
    """ffmpeg itself ends as if nothing had happened."""
    path = tmp_path / "1.mp4"
    path.write_text("an older film")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"1\.mp4 cannot be written \(the film was cut short\): look at the disk"):
            record_video(Still(), "saddlepoint/Toy-v0", path, seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["1.mp4"]
    assert path.read_text() == "an older film"


@pytest.mark.parametrize(
    ("said", "rate"), [(None, 30), (10, 10), ("12.5", 12), (float("nan"), 30), (0, 30), (-5, 30), (float("inf"), 30),
     ("x", 30), ([1], 30), (1e9, 30), (10**400, 30)],
    ids=lambda value: f"{value!r:.9}",
)  # fmt: skip
def test_a_film_has_a_rate_whatever_the_environment_says(said: Any, rate: int, tmp_path: Path) -> None:
    import imageio.v2 as imageio

    class Drawn(Drift):
        metadata = {"render_modes": ["rgb_array"], "render_fps": said}  # noqa: RUF012

        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__()
            self.render_mode = render_mode

        def render(self) -> np.ndarray:
            return np.zeros((16, 16, 3), np.uint8)

    record_video(POLICY, lambda **made: Drawn(**made), tmp_path / "1.mp4", 0, budgets=(BUDGET,))
    assert imageio.get_reader(tmp_path / "1.mp4").get_meta_data()["fps"] == rate


def test_a_picture_without_a_point_is_none() -> None:
    with pytest.raises(ForeignFault, match=r"gives uint8 of shape \(0, 4, 3\)"):
        require_picture(np.zeros((0, 4, 3), np.uint8), "x")


def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        record_video(POLICY, ENV, tmp_path / "1.mp4", seed=0)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
