"""The ring against a plain list of transitions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saddlepoint.replay import Replay, available_bytes
from saddlepoint.types import UserError

Step = tuple[np.ndarray, ...]


def steps(count: int, num_envs: int, seed: int, ends: float = 0.15) -> list[Step]:
    """Vector steps whose observation is (time, env): every transition names itself."""
    rng = np.random.default_rng(seed)
    made = []
    for t in range(count):
        observation = np.stack([np.full(num_envs, t), np.arange(num_envs)], 1).astype(np.float32)
        shapes = ((num_envs, 1), (num_envs,), (num_envs, 2))
        action, reward, cost = (rng.random(shape).astype(np.float32) for shape in shapes)
        end = rng.random(num_envs)
        terminated, truncated = end < ends / 2, (end >= ends / 2) & (end < ends)
        made.append((observation, action, reward, cost, observation + 0.5, terminated, truncated))
    return made


def filled(made: list[Step], rows: int, num_envs: int, breaks: int = -1) -> Replay:
    replay = Replay(rows * num_envs, 2, 1, 2, num_envs)
    for t, step in enumerate(made):
        if t == breaks:
            replay.break_episodes()
        replay.add(*step)
    return replay


@given(rows=st.integers(1, 9), num_envs=st.integers(1, 3), count=st.integers(1, 25), seed=st.integers(0, 99))
def test_samples_are_the_newest_transitions_whole(rows: int, num_envs: int, count: int, seed: int) -> None:
    made = steps(count, num_envs, seed)
    replay = filled(made, rows, num_envs)
    kept = set(range(max(0, count - rows), count))
    assert len(replay) == len(kept) * num_envs
    batch = replay.sample(64, torch.Generator().manual_seed(seed))
    for i in range(64):
        t, env = int(batch.observation[i, 0]), int(batch.observation[i, 1])
        assert t in kept
        wanted = [field[env] for field in made[t]]
        for got, value in zip(batch, wanted[:6], strict=True):
            np.testing.assert_array_equal(got[i].numpy(), np.asarray(value, np.float32))


@given(
    rows=st.integers(2, 9), num_envs=st.integers(1, 3), count=st.integers(2, 25), length=st.integers(1, 4),
    seed=st.integers(0, 99), breaks=st.integers(-1, 20),
)  # fmt: skip
def test_sequences_are_exactly_the_whole_ones(
    rows: int, num_envs: int, count: int, length: int, seed: int, breaks: int
) -> None:
    made = steps(count, num_envs, seed)
    replay = filled(made, rows, num_envs, breaks)

    def whole(first: int, env: int) -> bool:
        inside = range(first, first + length)
        ended = any(made[t][5][env] or made[t][6][env] for t in inside[:-1])
        return not ended and breaks not in inside[1:]

    oldest = max(0, count - rows)
    wanted = {(t, env) for t in range(oldest, count - length + 1) for env in range(num_envs) if whole(t, env)}
    generator = torch.Generator().manual_seed(seed)
    if not wanted:
        with pytest.raises(UserError, match=r"sub-sequences"):
            replay.sample_sequences(4, length, generator)
        return
    batch = replay.sample_sequences(600, length, generator)
    assert batch.observation.shape == (600, length, 2)
    times, envs = batch.observation[..., 0], batch.observation[..., 1]
    assert (times == times[:, :1] + torch.arange(length)).all()
    assert (envs == envs[:, :1]).all()
    assert {(int(t), int(e)) for t, e in zip(times[:, 0], envs[:, 0], strict=True)} == wanted


def test_sequences_are_uniform() -> None:
    replay = filled(steps(40, 2, seed=3), 30, 2)
    batch = replay.sample_sequences(40_000, 3, torch.Generator().manual_seed(0))
    _, counts = np.unique(batch.observation[:, 0].numpy(), axis=0, return_counts=True)
    expected = 40_000 / len(counts)
    assert (((counts - expected) ** 2) / expected).sum() < 2 * len(counts)  # chi-square, far out in its tail


@given(rows=st.integers(1, 7), num_envs=st.integers(1, 3), count=st.integers(0, 15), more=st.integers(0, 9))
def test_a_saved_replay_goes_on_as_the_original(rows: int, num_envs: int, count: int, more: int) -> None:
    made = steps(count + more, num_envs, seed=1)
    original = filled(made[:count], rows, num_envs)
    restored = Replay(rows * num_envs, 2, 1, 2, num_envs)
    restored.load_state_dict({name: tensor.clone() for name, tensor in original.state_dict().items()})
    for step in made[count:]:
        original.add(*step)
        restored.add(*step)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name]), name
    if count + more:
        draws = [replay.sample(9, torch.Generator().manual_seed(2)) for replay in (original, restored)]
        assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


@pytest.mark.parametrize("count", [1, 4, 7, 12, 25])
@pytest.mark.parametrize(("window", "horizon"), [(1, 1), (6, 1), (1000, 1), (2, 5)])
def test_recent_gives_the_last_steps_in_their_order(count: int, window: int, horizon: int) -> None:
    """Costs and ages of the last rows, also across the ring's seam; the second environment's episodes last three
    steps."""
    replay, costs = Replay(16, 3, 1, 2, num_envs=2), np.random.default_rng(count).random((count, 2, 2)).astype("f")
    nothing = np.zeros((2, 3), "f")
    for step, cost in enumerate(costs):
        ended = np.array([False, step % 3 == 2])
        replay.add(nothing, np.zeros((2, 1), "f"), np.zeros(2, "f"), cost, nothing, np.zeros(2, bool), ended)
    rows = min(max(window // 2, horizon), 8, count)
    cost, age = replay.recent(window, horizon)
    np.testing.assert_array_equal(cost, costs[-rows:])
    np.testing.assert_array_equal(age, np.stack([np.arange(count), np.arange(count) % 3], 1)[-rows:])


def test_reward_size_is_the_mean_magnitude_of_what_is_stored() -> None:
    replay, rewards = Replay(16, 3, 1, 2, num_envs=2), np.random.default_rng(0).normal(size=(11, 2)).astype("f")
    with pytest.raises(UserError, match="replay is empty"):
        replay.reward_size()
    nothing, ended = np.zeros((2, 3), "f"), np.zeros(2, bool)
    for reward in rewards:
        replay.add(nothing, np.zeros((2, 1), "f"), reward, np.zeros((2, 2), "f"), nothing, ended, ended)
    assert replay.reward_size() == pytest.approx(np.abs(rewards[-8:]).mean(), rel=1e-6)
    silent = Replay(4, 3, 1, 2, num_envs=2)
    silent.add(nothing, np.zeros((2, 1), "f"), np.zeros(2, "f"), np.zeros((2, 2), "f"), nothing, ended, ended)
    assert silent.reward_size() == 1.0


def test_memory_is_what_the_tensors_take() -> None:
    replay = filled(steps(10, 2, seed=0), 10, 2)
    rings = {name: tensor for name, tensor in replay.state_dict().items() if name not in ("next_age", "position")}
    assert Replay.bytes_needed(20, 2, 1, 2) == sum(tensor.numel() * tensor.element_size() for tensor in rings.values())
    available = available_bytes(torch.device("cpu"))
    assert available is None or available > 0


def test_too_large_a_replay_is_refused_with_what_would_fit() -> None:
    words = r"needs 1\.04 GB and 0\.10 GB are available.*--replay-size to at most 86538"
    with pytest.raises(UserError, match=words) as caught:
        Replay(1_000_000, 100, 56, 1, memory_limit=100_000_000)
    assert "\n" not in str(caught.value)
    Replay(86_538, 100, 56, 1, memory_limit=100_000_000)


def test_clear_refusals() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match="empty"):
        Replay(4, 2, 1, 2).sample(1, generator)
    with pytest.raises(UserError, match="--replay-size"):
        Replay(2, 2, 1, 2, num_envs=3)
    saved = filled(steps(3, 1, 0), 4, 1).state_dict()
    with pytest.raises(UserError, match="--replay-size"):
        Replay(5, 2, 1, 2).load_state_dict(saved)
    with pytest.raises(UserError, match="another environment"):
        Replay(4, 3, 1, 2).load_state_dict(saved)
    with pytest.raises(UserError, match="other names"):
        Replay(4, 2, 1, 2).load_state_dict({"weights": torch.zeros(1)})


PEAK = """
import sys, resource
from pathlib import Path
import torch
from saddlepoint.files import StoredTensors, write_tensors
from saddlepoint.replay import Replay

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

