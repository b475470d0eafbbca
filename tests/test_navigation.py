"""The navigation tasks: rules, determinism, capture, the vectorised form, and what is refused."""

import runpy
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check

from saddlepoint.envs import EnvBatch, check_env, env_spec, list_envs, make_env
from saddlepoint.envs.backends import VectorisedEnvs
from saddlepoint.envs.navigation import CATALOGUE, POINT, Objective, find_task
from saddlepoint.envs.navigation.env import NavigationEnv
from saddlepoint.envs.navigation.model import blueprint
from saddlepoint.envs.snapshot import restore, snapshot
from saddlepoint.types import UserError
from tests.test_envs_batch import seeds
from tests.test_envs_snapshot import play, through_files

STANDARD = [f"{robot}{task}{level}" for robot in ("Point", "Car") for task in ("Goal", "Button", "Push") for level in range(3)]
FIXED = ["PointButton1-fixed", "PointButton2-fixed", "CarButton1-fixed", "CarButton2-fixed", "PointPush1-fixed"]
SIZES = {"Goal": (28, 60, 60), "Button": (44, 76, 76), "Push": (44, 76, 76)}


def named(name):
    return f"saddlepoint/{name}-v0"


def test_every_task_is_registered_with_its_budget():
    assert {named(name) for name in STANDARD + FIXED} == {named(name) for name in CATALOGUE}
    listed = {spec.id for spec in list_envs()}
    for name in CATALOGUE:
        spec = env_spec(named(name))
        assert spec.id in listed
        limit, horizon = (10.0, 400) if name in FIXED else (25.0, 1000)
        assert (spec.budgets[0].limit, spec.budgets[0].horizon, spec.horizon) == (limit, horizon, horizon)
        assert spec.constraints == 1


def test_observations_have_the_published_sizes_and_order():
    for name in STANDARD:
        robot = "Car" if name.startswith("Car") else "Point"
        size = SIZES[name.removeprefix(robot)[:-1]][int(name[-1])] + (12 if robot == "Car" else 0)
        assert sum(CATALOGUE[name].parts.values()) == size
    fixed = {name: sum(CATALOGUE[name].parts.values()) for name in FIXED}
    assert list(fixed.values()) == [76, 60, 88, 72, 76]
    assert list(CATALOGUE["CarButton1-fixed"].parts) == [
        "accelerometer", "ballangvel_rear", "ballquat_rear", "buttons_lidar", "goal_lidar", "gremlins_lidar", "gyro",
        "hazards_lidar", "magnetometer", "velocimeter",
    ]  # fmt: skip
    assert list(CATALOGUE["PointPush2"].parts)[4:] == [
        "goal_lidar", "hazards_lidar", "pillars_lidar", "push_box_lidar",
    ]  # fmt: skip


@pytest.mark.parametrize("name", STANDARD + FIXED)
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
def test_checkers_are_content(name):
    env = make_env(named(name))
    gymnasium_check(env.unwrapped, skip_render_check=True)
    assert check_env(env, steps=25).constraints == 1
    env.reset(seed=0)
    info = env.step(np.zeros(2))[4]
    keys = {"cost", "cost_sum", "goal_met", *(cost.key for cost in CATALOGUE[name].costs)}
    assert set(info) == keys
    assert info["cost"] == max([0.0, *(info[cost.key] for cost in CATALOGUE[name].costs)])


def test_a_seed_fixes_the_episode_and_without_one_the_stream_goes_on():
    a, b = make_env(named("CarGoal1")), make_env(named("CarGoal1"))
    first, _ = a.reset(seed=5)
    second, _ = a.reset()
    np.testing.assert_array_equal(b.reset(seed=5)[0], first)
    np.testing.assert_array_equal(b.reset()[0], second)
    assert not np.array_equal(first, second)
    assert not np.array_equal(a.reset(seed=6)[0], first)


