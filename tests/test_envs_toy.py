"""The toy against arithmetic done by hand, and its vectorised form against the single one."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check

from saddlepoint.envs import env_spec, make_env
from saddlepoint.envs.toy import HAZARD_RADIUS, HORIZON, STEP, ToyEnv, ToyVectorEnv, detour_policy, straight_policy
from saddlepoint.types import UserError


def play(policy, **kwargs):
    """Rewards (steps,) and costs (steps, constraints) of one episode from exactly (-1, 0)."""
    env = make_env("saddlepoint/ToyTwo-v0", jitter=(0.0, 0.0), **kwargs)
    observation, _ = env.reset(seed=0)
    rewards, costs, truncated = [], [], False
    while not truncated:
        observation, reward, terminated, truncated, info = env.step(policy(observation[None])[0])
        assert not terminated
        rewards.append(reward)
        costs.append(info["cost"])
    return np.array(rewards), np.array(costs)


def test_straight_policy_earns_and_costs_what_arithmetic_says():
    rewards, costs = play(straight_policy)
    k = np.arange(1, HORIZON + 1)
    by_hand = np.minimum(k / 40, 1.0)  # distance 2 - 0.05 k for 40 steps, then 0
    np.testing.assert_allclose(rewards, by_hand, atol=1e-6)
    assert rewards.sum() == pytest.approx(40.5, abs=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(costs[:, 0]) + 1, np.arange(7, 34))
    assert costs[:, 1].sum() == pytest.approx(40.0, abs=1e-3)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_detour_is_safe_on_both_sides_and_earns_the_same(side):
    rewards, costs = play(lambda observation: detour_policy(observation, side))
    k = np.arange(1, 30)
    along = np.minimum(STEP * k, np.sqrt(2)) / np.sqrt(2)  # share of a leg of length sqrt(2)
    first = np.hypot(2 - along, along)
    second = np.sqrt(2) * (1 - along)
    distance = np.concatenate([first, second, np.zeros(HORIZON - 58)])
    np.testing.assert_allclose(rewards, 1 - distance / 2, atol=1e-6)
    assert rewards.sum() == pytest.approx(27.03, abs=0.01)
    assert costs[:, 0].sum() == 0


def test_a_detour_from_every_start_is_safe():
    for seed in range(40):
        env = make_env("saddlepoint/Toy-v0")
        observation, _ = env.reset(seed=seed)
        cost, side = 0.0, float(np.sign(observation[1]))  # the way on its own side; both are safe from the middle
        for _ in range(HORIZON):
            observation, _, _, _, info = env.step(detour_policy(observation[None], side)[0])
            cost += info["cost"]
        assert cost == 0.0


def test_the_task_is_its_own_mirror_image_and_no_direction_is_faster():
    up, down = ToyEnv(jitter=(0.0, 0.0)), ToyEnv(jitter=(0.0, 0.0))
    up.reset(seed=0)
    down.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (50, 2)):
        before = up.position.copy()
        a, b = up.step(action), down.step(action * (1, -1))
        assert a[1] == b[1]
        assert a[4]["cost"] == b[4]["cost"] == float(np.hypot(*up.position[0]) < HAZARD_RADIUS)
        assert np.linalg.norm(up.position - before) <= STEP + 1e-12
    np.testing.assert_array_equal(up.position, down.position * (1, -1))


def test_budgets_separate_the_safe_way_from_the_fast_one():
    (hazard,) = env_spec("saddlepoint/Toy-v0").budgets
    assert not hazard.violated(np.array([0.0]), np.array([0.0]))
    assert hazard.violated(np.array([27.0]), np.array([27.0]))
    two = env_spec("saddlepoint/ToyTwo-v0")
    assert two.constraints == 2
    assert len(two.budgets) == 2
    way = 2 * np.sqrt(1 - HAZARD_RADIUS**2) + HAZARD_RADIUS * (np.pi - 2 * np.arccos(HAZARD_RADIUS))
    slow = HORIZON * (way / HORIZON / STEP) ** 2
    assert slow < two.budgets[1].limit < way / STEP  # a detour must take its time, and can


@pytest.mark.parametrize("energy", [False, True])
def test_vectorised_equals_single(energy):
    count, seeds = 3, [5, 6, 700]
    many = ToyVectorEnv(count, energy=energy)
    ones = [make_env("saddlepoint/ToyTwo-v0" if energy else "saddlepoint/Toy-v0") for _ in seeds]
    observation = many.reset(seed=seeds)[0]
    single = np.stack([env.reset(seed=seed)[0] for env, seed in zip(ones, seeds)])
    np.testing.assert_array_equal(observation, single)
    for action in np.random.default_rng(1).uniform(-1, 1, (2 * HORIZON + 5, count, 2)).astype(np.float32):
        observation, reward, terminated, truncated, info = many.step(action)
        assert ("final_obs" in info) == truncated.any()
        for i, env in enumerate(ones):
            seen, own_reward, own_terminated, own_truncated, own_info = env.step(action[i])
            np.testing.assert_array_equal(info["final_obs"][i] if truncated[i] else observation[i], seen)
            assert (reward[i], terminated[i], truncated[i]) == (own_reward, own_terminated, own_truncated)
            np.testing.assert_array_equal(info["cost"][i], own_info["cost"])
            if own_truncated:
                np.testing.assert_array_equal(observation[i], env.reset()[0])


def test_gymnasium_finds_no_fault():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check(gym.make("saddlepoint/Toy-v0", render_mode="rgb_array").unwrapped)
    many = gym.make_vec("saddlepoint/Toy-v0", 4)
    assert isinstance(many, ToyVectorEnv)
    assert many.reset(seed=0)[0].shape == (4, 6)


def test_render_shows_the_point():
    env = make_env("saddlepoint/Toy-v0", render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (200, 200, 3)
    assert frame.dtype == np.uint8
    blue = np.argwhere((frame == (40, 80, 200)).all(axis=-1)).mean(axis=0)
    x, y = env.unwrapped.position[0]
    np.testing.assert_allclose(blue, [(1.25 - y) / 2.5 * 199, (x + 1.25) / 2.5 * 199], atol=1.0)


def test_impossible_jitter_is_refused():
    with pytest.raises(UserError, match="jitter"):
        make_env("saddlepoint/Toy-v0", jitter=(0.9, 0.0))