torch.set_num_threads(1)
path, count = Path(sys.argv[1]), 100_000
if sys.argv[2] == "write":
    replay = Replay(count, 100, 10, 1)
    for name, tensor in replay._fields._asdict().items():
        tensor.fill_(1)
    replay._filled = count
    write_tensors(path, replay.state_dict())
else:
    StoredTensors(path, "a replay")["position"]
    before = peak()
    replay = Replay(count, 100, 10, 1)
    replay.load_state_dict(StoredTensors(path, "a replay"))
    print((peak() - before) / Replay.bytes_needed(count, 100, 10, 1))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process its peak")
def test_loading_takes_the_memory_of_the_ring_once(tmp_path: Path) -> None:
    for mode in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / "replay"), mode], capture_output=True, text=True, check=True
        )
    assert 0.5 < float(done.stdout) < 1.2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position", torch.tensor([4, 1, 3])), ("position", torch.tensor([4, 1, 3, 9])), ("position", torch.tensor([4, 1, -1, 3])),
        ("position", torch.tensor([4, 1, 0, 3])), ("position", torch.tensor([4.0, 1.0, 3.0, 3.0])), ("position", torch.tensor([2**62, 4, 3, 3])),
        ("age", torch.zeros(2, dtype=torch.int32)), ("reward", torch.tensor(1.0)), ("next_age", torch.zeros(5, dtype=torch.int32)),
        ("next_age", torch.zeros(1)), ("cost", torch.zeros(3, 3)), ("observation", torch.zeros(3, 2, dtype=torch.uint8)),
    ],
)  # fmt: skip
def test_odd_content_is_refused(name: str, value: torch.Tensor) -> None:
    saved = filled(steps(3, 1, 0), 4, 1).state_dict()
    with pytest.raises(UserError, match="saved replay"):
        Replay(4, 2, 1, 2).load_state_dict(saved | {name: value})