def test_a_fixed_layout_repeats_whatever_the_seed():
    env = make_env(named("PointButton1-fixed"))
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    first = env.reset(seed=1)[0]
    played, _ = play(env, actions)
    np.testing.assert_array_equal(env.reset(seed=2)[0], first)
    again, _ = play(env, actions)
    assert all(np.array_equal(x, y) for x, y in zip(played, again))
    scene = env.unwrapped.worlds.scene
    places = CATALOGUE["PointButton1-fixed"].kinds
    for kind in (kind for kind in places if kind.locations and kind.motion != "driven"):
        np.testing.assert_allclose(scene.positions(kind.name)[0, :, :2], kind.locations, atol=2e-9)
    other = make_env(named("PointGoal1"), layout_seed=3)
    np.testing.assert_array_equal(other.reset(seed=1)[0], other.reset(seed=2)[0])
    np.testing.assert_array_equal(other.reset()[0], make_env(named("PointGoal1")).reset(seed=3)[0])


def test_a_reset_only_moves_bodies():
    env, other = make_env(named("PointPush2")), make_env(named("PointPush2"))
    model = env.unwrapped.worlds.physics.blueprint.model
    before = {name: getattr(model, name).copy() for name in ("body_pos", "body_quat", "geom_pos", "geom_size", "qpos0")}
    for seed in range(3):
        env.reset(seed=seed)
        env.step(np.ones(2))
    assert env.unwrapped.worlds.physics.blueprint.model is model
    assert other.unwrapped.worlds.physics.blueprint.model is model
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(model, name), value)


def test_the_point_runs_as_the_closed_form_says():
    """Straight ahead: v' = (v + h F / m) / (1 + h d / m) in every substep, F = 0.3 * 0.05, d = 0.01.

    One step only: the yaw servo is unstable by the task's own definition and makes more of every rounding.
    """
    env = NavigationEnv("PointGoal0")
    env.reset(seed=0)
    physics, h, mass = env.worlds.physics, 0.002, 4 / 3 * np.pi * 1e-3 + 1e-3
    yaw, start, speed, way = physics.qpos[0, 2], physics.qpos[0, :2].copy(), 0.0, 0.0
    env.step(np.array([0.7, 0.0]))
    for _ in range(10):
        speed = (speed + h * 0.015 / mass) / (1 + h * 0.01 / mass)
        way += h * speed
    heading = np.array([np.cos(yaw), np.sin(yaw)])
    np.testing.assert_allclose(physics.qpos[0, :2], start + way * heading, atol=1e-9)
    np.testing.assert_allclose(physics.qvel[0, :2], speed * heading, atol=1e-9)


def test_gremlins_circle_round_their_homes_in_phase():
    env = NavigationEnv("PointButton1")
    env.reset(seed=1)
    scene, physics = env.worlds.scene, env.worlds.physics
    for _ in range(100):
        env.step(np.zeros(2))
    cubes, clock = scene.positions("gremlins")[0], physics.clock[0]
    # The cubes lag a little behind; how much is the same for all.
    offset = cubes - physics.homes[0]
    np.testing.assert_allclose(offset, np.tile(offset[0], (len(offset), 1)), atol=1e-5)
    np.testing.assert_allclose(offset[0], [0.35 * np.sin(clock), 0.35 * np.cos(clock), 0.1], atol=0.04)


def stand_on(env, column):
    """Put the Point into contact with an object, touching from the west."""
    physics, scene = env.worlds.physics, env.worlds.scene
    physics.qpos[0, :3] = *(scene.xyz[0, column, :2] - (0.199, 0.0)), np.pi
    physics.qvel[0, :3] = 0.0


def test_a_press_pays_once_hides_the_buttons_and_mutes_their_cost():
    env = NavigationEnv("PointButton1")
    env.reset(seed=3)
    worlds, scene = env.worlds, env.worlds.scene
    part = slice(12, 28)
    columns = scene.columns("buttons")
    wrong = (int(scene.target[0]) + 1) % 4
    stand_on(env, columns.start + wrong)
    _, _, _, _, info = env.step(np.zeros(2))
    assert (info["cost_buttons"], info["cost"], info["goal_met"]) == (1.0, 1.0, False)
    stand_on(env, columns.start + int(scene.target[0]))
    worlds.refresh()
    worlds.distance[0] = 0.199
    observation, reward, _, _, info = env.step(np.zeros(2))
    assert info["goal_met"]
    assert reward == pytest.approx(1.0, abs=0.02)
    assert worlds.timer[0] == 10
    for k in range(1, 11):
        assert (observation[part] == 0).all()
        stand_on(env, columns.start + (int(scene.target[0]) + 1) % 4)
        observation, _, _, _, info = env.step(np.zeros(2))
        assert info["cost_buttons"] == 0.0, k
    assert (observation[part] > 0).any()
    assert env.step(np.zeros(2))[4]["cost_buttons"] == 1.0


