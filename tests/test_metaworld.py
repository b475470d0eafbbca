"""Meta-World's tasks against Meta-World itself, played as its users play it."""

import importlib.util
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check

from saddlepoint.envs import EnvBatch, check_env, env_spec, list_envs, make_env
from saddlepoint.envs.metaworld.catalogue import TASKS
from saddlepoint.envs.metaworld.env import MUJOCO
from saddlepoint.envs.snapshot import restore, snapshot
from saddlepoint.offline.config import PretrainConfig
from saddlepoint.offline.convert import convert
from saddlepoint.offline.evaluate import playable
from saddlepoint.types import NonFiniteError, UserError
from tests.test_envs_snapshot import through_files

mujoco = pytest.importorskip("mujoco")
needs_metaworld = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None or mujoco.__version__ != MUJOCO,
    reason=f"needs metaworld, and MuJoCo {MUJOCO} instead of {mujoco.__version__}: `make test-metaworld`",
)


def actions(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


def test_the_50_tasks_are_registered():
    assert len(set(TASKS)) == len(TASKS) == 50
    for name in TASKS:
        task = env_spec(f"mw/{name}")
        assert (task.horizon, task.constraints, task.budgets, task.extra) == (100, 0, (), "metaworld")
    with pytest.raises(UserError, match="did you mean mw/drawer-open"):
        env_spec("mw/draweropen")


def test_without_metaworld_they_are_not_listed_and_say_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "metaworld" else found(name))
    assert not any(task.id.startswith("mw/") for task in list_envs())
    with pytest.raises(UserError, match=r"an extra: pip install saddlepoint\[metaworld\]"):
        make_env("mw/reach")


def test_with_another_mujoco_they_say_which_one_they_need(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "metaworld" else found(name))
    monkeypatch.setattr(mujoco, "__version__", "3.17.0")
    assert sum(task.id.startswith("mw/") for task in list_envs()) == 50
    with pytest.raises(UserError, match=r"need MuJoCo 3\.3\.0 and 3\.17\.0 is installed: .* without saddlepoint\[control\]"):
        make_env("mw/reach")


@needs_metaworld
def test_they_are_all_of_meta_worlds():
    from metaworld.env_dict import ENV_CLS_MAP

    assert {f"{name}-v3" for name in TASKS} == set(ENV_CLS_MAP)


@needs_metaworld
@pytest.mark.parametrize("name", TASKS)
def test_two_control_steps_of_meta_world_at_the_same_goal(name):
    """Meta-World's public way: an environment is told its task, the random vector of the episode, by ``set_task``."""
    from metaworld.env_dict import ENV_CLS_MAP
    from metaworld.types import Task

    ours, theirs = make_env(f"mw/{name}"), ENV_CLS_MAP[f"{name}-v3"]()
    first, _ = ours.reset(seed=7)
    drawn = ours.unwrapped._sawyer._last_rand_vec
    told = {"env_cls": type(theirs), "rand_vec": drawn, "partially_observable": False}
    theirs.set_task(Task(f"{name}-v3", pickle.dumps(told)))
    assert (first.shape, first.dtype, ours.observation_space.shape) == ((39,), np.float32, (39,))
    np.testing.assert_array_equal(first, theirs.reset()[0].astype(np.float32))
    for action in actions(15):
        steps = [theirs.step(action) for _ in range(2)]
        observation, reward, terminated, truncated, info = ours.step(action)
        np.testing.assert_array_equal(observation, steps[1][0].astype(np.float32))
        assert reward == steps[0][1] + steps[1][1]
        assert (terminated, truncated) == (False, False)
        assert info == steps[1][4]
        assert type(info["success"]) is float
    assert first[-3:].any()  # the goal is shown
    ours.close()
    theirs.close()


@needs_metaworld
def test_a_seed_fixes_the_episodes_and_nothing_before_it_matters():
    before = np.random.get_state()[1].copy()  # noqa: NPY002  (Meta-World draws from it where it is not told otherwise)
    env = make_env("mw/push")
    starts = [env.reset(seed=11 if i == 0 else None)[0] for i in range(3)]
    assert len({tuple(start[-3:]) for start in starts}) == 3
    rng, space = np.random.Generator(np.random.PCG64(11)), env.unwrapped._sawyer._random_reset_space
    drawn = rng.uniform(space.low, space.high)
    while np.linalg.norm(drawn[:2] - drawn[3:5]) < 0.15:  # as it draws: goals are not where the puck is
        drawn = rng.uniform(space.low, space.high)
    np.testing.assert_allclose(starts[0][36:38], drawn[3:5], rtol=1e-6)
    np.testing.assert_allclose(starts[0][4:6], drawn[:2], rtol=1e-6)
    for action in actions(30):
        env.step(action)
    for i, start in enumerate(starts):
        np.testing.assert_array_equal(env.reset(seed=11 if i == 0 else None)[0], start)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    env.close()


RESTORED = "assembly basketball bin-picking box-close door-lock drawer-open hammer peg-insert-side push-back reach shelf-place stick-pull"


@needs_metaworld
@pytest.mark.parametrize("name", RESTORED.split())
def test_a_used_environment_goes_on_to_the_bit(name):
    """Among them are those whose goal or first position is a view of MuJoCo's arrays."""
    env, used = (make_env(f"mw/{name}", max_episode_steps=30) for _ in range(2))
    env.reset(seed=11)
    todo = actions(45)  # across the end of an episode and a reset
    for action in todo[:12]:
        env.step(action)
    state = through_files(snapshot(env))
    used.reset(seed=99)
    for action in todo[:5]:
        used.step(action)
    assert restore(used, state)
    ends = 0
    for action in todo[12:]:
        a, b = env.step(action), used.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]
        if a[3]:
            ends += 1
            np.testing.assert_array_equal(env.reset()[0], used.reset()[0])
    assert ends == 1
    for made in (env, used):
        made.close()


