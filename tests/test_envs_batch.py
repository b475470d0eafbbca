"""A batch against its environments stepped one by one, its guards, its workers, and its capture."""

import itertools
import os
import signal
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from saddlepoint.envs import EnvBatch, make_env
from saddlepoint.envs.backends import LocalEnvs, VectorisedEnvs
from saddlepoint.envs.workers import WorkerEnvs
from saddlepoint.types import ForeignFault, NonFiniteError, UserError
from tests.test_envs_snapshot import through_files

HOPPER = "saddlepoint/HopperVelocity-v0"
SPOILT = "saddlepoint-tests/Spoilt-v0"


class Spoilt(gym.Env):
    """Counts its steps; from step ``after`` on ``part`` is ``value``. Not restorable. Two constraints."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, part="none", value=0.0, after=250, length=7):
        self.part, self.value, self.after, self.length = part, value, after, length
        self.total = self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.array([self.np_random.normal(), 0.0]), {}

    def step(self, action):
        self.total += 1
        self.t += 1
        spoilt = {self.part: self.value} if self.total > self.after else {}
        if "death" in spoilt:
            raise ZeroDivisionError("the environment's own mistake")
        observation = np.array([spoilt.get("observation", 1.0), self.t])
        cost = np.array([spoilt.get("cost", 0.0), 0.5])
        return (
            observation,
            spoilt.get("reward", 1.0),
            self.t == self.length,
            False,
            {"cost": cost} if "info" not in spoilt else {},
        )


gym.register(SPOILT, entry_point=Spoilt)


def seeds(seed, count):
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(count)]


@pytest.mark.parametrize(
    ("id", "limit", "processes"),
    [(HOPPER, 40, False), (HOPPER, 40, True), ("saddlepoint/ToyTwo-v0", 25, False), (SPOILT, 6, False), (SPOILT, 6, True)],
)
def test_a_batch_equals_its_environments_one_by_one(id, limit, processes):
    count = 3
    batch = EnvBatch(id, count, seed=8, processes=processes, env_kwargs={"max_episode_steps": limit})
    single = [make_env(id, max_episode_steps=limit) for _ in range(count)]
    first = np.stack([env.reset(seed=seed)[0] for env, seed in zip(single, seeds(8, count))]).astype(np.float32)
    np.testing.assert_array_equal(batch.reset(), first)
    ends = 0
    rng = np.random.default_rng(0)
    for _ in range(60):
        action = rng.uniform(-1, 1, (count, batch.shape.action)).astype(np.float32)
        step = batch.step(action)
        assert [part.dtype for part in step] == [np.float32] * 4 + [bool] * 2 + [np.float32]
        assert step.cost.shape == (count, batch.shape.constraints)
        for i, env in enumerate(single):
            observation, reward, terminated, truncated, info = env.step(action[i])
            np.testing.assert_array_equal(step.next_observation[i], observation.astype(np.float32))
            assert step.reward[i] == np.float32(reward)
            np.testing.assert_array_equal(step.cost[i], np.float32(info["cost"]))
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            if terminated or truncated:
                ends += 1
                observation, _ = env.reset()
            np.testing.assert_array_equal(step.observation[i], observation.astype(np.float32))
            np.testing.assert_array_equal(batch.observation[i], step.observation[i])
    assert ends >= 3
    batch.close()


def test_which_backend_steps_what():
    for id, processes, kind in (
        (HOPPER, False, LocalEnvs),
        (HOPPER, True, WorkerEnvs),
        ("saddlepoint/Toy-v0", False, VectorisedEnvs),
    ):
        batch = EnvBatch(id, 2, seed=0, processes=processes)
        assert type(batch._envs) is kind
        batch.close()


def test_seeds_are_spaced_and_prefix_stable():
    small, large, next_run = (EnvBatch("saddlepoint/Toy-v0", n, seed=s) for n, s in ((2, 0), (5, 0), (5, 1)))
    a, b, c = small.reset(), large.reset(), next_run.reset()
    np.testing.assert_array_equal(a, b[:2])
    assert len(np.unique(np.concatenate([b, c]), axis=0)) == 10
    np.testing.assert_array_equal(small.reset(seed=1), c[:2])
    assert not np.array_equal(small.reset(), c[:2])  # without a seed it goes on with its own generators
    with pytest.raises(UserError, match="seed"):
        EnvBatch("saddlepoint/Toy-v0", 1, seed=-1)
    with pytest.raises(UserError, match="num_envs must be at least 1, not 0"):
        EnvBatch("saddlepoint/Toy-v0", 0, seed=0)


def test_worker_processes_are_refused_where_they_would_do_nothing():
    with pytest.raises(UserError, match="leave out --env-processes"):
        EnvBatch("saddlepoint/Toy-v0", 2, seed=0, processes=True)


def test_shape_and_task_are_known():
    batch = EnvBatch("saddlepoint/ToyTwo-v0", 2, seed=0, env_kwargs={"max_episode_steps": 30})
    assert (batch.shape.observation, batch.shape.action, batch.shape.constraints) == (6, 2, 2)
    assert (batch.spec.horizon, batch.spec.budgets[0].horizon) == (30, 30)
    foreign = EnvBatch(SPOILT, 1, seed=0)
    assert (foreign.spec.constraints, foreign.spec.budgets, foreign.spec.source) == (2, (), "gymnasium")


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize(
    ("part", "value", "error", "sentence"),
    [
        ("reward", np.nan, NonFiniteError, r"the reward nan at step 3 of its episode in environment 0"),
        ("cost", np.inf, NonFiniteError, r"the cost .* at step 3 of its episode in environment 0"),
        ("observation", -np.inf, NonFiniteError, r"an observation that is not finite at step 3 of its"),
        ("cost", -1.0, UserError, "negative"),
        ("info", None, UserError, "no .cost. into info"),
    ],
)
def test_what_is_wrong_later_on_stops_the_run(part, value, error, sentence, processes):
    # The check makes 220 steps in the first environment of a process before the run's own first.
    kwargs = {"part": part, "value": value, "after": 250}
    batch = EnvBatch(SPOILT, 1, seed=0, processes=processes, env_kwargs=kwargs)
    batch.reset()
    for _ in range(30):
        batch.step(np.zeros((1, 1), np.float32))
    with pytest.raises(error, match=sentence):
        batch.step(np.zeros((1, 1), np.float32))
    batch.close()


def test_an_unfit_environment_is_refused_on_creation_also_in_workers():
    for processes in (False, True):
        with pytest.raises(UserError, match='no "cost"'):
            EnvBatch("Hopper-v5", 2, seed=0, processes=processes)
        with pytest.raises(UserError, match="could not be made"):
            EnvBatch(HOPPER, 2, seed=0, processes=processes, env_kwargs={"nonsense": 1})


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_named():
    batch = EnvBatch(HOPPER, 4, seed=0, processes=True)
    batch.reset()
    workers = batch._envs._processes
    os.kill(workers[-1].pid, signal.SIGKILL)
    workers[-1].join()
    with pytest.raises(UserError, match=rf"worker {len(workers) - 1} \(environments \d to 3 of {HOPPER}\) died .* -9"):
        batch.step(np.zeros((4, 3), np.float32))
    with pytest.raises(ForeignFault, match="interrupted"):
        batch.step(np.zeros((4, 3), np.float32))
    assert batch.snapshot()["envs"] is None  # a snapshot never costs what is learnt
    batch.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("processes", [False, True])
def test_what_an_environment_raises_is_one_sentence(processes, capfd):
    batch = EnvBatch(SPOILT, 1, seed=0, processes=processes, env_kwargs={"part": "death", "after": 220})
    batch.reset()
    with pytest.raises(ForeignFault, match=rf"{SPOILT} raised ZeroDivisionError: the environment's own mistake \(\w+\.py, line \d+, in step\)"):
        batch.step(np.zeros((1, 1), np.float32))
    batch.close()
    assert not capfd.readouterr().err
    with pytest.raises(ForeignFault, match=r"own mistake \(.*, in step\)"):
        EnvBatch(SPOILT, 1, seed=0, processes=processes, env_kwargs={"part": "death", "after": 20})


@pytest.mark.parametrize(
    ("id", "before", "after"),
    [
        *itertools.product((HOPPER, "saddlepoint/AntSpeed-v0"), (False,), (False, True)),
        (HOPPER, True, False), ("saddlepoint/AntSpeed-v0", True, False), ("saddlepoint/Toy-v0", False, False),
    ],
)  # fmt: skip
def test_a_restored_batch_goes_on_to_the_bit(id, before, after):
    count, limit = 3, 45
    kwargs = {"max_episode_steps": limit}
    first = EnvBatch(id, count, seed=2, processes=before, env_kwargs=kwargs)
    actions = np.random.default_rng(3).uniform(-1, 1, (80, count, first.shape.action)).astype(np.float32)
    first.reset()
    for action in actions[:37]:
        first.step(action)
    state = through_files(first.snapshot())
    expected = [first.step(action) for action in actions[37:]]
    first.close()
    second = EnvBatch(id, count, seed=77, processes=after, env_kwargs=kwargs)
    assert second.restore(state)
    np.testing.assert_array_equal(second.observation, state["observation"])
    for action, old in zip(actions[37:], expected):
        for a, b in zip(second.step(action), old):
            np.testing.assert_array_equal(a, b)
    second.close()


@pytest.mark.parametrize("processes", [False, True])
def test_what_cannot_be_restored_starts_a_new_seeded_episode(processes):
    def resumed():
        batch = EnvBatch(SPOILT, 3, seed=4, processes=processes)
        assert batch.restore(state) is False
        return batch

    first = EnvBatch(SPOILT, 3, seed=4, processes=processes)
    first.reset()
    first.step(np.zeros((3, 1), np.float32))
    state = through_files(first.snapshot())
    first.close()
    a, b = resumed(), resumed()
    np.testing.assert_array_equal(a.observation, b.observation)
    assert (a.observation[:, 1] == 0).all()
    assert len(np.unique(a.observation[:, 0])) == 3
    step = a.step(np.zeros((3, 1), np.float32))
    assert (step.next_observation[:, 1] == 1).all()
    a.close()
    b.close()


def test_a_state_of_another_run_is_refused():
    batch = EnvBatch("saddlepoint/Toy-v0", 2, seed=0)
    batch.reset()
    for other in (EnvBatch("saddlepoint/Toy-v0", 3, seed=0), EnvBatch("saddlepoint/ToyTwo-v0", 2, seed=0)):
        with pytest.raises(UserError, match="--num-envs"):
            other.restore(batch.snapshot())


def test_render_is_of_the_first_environment():
    batch = EnvBatch("saddlepoint/Toy-v0", 2, seed=0, render_mode="rgb_array")
    batch.reset()
    assert batch.render().shape == (200, 200, 3)


def test_checking_leaves_no_trace_in_a_seeded_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = EnvBatch(HOPPER, 1, seed=5)
    env = make_env(HOPPER)
    np.testing.assert_array_equal(batch.reset()[0], env.reset(seed=seeds(5, 1)[0])[0].astype(np.float32))