def test_a_reached_goal_is_followed_by_a_free_place():
    env = NavigationEnv("PointGoal2")
    env.reset(seed=0)
    worlds, scene = env.worlds, env.worlds.scene
    places = set()
    for _ in range(10):
        worlds.physics.qpos[0, :2] = scene.positions("goal")[0, 0, :2]
        _, _, terminated, _, info = env.step(np.zeros(2))
        assert info["goal_met"]
        assert not terminated
        goal = scene.positions("goal")[0, 0]
        places.add(tuple(goal))
        for kind in ("hazards", "vases"):
            apart = np.linalg.norm(scene.positions(kind)[0, :, :2] - goal[:2], axis=1)
            assert (apart >= 0.305 + CATALOGUE["PointGoal2"].kinds[1 if kind == "hazards" else 2].keepout - 1e-9).all()
        assert worlds.distance[0] == pytest.approx(np.linalg.norm(goal[:2] - scene.agent[0, :2]))
    assert len(places) == 10


def test_a_goal_that_finds_no_place_ends_the_episode():
    task = find_task("PointGoal0")
    crowded = replace(task, kinds=(replace(task.kinds[0], keepout=0.95),), keepout=0.05, name="Crowded")
    env = NavigationEnv(replace(crowded, objective=Objective(lambda scene: (scene.agent[:, 0], scene.agent[:, 0] < 9))))
    env.reset(seed=0)
    env.worlds.physics.qpos[0, :2] = 0.0
    assert env.step(np.zeros(2))[2] is True


def test_objects_at_rest_are_held_where_they_would_stay():
    """One step with and without the contacts of a box at rest, far from the robot."""
    env = NavigationEnv("CarPush1")
    env.reset(seed=0)
    for _ in range(30):
        env.step(np.array([0.3, 0.1]))
    physics, state = env.worlds.physics, env.snapshot()
    assert physics.motion.undisturbed(physics.clock, physics.qpos, physics.qvel)[0]
    held, *_ = env.step(np.ones(2))
    box, robot = physics.qpos[0, -7:].copy(), physics.qpos[0, :-7].copy()
    env.restore(state)
    physics.blueprint = replace(physics.blueprint, rest=False)
    free, *_ = env.step(np.ones(2))
    np.testing.assert_allclose(physics.qpos[0, -7:], box, atol=1e-9)
    np.testing.assert_allclose(physics.qpos[0, :-7], robot, atol=1e-9)
    np.testing.assert_allclose(free, held, atol=1e-5)