@needs_metaworld
def test_what_cannot_be_restored_exactly_is_refused():
    env, other = make_env("mw/reach"), make_env("mw/push")
    env.reset(seed=0)
    env.step(np.ones(4, np.float32))
    state = snapshot(env)
    assert restore(other, state) is False
    older = state | {"base": {"own": state["base"]["own"] | {"versions": "metaworld 2.0, MuJoCo 3.3.0"}}}
    assert restore(env, older) is False
    env.unwrapped._sawyer.data.qpos[0] += 1e-9  # a state that the actions do not lead to
    assert restore(make_env("mw/reach"), snapshot(env)) is False


@needs_metaworld
def test_one_that_was_not_reset_yet_is_restored_too():
    env, other = make_env("mw/reach"), make_env("mw/reach")
    assert restore(other, through_files(snapshot(env)))
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


@needs_metaworld
def test_batches_carry_it_and_restore_fresh_ones():
    batch, again = (EnvBatch("mw/door-open", 2, seed=5, needs_cost=False) for _ in range(2))
    assert (batch.shape.observation, batch.shape.action, batch.shape.constraints) == (39, 4, 0)
    batch.reset()
    batch.step(np.full((2, 4), 0.3, np.float32))
    assert again.restore(batch.snapshot())
    for a, b in zip(batch.step(np.full((2, 4), -0.7, np.float32)), again.step(np.full((2, 4), -0.7, np.float32))):
        np.testing.assert_array_equal(a, b)
    for envs in (batch, again):
        envs.close()


@needs_metaworld
@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium would rather see no infinite bounds
def test_checkers_find_no_fault():
    gymnasium_check(gym.make("mw/soccer"), skip_render_check=True)
    assert check_env("mw/soccer", steps=110, needs_cost=False).constraints == 0


@needs_metaworld
@pytest.mark.filterwarnings("ignore:Constant")  # the policy's own gains
@pytest.mark.parametrize("name", ["door-open", "drawer-close", "reach", "window-open"])
def test_meta_worlds_own_policy_solves_it_within_an_episode_of_100(name):
    from metaworld.policies import ENV_POLICY_MAP

    env, policy = make_env(f"mw/{name}"), ENV_POLICY_MAP[f"{name}-v3"]()
    observation, _ = env.reset(seed=0)
    steps, total, ended, success = 0, 0.0, False, []
    while not ended:
        action = np.clip(policy.get_action(observation.astype(float)), -1, 1)
        observation, reward, terminated, ended, info = env.step(action.astype(np.float32))
        assert not terminated
        assert 0 <= reward <= 20
        steps, total = steps + 1, total + reward
        success.append(info["success"])
    assert steps == 100
    assert (success[0], max(success)) == (0.0, 1.0)  # a door that was opened may swing on
    assert 500 < total < 2000


@needs_metaworld
def test_a_longer_time_limit_than_meta_worlds_own():
    env = make_env("mw/reach", max_episode_steps=260)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[3] for _ in range(260)]
    assert ends == [False] * 259 + [True]


@needs_metaworld
def test_it_can_be_drawn_at_any_size_and_observed_so():
    env = make_env("mw/drawer-open", render_mode="rgb_array", width=800, height=600)
    env.reset(seed=0)
    before = env.render()
    for _ in range(15):
        env.step(np.array([0.0, 1.0, -1.0, 0.0], np.float32))
    after = env.render()
    for picture in (before, after):
        assert (picture.shape, picture.dtype) == ((600, 800, 3), np.uint8)
        assert picture.std() > 5
    assert (before != after).any()
    env.close()
    pixels = make_env("mw/drawer-open@pixels")
    observation, _ = pixels.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((9 * 64 * 64,), np.uint8)
    pixels.close()


@needs_metaworld
@pytest.mark.filterwarnings("ignore:MuJoCo")
def test_physics_that_diverges_is_named():
    env = make_env("mw/push")
    env.reset(seed=0)
    env.unwrapped._sawyer.data.qvel[:] = 1e12
    with pytest.raises(NonFiniteError, match="mw/push has diverged"):
        env.step(np.zeros(4, np.float32))
    env.reset(seed=0)
    env.step(np.zeros(4, np.float32))


@needs_metaworld
def test_an_imported_task_of_mt80_finds_its_environment(tmp_path):
    """Episodes of mw-reach, number 65, padded as TD-MPC2 pads them, in its layout."""
    env = make_env("mw/reach")
    observation, action, reward = np.zeros((2, 101, 50)), np.zeros((2, 101, 6)), np.zeros((2, 101))
    for episode in range(2):
        observation[episode, 0, :39] = env.reset(seed=episode)[0]
        for t, chosen in enumerate(actions(100, episode), start=1):
            action[episode, t, :4] = chosen
            observation[episode, t, :39], reward[episode, t], *_ = env.step(chosen)
    action[:, 0], reward[:, 0] = np.nan, np.nan
    chunk = {"obs": observation, "action": action, "reward": reward}
    torch.save({name: torch.tensor(part).float() for name, part in chunk.items()} | {"task": torch.full((2, 101), 65)}, tmp_path / "chunk.pt")
    data = convert([tmp_path / "chunk.pt"], tmp_path / "data", ("mt80",))
    tasks, faults = playable(data, PretrainConfig(data=str(data.folder), eval_tasks=("mw/reach",)))
    assert (tasks[65].name, tasks[65].env, tasks[65].observation, tasks[65].episode_length) == ("mw-reach", "mw/reach", 39, 100)
    assert "mw-reach" not in faults
    assert len(faults) == 79  # no episodes
