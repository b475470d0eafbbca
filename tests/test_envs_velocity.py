"""The velocity tasks against the specification, and their cost against an independent recomputation."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check

from saddlepoint.envs import env_spec, list_envs, make_env
from saddlepoint.types import UserError

THRESHOLDS = {  # specs/algd.md, "Budget semantics"
    "Hopper": 0.7402, "Walker2d": 2.3415, "HalfCheetah": 3.2096, "Ant": 2.6222, "Humanoid": 1.4149, "Swimmer": 0.2282,
}  # fmt: skip
DISCOUNTED = {"Hopper": 82.748, "HalfCheetah": 151.989, "Ant": 103.115, "Humanoid": 20.140}


def test_every_published_budget_is_registered_and_no_other():
    ids = {task.id for task in list_envs()}
    assert {f"saddlepoint/{name}Velocity-v0" for name in THRESHOLDS} <= ids
    assert {f"saddlepoint/{name}Speed-v0" for name in DISCOUNTED} == {id for id in ids if id.endswith("Speed-v0")}
    for name in THRESHOLDS:
        task = env_spec(f"saddlepoint/{name}Velocity-v0")
        (budget,) = task.budgets
        assert (budget.limit, budget.per, budget.discounted, budget.horizon) == (25.0, "episode", False, 1000)
        assert (task.constraints, task.horizon) == (1, 1000)
    for name, limit in DISCOUNTED.items():
        (budget,) = env_spec(f"saddlepoint/{name}Speed-v0").budgets
        assert (budget.limit, budget.per, budget.discounted, budget.gamma) == (limit, "episode", True, 0.99)
        assert budget.critic == limit


def torso(env):
    """Where Gymnasium measures: the root's qpos, Ant's torso body, Humanoid's centre of mass."""
    base = env.unwrapped
    name = type(base).__name__
    if name == "AntEnv":
        return base.data.body("torso").xpos[:2].copy()
    if name == "HumanoidEnv":
        return (base.model.body_mass @ base.data.xipos / base.model.body_mass.sum())[:2]
    return base.data.qpos[:2].copy() if name == "SwimmerEnv" else np.array([base.data.qpos[0], 0.0])


@pytest.mark.parametrize("name", THRESHOLDS)
def test_cost_is_displacement_over_time(name):
    velocity_env = make_env(f"saddlepoint/{name}Velocity-v0")
    speed_env = make_env(f"saddlepoint/{name}Speed-v0") if name in DISCOUNTED else None
    velocity_env.reset(seed=3)
    if speed_env is not None:
        speed_env.reset(seed=3)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        action = rng.uniform(velocity_env.action_space.low, velocity_env.action_space.high).astype(np.float32)
        push = rng.uniform(-6.0, 6.0)  # so that both sides of every threshold are seen
        for env in (velocity_env, speed_env):
            if env is not None:
                env.unwrapped.data.qvel[0] = push
        before = torso(velocity_env)
        _, _, terminated, _, info = velocity_env.step(action)
        vx, vy = (torso(velocity_env) - before) / velocity_env.unwrapped.dt
        velocity = np.hypot(vx, vy) if name in ("Ant", "Humanoid") else vx
        assert info["speed"] == pytest.approx(abs(velocity), abs=1e-9)
        assert info["cost"] == float(velocity > THRESHOLDS[name])
        seen.add(info["cost"])
        if speed_env is not None:
            own = speed_env.step(action)[4]
            assert own["cost"] == own["speed"] == info["speed"]
        if terminated:
            velocity_env.reset()
            if speed_env is not None:
                speed_env.reset()
    assert seen == {0.0, 1.0}


def test_backwards_is_never_too_fast_for_a_planar_robot():
    env = make_env("saddlepoint/HalfCheetahVelocity-v0")
    env.reset(seed=0)
    env.unwrapped.data.qvel[0] = -20.0
    _, _, _, _, info = env.step(np.zeros(6, np.float32))
    assert info["x_velocity"] < -THRESHOLDS["HalfCheetah"]
    assert info["cost"] == 0.0
    env.unwrapped.data.qvel[0] = 20.0
    assert env.step(np.zeros(6, np.float32))[4]["cost"] == 1.0


@pytest.mark.parametrize(("name", "entries", "all_entries"), [("Ant", 27, 105), ("Humanoid", 45, 348)])
def test_first_entries_of_the_observation(name, entries, all_entries):
    short = make_env(f"saddlepoint/{name}Speed-v0")
    full = make_env(f"saddlepoint/{name}Speed-v0", observation_entries=None)
    a, b = short.reset(seed=0)[0], full.reset(seed=0)[0]
    assert (a.shape, b.shape) == ((entries,), (all_entries,))
    assert short.observation_space.shape == (entries,)
    np.testing.assert_array_equal(a, b[:entries])
    with pytest.raises(UserError, match="observation_entries"):
        make_env(f"saddlepoint/{name}Speed-v0", observation_entries=1000)


def test_rewards_and_observations_are_gymnasiums_own():
    ours, theirs = make_env("saddlepoint/Walker2dVelocity-v0"), gym.make("Walker2d-v5")
    np.testing.assert_array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32):
        a, b = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]


@pytest.mark.filterwarnings("ignore")  # Gymnasium would rather see no wrapper and no infinite bounds
def test_gymnasium_finds_no_fault():
    gymnasium_check(gym.make("saddlepoint/HopperVelocity-v0"), skip_render_check=True)


def test_time_limit_truncates_and_can_be_changed():
    env = make_env("saddlepoint/HalfCheetahVelocity-v0", max_episode_steps=7)
    env.reset(seed=0)
    ends = [env.step(np.zeros(6, np.float32))[2:4] for _ in range(7)]
    assert ends == [(False, False)] * 6 + [(False, True)]
    assert env_spec("saddlepoint/HalfCheetahVelocity-v0", max_episode_steps=7).budgets[0].horizon == 7


def test_mujoco_is_imported_only_when_needed():
    code = "import sys, saddlepoint.envs as e; e.make_env('saddlepoint/Toy-v0'); print('mujoco' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