ANYWHERE = replace(  # a new goal in every step: the random stream matters all the time
    find_task("PointGoal1"), name="Anywhere",
    objective=Objective(lambda scene: (scene.distances("goal")[:, 0], scene.distances("goal")[:, 0] < 9)),
)  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.wrappers.TimeLimit(NavigationEnv(ANYWHERE), 60),
        lambda: make_env(named("PointGoal2"), max_episode_steps=60),
        lambda: make_env(named("CarButton2"), max_episode_steps=60),
        lambda: make_env(named("CarPush2"), max_episode_steps=60),
        lambda: make_env(named("PointButton1-fixed"), max_episode_steps=60),
    ],
    ids=["anywhere", "goal", "button", "push", "fixed"],
)
def test_a_restored_environment_goes_on_to_the_bit(make):
    env, actions = make(), np.random.default_rng(4).uniform(-1, 1, (87, 2))
    env.reset(seed=11)
    play(env, actions[:37])
    state = through_files(snapshot(env))
    expected, ends = play(env, actions[37:])
    assert ends == 1
    fresh, used = make(), make()
    used.reset(seed=2)
    play(used, actions[:50])
    for other in (fresh, used):
        assert restore(other, state)
        again, _ = play(other, actions[37:])
        assert all(np.array_equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("name", ["PointGoal1", "PointButton1", "CarButton2-fixed", "CarPush1"])
def test_the_vectorised_form_equals_single_environments(name):
    count, limit = 3, 30
    batch = EnvBatch(named(name), count, seed=8, env_kwargs={"max_episode_steps": limit})
    assert type(batch._envs) is VectorisedEnvs
    single = [make_env(named(name), max_episode_steps=limit) for _ in range(count)]
    first = np.stack([env.reset(seed=seed)[0] for env, seed in zip(single, seeds(8, count))])
    np.testing.assert_array_equal(batch.reset(), first.astype(np.float32))
    rng = np.random.default_rng(0)
    for t in range(75):
        action = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
        if t == 40:
            state = through_files(batch.snapshot())
        step = batch.step(action)
        if t == 40:
            after = step
        for i, env in enumerate(single):
            observation, reward, terminated, truncated, info = env.step(action[i])
            np.testing.assert_array_equal(step.next_observation[i], observation.astype(np.float32))
            assert (step.reward[i], step.cost[i, 0]) == (np.float32(reward), info["cost"])
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            if truncated:
                observation, _ = env.reset()
            np.testing.assert_array_equal(step.observation[i], observation.astype(np.float32))
        if t == 40:
            used = action
    assert batch.restore(state)
    for a, b in zip(batch.step(used), after):
        np.testing.assert_array_equal(a, b)
    batch.close()


def test_the_number_of_threads_changes_nothing():
    seen = []
    for threads in (1, 2):
        env = gym.make_vec(
            named("CarGoal1"), 4, vectorization_mode="vector_entry_point", threads=threads, max_episode_steps=20
        )
        env.reset(seed=3)
        rng = np.random.default_rng(1)
        for _ in range(25):
            observation, reward, *_, info = env.step(rng.uniform(-1, 1, (4, 2)))
        seen.append((observation, reward, info["cost_hazards"], info["goal_met"]))
        env.close()
    for a, b in zip(*seen):
        np.testing.assert_array_equal(a, b)


def test_mistakes_get_one_sentence():
    with pytest.raises(UserError, match="did you mean PointGoal1"):
        NavigationEnv("PointGoal11")
    with pytest.raises(UserError, match=r"2\*\*32"):
        NavigationEnv("PointGoal0").reset(seed=2**32)
    with pytest.raises(UserError, match="camera"):
        NavigationEnv("PointGoal0", camera="side")
    with pytest.raises(UserError, match="needs a kind called 'pillars'"):
        replace(find_task("PointGoal1"), lidars=("pillars",))
    with pytest.raises(UserError, match="same name"):
        replace(find_task("PointGoal1"), kinds=find_task("PointGoal1").kinds * 2)
    with pytest.raises(UserError, match="no kind called 'pillars'"):
        NavigationEnv("PointGoal1").worlds.scene.distances("pillars")
    with pytest.raises(UserError, match="hazards of PointGoal1 cannot be touched"):
        NavigationEnv("PointGoal1").worlds.scene.contacts("hazards")
    with pytest.raises(UserError, match="not one of 1 worlds of PointGoal1"):
        NavigationEnv("PointGoal1").restore(NavigationEnv("PointGoal2").snapshot())


def test_a_task_of_ones_own_fits_into_forty_lines():
    path = Path(__file__).resolve().parents[1] / "examples" / "custom_navigation.py"
    assert len(path.read_text().splitlines()) < 40
    task = runpy.run_path(str(path))["TASK"]
    assert check_env(NavigationEnv(task), steps=30).observation == 12 + 2 * 16
    env = NavigationEnv(task)
    env.reset(seed=0)
    env.worlds.physics.qpos[0, :3] = 1.2, 0.0, np.pi / 2  # on the ring, looking along it
    _, reward, _, _, info = env.step(np.zeros(2))
    assert reward == pytest.approx(1.0, abs=1e-3)
    assert info["cost_ring"] == 0.0
    env.worlds.physics.qpos[0, :2] = 0.0
    assert env.step(np.zeros(2))[4]["cost_ring"] == 1.0
    assert blueprint(POINT, task.kinds, POINT.timestep) is env.worlds.physics.blueprint
