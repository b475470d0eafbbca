"""The DMControl tasks against dm_control itself, and the rewards and costs written here against independent lines."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check

from saddlepoint.envs import EnvBatch, check_env, env_spec, list_envs, make_env
from saddlepoint.envs.control.catalogue import CUSTOM, SUITE
from saddlepoint.envs.snapshot import restore, snapshot
from saddlepoint.types import NonFiniteError, UserError
from tests.test_envs_snapshot import through_files

mujoco = pytest.importorskip("mujoco")
suite = pytest.importorskip("dm_control.suite")
SAFE = ("cartpole-swingup", "cheetah-run", "walker-walk")
SIZES = {  # (observation, action) of TD-MPC2's own tasks
    "cheetah-jump": (17, 6), "cheetah-run-back": (17, 6), "cheetah-run-backwards": (17, 6), "cheetah-run-front": (17, 6),
    "cup-spin": (8, 2), "hopper-hop-backwards": (15, 4), "pendulum-spin": (3, 1), "reacher-three-easy": (8, 3),
    "reacher-three-hard": (8, 3), "walker-run-backwards": (24, 6), "walker-walk-backwards": (24, 6),
}  # fmt: skip


def actions(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


def test_the_39_tasks_and_the_safe_ones_are_registered():
    listed = {task.id: task for task in list_envs() if task.id.startswith("dmc/")}
    assert (len(SUITE), len(CUSTOM), set(CUSTOM)) == (28, 11, set(SIZES))
    assert set(listed) == {f"dmc/{name}" for name in SUITE + CUSTOM} | {f"dmc/{name}-safe" for name in SAFE}
    for id, task in listed.items():
        assert task.horizon == 500
        assert task.constraints == id.endswith("-safe")
        assert [(budget.limit, budget.horizon) for budget in task.budgets] == [(25.0, 500)] * task.constraints


def test_every_task_of_the_suite_is_one_of_dm_control():
    known = {f"{domain}-{task}".replace("_", "-") for domain, task in suite.ALL_TASKS}
    assert {name.replace("cup-", "ball-in-cup-") for name in SUITE} <= known


def test_without_dm_control_it_is_not_listed_and_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dm_control" else found(name))
    assert not any(task.id.startswith("dmc/") for task in list_envs())
    with pytest.raises(UserError, match=r"pip install saddlepoint\[control\]"):
        make_env("dmc/walker-walk")


def test_a_cost_that_a_task_has_not_is_refused():
    with pytest.raises(UserError, match="fish-swim has no cost: take one of dmc/cartpole-swingup-safe"):
        make_env("dmc/fish-swim", safe=True)


@pytest.mark.parametrize(
    ("name", "domain", "task"),
    [
        ("walker-walk", "walker", "walk"), ("cartpole-swingup-sparse", "cartpole", "swingup_sparse"),
        ("cup-catch", "ball_in_cup", "catch"), ("finger-turn-hard", "finger", "turn_hard"),
        ("quadruped-walk", "quadruped", "walk"),
    ],
)  # fmt: skip
def test_two_control_steps_of_dm_control_with_the_same_seed(name, domain, task):
    ours, theirs = make_env(f"dmc/{name}"), suite.load(domain, task, task_kwargs={"random": 7})
    spec = theirs.action_spec()

    def flat(step):
        return np.concatenate([np.ravel(part) for part in step.observation.values()]).astype(np.float32)

    np.testing.assert_array_equal(ours.reset(seed=7)[0], flat(theirs.reset()))
    assert set(ours.action_space.low) == {-1.0}
    assert set(ours.action_space.high) == {1.0}
    for action in actions(ours, 20):
        control = action.astype(float)
        if name.startswith("quadruped"):
            assert (spec.maximum != 1).any()
            control = (spec.minimum + spec.maximum) / 2 + control * (spec.maximum - spec.minimum) / 2
        steps = [theirs.step(control) for _ in range(2)]
        observation, reward, terminated, truncated, info = ours.step(action)
        np.testing.assert_allclose(observation, flat(steps[-1]), rtol=1e-5, atol=1e-5)
        assert reward == pytest.approx(steps[0].reward + steps[1].reward, abs=1e-9)
        assert (terminated, truncated, info) == (False, False, {})
    assert ours.unwrapped.metadata["render_fps"] == round(1 / (2 * theirs.control_timestep()))


@pytest.mark.parametrize("name", CUSTOM)
def test_the_added_tasks_have_the_published_sizes_and_the_suites_control_steps(name):
    env = make_env(f"dmc/{name}")
    assert (*env.observation_space.shape, *env.action_space.shape) == SIZES[name]
    seconds = {"walker": 0.025, "cheetah": 0.01}.get(name.split("-")[0], 0.02)
    assert env.unwrapped.metadata["render_fps"] == round(1 / (2 * seconds))


def falls(x, bound, margin, at_margin=None):
    """1 where x >= bound; below, 0.1^((bound - x)/margin)^2, or a line through ``at_margin`` at the margin."""
    d = max(0.0, (bound - x) / margin)
    return 0.1 ** (d * d) if at_margin is None else max(0.0, 1 - d * (1 - at_margin))


class Numbers:
    """What the rewards speak of, from MuJoCo's own arrays."""

    def __init__(self, physics):
        self.model, self.data = physics.model.ptr, physics.data.ptr
        mujoco.mj_subtreeVel(self.model, self.data)

    def _id(self, kind, name):
        return mujoco.mj_name2id(self.model, getattr(mujoco.mjtObj, f"mjOBJ_{kind}"), name)

    @property
    def velocity(self):
        return self.data.subtree_linvel[self._id("BODY", "torso"), 0]

    def height(self, body):
        return self.data.xpos[self._id("BODY", body), 2]