@given(rows=st.integers(1, 9), num_envs=st.integers(1, 3), count=st.integers(1, 25), newest=st.integers(0, 25), seed=st.integers(0, 99))
def test_unusual_rewards_are_those_stored_before_the_newest(rows: int, num_envs: int, count: int, newest: int, seed: int) -> None:
    """Rewards of 0 and 1, counted in the list of steps."""
    made = [(*step[:2], (step[2] > 0.7).astype(np.float32), *step[3:]) for step in steps(count, num_envs, seed)]
    left = [reward for step in made[max(count - rows, 0) : max(count - newest, 0)] for reward in step[2].tolist()]
    ones = sum(left)
    wanted = min(ones, len(left) - ones) / max(len(left), 1)
    assert filled(made, rows, num_envs).unusual_rewards(newest) == pytest.approx(wanted)


@given(
    rows=st.integers(1, 9), num_envs=st.integers(1, 3), count=st.integers(1, 25), ahead=st.integers(1, 5), seed=st.integers(0, 99),
    broken=st.integers(-1, 24),
)  # fmt: skip
def test_costs_ahead_are_those_that_were_paid(rows: int, num_envs: int, count: int, ahead: int, seed: int, broken: int) -> None:
    """Against a walk along the list of steps: up to ``ahead`` steps, no further than the episode, a break, or the newest step."""
    made, gamma = steps(count, num_envs, seed), 0.9
    replay = filled(made, rows, num_envs, broken)
    batch, found = replay.sample_ahead(32, ahead, gamma, torch.Generator().manual_seed(seed))
    same = replay.sample(32, torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(batch, same, strict=True))
    for i in range(32):
        first, env = int(batch.observation[i, 0]), int(batch.observation[i, 1])
        cost, last = np.zeros(2), first
        for k in range(ahead):
            last = first + k
            cost += gamma**k * made[last][3][env]
            if made[last][5][env] or made[last][6][env] or last + 1 == count or last + 1 == broken:
                break
        np.testing.assert_allclose(found.cost[i].numpy(), cost, rtol=1e-5)
        np.testing.assert_array_equal(found.observation[i].numpy(), made[last][4][env])
        np.testing.assert_allclose(float(found.discount[i]), gamma ** (last - first + 1), rtol=1e-5)
        assert bool(found.terminated[i]) == bool(made[last][5][env])


