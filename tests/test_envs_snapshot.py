"""Capture in mid-episode: a fresh environment that is restored does what the first one went on to do, to the bit."""

import io
import json

import gymnasium as gym
import numpy as np
import pytest

from saddlepoint.envs import make_env
from saddlepoint.envs.snapshot import load_rng, restore, rng_state, snapshot
from tests.test_envs_check import Sound


def through_files(state):
    """What JSON and npz make of a snapshot: arrays apart by their path, the rest as text."""
    arrays = {}

    def split(value, path):
        if isinstance(value, dict):
            return {key: split(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [split(item, f"{path}/{i}") for i, item in enumerate(value)]
        if isinstance(value, np.ndarray):
            arrays[path] = value
            return {"array": path}
        assert value is None or type(value) in (bool, int, float, str), (path, type(value))
        return value

    text = json.dumps(split(state, ""))
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    stored = np.load(file, allow_pickle=False)

    def join(value):
        if isinstance(value, dict):
            return stored[value["array"]] if set(value) == {"array"} else {k: join(v) for k, v in value.items()}
        return [join(item) for item in value] if isinstance(value, list) else value

    return join(json.loads(text))


def play(env, actions):
    """Everything seen over ``actions``, with a reset wherever an episode ends."""
    seen, ends = [], 0
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen += [observation.copy(), np.float64(reward), np.asarray(info["cost"], np.float64), terminated, truncated]
        if terminated or truncated:
            ends += 1
            seen.append(env.reset()[0].copy())
    return seen, ends


class Boasting(Sound):
    """Says that it can be captured, and gives what no checkpoint can hold or give back."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def snapshot(self):
        return self.state

    def restore(self, state):
        assert state == self.state


def nested(levels):
    return {"": nested(levels - 1)} if levels else 0


@pytest.mark.parametrize(
    "state",
    [
        {"x": 1j}, {"x": np.complex64(1)}, {"x": np.datetime64("2026")}, {"x": nested(200)}, {"x": 10**5000}, {"\ud800": 1}, {"x": "\ud800"},
        {"x": [0] * 200_000}, {"x": np.array([None])}, {"x": np.zeros(2, [("a", object)])}, None,
    ],
    ids=lambda state: type(state).__name__,
)  # fmt: skip
def test_what_no_checkpoint_can_hold_is_not_restorable(state):
    found = snapshot(Boasting(state))
    assert found["restorable"] is (state is None)
    assert through_files(found) == found


ROBOTS = ("Hopper", "HalfCheetah", "Ant", "Humanoid", "Walker2d", "Swimmer")
TASKS = (*(f"{robot}Velocity" for robot in ROBOTS), "AntSpeed", "HumanoidSpeed", "Toy", "ToyTwo")


@pytest.mark.parametrize("id", [f"saddlepoint/{task}-v0" for task in TASKS])
def test_a_fresh_environment_goes_on_to_the_bit(id):
    limit = 60  # so that every 50 steps after 37 cross the end of an episode and a reset
    env = make_env(id, max_episode_steps=limit)
    rng = np.random.default_rng(4)
    low, high = env.action_space.low, env.action_space.high
    actions = rng.uniform(low, high, (87, len(low))).astype(np.float32)
    env.reset(seed=11)
    play(env, actions[:37])
    state = through_files(snapshot(env))
    expected, ends = play(env, actions[37:])
    assert ends >= 1

    fresh = make_env(id, max_episode_steps=limit)
    assert restore(fresh, state)
    again, _ = play(fresh, actions[37:])
    assert len(again) == len(expected)
    for a, b in zip(again, expected):
        np.testing.assert_array_equal(a, b)

    used = make_env(id, max_episode_steps=limit)  # one that has been elsewhere, and whose contacts are others
    used.reset(seed=99)
    play(used, actions[:13])
    assert restore(used, state)
    for a, b in zip(play(used, actions[37:])[0], expected):
        np.testing.assert_array_equal(a, b)


def test_a_restored_environment_is_captured_as_it_was():
    """At every step of an episode with contacts and without: also a run that is resumed at its last step keeps the same bytes."""
    env, islands = make_env("saddlepoint/HopperVelocity-v0"), set()
    env.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (60, 3)).astype(np.float32):
        if env.step(action)[2]:
            env.reset()
        islands.add(env.unwrapped.data.nisland)
        state, fresh = snapshot(env), make_env("saddlepoint/HopperVelocity-v0")
        assert restore(fresh, state)
        np.testing.assert_equal(snapshot(fresh), state)
    assert islands == {0, 1}


def test_arrays_that_are_kept_no_more_are_no_fault():
    env, fresh = gym.make("Hopper-v5"), gym.make("Hopper-v5")
    env.reset(seed=0)
    state = snapshot(env)
    state["base"]["mujoco"]["arrays"]["dof_island"] = np.zeros(6, np.int32)
    assert restore(fresh, state)
    del state["base"]["mujoco"]["arrays"]["xpos"]
    assert not restore(fresh, state)


def test_plain_mujoco_environments_are_restorable_too():
    env, fresh = gym.make("Hopper-v5"), gym.make("Hopper-v5")
    env.reset(seed=0)
    env.step(np.ones(3, np.float32))
    assert restore(fresh, through_files(snapshot(env)))
    a, b = env.step(np.ones(3, np.float32)), fresh.step(np.ones(3, np.float32))
    np.testing.assert_array_equal(a[0], b[0])
    assert isinstance(fresh.unwrapped._healthy_z_range, tuple)


def test_other_environments_say_that_they_are_not():
    env = Sound()
    env.reset(seed=0)
    state = through_files(snapshot(env))
    assert state["restorable"] is False
    assert "Sound" in state["reason"]
    assert restore(Sound(), state) is False


def test_a_wrapper_with_hidden_state_is_not_restorable():
    env = gym.wrappers.RecordEpisodeStatistics(make_env("saddlepoint/Toy-v0"))
    env.reset(seed=0)
    state = snapshot(env)
    assert state["restorable"] is False
    assert "RecordEpisodeStatistics" in state["reason"]


def test_another_stack_or_robot_is_refused():
    env = make_env("saddlepoint/HopperVelocity-v0")
    env.reset(seed=0)
    state = snapshot(env)
    for other in (make_env("saddlepoint/Walker2dVelocity-v0"), make_env("saddlepoint/Toy-v0"), env.unwrapped):
        other.reset(seed=0)
        assert restore(other, state) is False
    assert restore(make_env("saddlepoint/HopperVelocity-v0"), {**state, "base": {**state["base"], "mujoco": {
        **state["base"]["mujoco"], "version": "0.0.0"}}}) is False  # fmt: skip


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_generators_survive_to_the_bit(kind):
    rng = np.random.Generator(kind(12345))
    rng.normal(size=3)
    rng.integers(0, 7, dtype=np.uint32)  # leaves half a word buffered
    again = load_rng(through_files(rng_state(rng)))
    np.testing.assert_array_equal(rng.integers(0, 7, 5, dtype=np.uint32), again.integers(0, 7, 5, dtype=np.uint32))
    np.testing.assert_array_equal(rng.normal(size=9), again.normal(size=9))