def one_foot(n, raised):
    up = 0.6 * falls(n.height(raised), 1.2, 0.6) + 0.4 * falls(n.height("torso"), 1.2, 0.6)
    return up * (1 / 6 + 5 / 6 * falls(n.velocity, 6, 6, 0))


def jump(n):
    feet = [falls((n.height("torso") + n.height(foot)) / 2, 1.2, 0.6) for foot in ("ffoot", "bfoot")]
    still = 1 - np.clip((abs(n.velocity) - 0.5) / 0.5, 0, 1)
    return 5 / 12 * sum(feet) + still / 6


def backwards(n, goal):
    upright = n.data.xmat[n._id("BODY", "torso"), 8]
    stand = 0.75 * falls(n.height("torso"), 1.2, 0.6) + 0.125 * (1 + upright)
    return stand * (1 / 6 + 5 / 6 * falls(-n.velocity, goal, goal / 2, 0.5))


def hop(n):
    tall = n.data.xipos[n._id("BODY", "torso"), 2] - n.data.xipos[n._id("BODY", "foot"), 2]
    return float(0.6 <= tall <= 2) * falls(-n.velocity, 1, 0.5, 0.5)


def spin(n):
    cup, ball = n.data.site_xpos[n._id("SITE", "target"), ::2], n.data.xpos[n._id("BODY", "ball"), ::2]
    if (abs(cup - ball) < 0.05 - 0.025).all():
        return 0.0
    speed = np.linalg.norm(n.data.qvel[2:4])
    return falls(np.linalg.norm(cup - ball), 0.5, 0.25, 0.5) / 3 + 2 / 3 * falls(speed, 6, 3, 0.5)


def reached(n, size):
    target, finger = (n.data.geom_xpos[n._id("GEOM", geom), :2] for geom in ("target", "finger"))
    return float(np.linalg.norm(target - finger) <= size + 0.01)