@given(rows=st.integers(1, 9), num_envs=st.integers(1, 3), count=st.integers(1, 25), ahead=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_share_is_drawn_from_what_is_about_to_pay(rows: int, num_envs: int, count: int, ahead: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = [(*step[:3], step[3] * (rng.random((num_envs, 1)) < 0.2), *step[4:]) for step in steps(count, num_envs, seed)]
    replay = filled(made, rows, num_envs)
    batch, found = replay.sample_ahead(40, ahead, 1.0, torch.Generator().manual_seed(seed), costly=0.5)
    pays = any((step[3] > 0).any() for step in made[max(0, count - rows) :])
    if pays:
        assert (found.cost[:20].sum(-1) > 0).all()
    assert {int(t) for t in batch.observation[:, 0]} <= set(range(max(0, count - rows), count))


@given(rows=st.integers(1, 9), num_envs=st.integers(1, 3), count=st.integers(1, 60), every=st.integers(1, 30), seed=st.integers(0, 99))
def test_what_pays_is_found_again_after_loading(rows: int, num_envs: int, count: int, every: int, seed: int) -> None:
    """A ring that was sampled on the way draws what one draws that was loaded at the end."""
    rng = np.random.default_rng(seed)
    made = [(*step[:3], step[3] * (rng.random((num_envs, 1)) < 0.3), *step[4:]) for step in steps(count, num_envs, seed)]
    replay, loaded = Replay(rows * num_envs, 2, 1, 2, num_envs), Replay(rows * num_envs, 2, 1, 2, num_envs)
    for t, step in enumerate(made):
        replay.add(*step)
        if t % every == 0:
            replay.sample_ahead(4, 3, 0.9, torch.Generator().manual_seed(t), costly=1.0)
    loaded.load_state_dict(replay.state_dict())
    draws = [r.sample_ahead(20, 3, 0.9, torch.Generator().manual_seed(seed), costly=1.0) for r in (replay, loaded)]
    assert all(torch.equal(a, b) for one, two in zip(*draws, strict=True) for a, b in zip(one, two, strict=True))


def test_looking_ahead_never_reads_a_slot_that_was_not_written(generator):
    """Rows beyond the newest hold whatever the memory held before: here NaN."""
    replay = Replay(50, 2, 1, 1)
    for ring in replay._fields:
        if ring.is_floating_point():
            ring.fill_(float("nan"))
    one = np.ones((1, 1), np.float32)
    for _ in range(6):
        replay.add(np.zeros((1, 2), np.float32), one, one[0], one, np.zeros((1, 2), np.float32), np.zeros(1, bool), np.zeros(1, bool))
    _, ahead = replay.sample_ahead(64, 5, 0.9, generator, costly=0.5)
    assert torch.isfinite(ahead.cost).all()
    assert float(ahead.cost.max()) == pytest.approx(sum(0.9**k for k in range(5)))