REWARDS = {
    "cheetah-jump": jump,
    "cheetah-run-back": lambda n: one_foot(n, "ffoot"),
    "cheetah-run-backwards": lambda n: np.clip(-n.velocity / 8, 0, 1),
    "cheetah-run-front": lambda n: one_foot(n, "bfoot"),
    "cup-spin": spin,
    "hopper-hop-backwards": hop,
    "pendulum-spin": lambda n: falls(abs(n.data.qvel[0]), 9, 4.5, 0.5),
    "reacher-three-easy": lambda n: reached(n, 0.05),
    "reacher-three-hard": lambda n: reached(n, 0.015),
    "walker-run-backwards": lambda n: backwards(n, 8),
    "walker-walk-backwards": lambda n: backwards(n, 1),
}
SPREAD = {  # standard deviations of the random position (metres, then radians) and velocity, to see all of a reward
    "cheetah": (0.6, 0.4, 5.0), "cup": (0.25, 0.25, 4.0), "hopper": (0.1, 0.2, 1.0), "pendulum": (0.0, 1.0, 9.0),
    "reacher": (0.0, 1.0, 1.0), "walker": (0.4, 0.4, 3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CUSTOM)
def test_the_added_rewards_are_what_their_equations_say(name):
    env = make_env(f"dmc/{name}").unwrapped
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    metres, radians, speed = SPREAD[name.split("-")[0]]
    kinds = env.physics.model.ptr.jnt_type
    seen = []
    for _ in range(150):
        with env.physics.reset_context():
            slides = kinds == mujoco.mjtJoint.mjJNT_SLIDE
            env.physics.data.qpos[:] = rng.normal(size=len(kinds)) * np.where(slides, metres, radians)
            env.physics.data.qvel[:] = rng.normal(size=len(kinds)) * speed
        if name.startswith("reacher"):  # bring the target to where some are hits
            finger = env.physics.named.data.geom_xpos["finger", :2]
            env.physics.named.model.geom_pos["target", :2] = finger + rng.normal(size=2) * 0.03
            env.physics.forward()
        seen.append(float(env._suite.task.get_reward(env.physics)))
        assert seen[-1] == pytest.approx(REWARDS[name](Numbers(env.physics)), abs=1e-9)
    assert 0.0 <= min(seen) < 0.2
    assert 0.5 < max(seen) <= 1.0


def test_the_three_link_arm():
    env = make_env("dmc/reacher-three-hard").unwrapped
    env.reset(seed=0)
    physics = env.physics
    with physics.reset_context():
        physics.named.data.qpos[["shoulder", "elbow", "wrist"]] = 0.0, np.pi / 2, -np.pi / 2
    np.testing.assert_allclose(physics.named.data.geom_xpos["finger", :2], [0.18, 0.09], atol=1e-12)
    np.testing.assert_allclose(np.rad2deg(physics.model.ptr.jnt_range), [[0, 0], [-80, 80], [-80, 80]])
    assert [physics.model.id2name(i, "actuator") for i in range(3)] == ["shoulder", "elbow", "wrist"]
    assert physics.named.model.geom_size["target", 0] == 0.015


def test_most_spins_begin_in_the_cup():
    env = make_env("dmc/cup-spin").unwrapped
    env.reset(seed=0)
    inside = []
    for _ in range(60):
        env.reset()
        assert env.physics.data.ncon == 0
        inside.append(env.physics.in_target())
    assert 0.8 <= np.mean(inside) < 1.0  # 0.9 and, of the tenth, those that fell there anyway


@pytest.mark.parametrize(("name", "limit"), [("cartpole-swingup", 0.5), ("cheetah-run", 3.0), ("walker-walk", 12.0)])
def test_the_cost_counts_the_control_steps_over_the_limit(name, limit):
    env = make_env(f"dmc/{name}-safe")
    domain, _, task = name.partition("-")
    theirs = suite.load(domain, task, task_kwargs={"random": 3})
    env.reset(seed=3)
    theirs.reset()
    for physics in (env.unwrapped.physics, theirs.physics):  # near the limit, so that some steps have cost 1 of 2
        if name != "walker-walk":
            physics.data.qvel[0] = {"cartpole-swingup": 1.0, "cheetah-run": 4.0}[name]
    seen = []
    for action in actions(env, 60):
        over = 0
        for _ in range(2):
            theirs.step(action)
            over += {
                "cartpole-swingup": lambda: abs(theirs.physics.data.qpos[0]) > limit,
                "cheetah-run": lambda: theirs.physics.data.sensordata[0] > limit,
                "walker-walk": lambda: (abs(theirs.physics.data.qvel[-6:]) > limit).any(),
            }[name]()
        cost = env.step(action)[4]["cost"]
        assert cost == over
        seen.append(cost)
    assert {0.0, 2.0} <= set(seen)


RESTORED = "cartpole-swingup-safe cheetah-run cup-spin finger-turn-hard fish-swim quadruped-walk reacher-three-easy"


@pytest.mark.parametrize("name", RESTORED.split())
def test_a_fresh_environment_goes_on_to_the_bit(name):
    """Contacts, targets in the model, both integrators and actuators with a state of their own are all among them."""
    limit = 30  # so that the 33 steps after 12 cross the end of an episode and a reset
    env, used = (make_env(f"dmc/{name}", max_episode_steps=limit) for _ in range(2))
    env.reset(seed=11)
    todo = actions(env, 45)
    for action in todo[:12]:
        env.step(action)
    state = through_files(snapshot(env))
    used.reset(seed=99)  # one that has been elsewhere; a fresh one is in the test of EnvBatch
    used.step(todo[0])
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


def test_another_robot_is_refused():
    env, other = make_env("dmc/cartpole-swingup"), make_env("dmc/pendulum-swingup")
    env.reset(seed=0)
    assert restore(other, snapshot(env)) is False


def test_batches_carry_it_and_restore_fresh_ones():
    batch, again = (EnvBatch("dmc/reacher-easy", 2, seed=5, needs_cost=False) for _ in range(2))
    assert (batch.shape.observation, batch.shape.action, batch.shape.constraints) == (6, 2, 0)
    batch.reset()
    batch.step(np.full((2, 2), 0.3, np.float32))
    assert again.restore(batch.snapshot())
    for a, b in zip(batch.step(np.full((2, 2), -0.7, np.float32)), again.step(np.full((2, 2), -0.7, np.float32))):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match='no "cost"'):
        EnvBatch("dmc/reacher-easy", 1, seed=5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium would rather see no infinite bounds
def test_checkers_find_no_fault():
    gymnasium_check(gym.make("dmc/cup-spin"), skip_render_check=True)
    assert check_env("dmc/walker-walk-safe", steps=30).constraints == 1


def swing_up(observation):
    """Energy shaping below, a linear law above: what a textbook does."""
    x, cos, sin, v, omega = (float(part) for part in observation)
    if cos > 0.85:
        push = 8 * np.arctan2(sin, cos) + 2 * omega + 0.6 * x + 0.8 * v
    else:
        energy = omega**2 / 3 / 9.81 + cos - 1  # of a rod, over half its weight times its length; 0 upright at rest
        push = 0.4 * energy * omega * cos - 3 * x - 0.3 * v
    return np.clip([push], -1, 1).astype(np.float32)


def test_a_textbook_controller_swings_the_pole_up_within_an_episode_of_500():
    env = make_env("dmc/cartpole-swingup-safe")
    observation, _ = env.reset(seed=0)
    steps, total, cost, ended = 0, 0.0, 0.0, False
    while not ended:
        observation, reward, terminated, ended, info = env.step(swing_up(observation))
        assert not terminated
        steps, total, cost = steps + 1, total + reward, cost + info["cost"]
    assert steps == 500
    assert 700 < total < 1000
    assert cost < 100  # random actions: several hundred
    assert env_spec("dmc/cartpole-swingup-safe").budgets[0].episode < cost  # so that the budget asks for more than that


@pytest.mark.parametrize("name", ["cartpole-swingup", "quadruped-walk"])
def test_it_can_be_drawn(name):
    env = make_env(f"dmc/{name}", render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((48, 64, 3), np.uint8)
    assert picture.std() > 5
    env.close()


@pytest.mark.filterwarnings("ignore:MuJoCo")
def test_physics_that_diverges_is_named():
    env = make_env("dmc/cheetah-run")
    env.reset(seed=0)
    env.unwrapped.physics.data.qvel[:] = 1e12
    with pytest.raises(NonFiniteError, match="cheetah-run has diverged"):
        env.step(np.zeros(6, np.float32))
