"""Each fault of a user's environment gets its own sentence; a sound one passes; ids and adapters."""

import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from saddlepoint.envs import SafetyGymnasiumAdapter, check_env, env_spec, make_env
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.envs.make import flattened
from saddlepoint.types import EnvShape, UserError

WIDE = Box(-np.inf, np.inf, (3,), np.float64)
UNIT = Box(-1.0, 1.0, (2,), np.float32)


class Sound(gym.Env):
    """A random walk of 10 steps. ``change`` = {name: value or function of the step} spoils one thing from step 3 on."""

    def __init__(self, observation_space=WIDE, action_space=UNIT, **change):
        self.observation_space, self.action_space, self.change = observation_space, action_space, change
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(size=self.observation_space.shape), {}

    def step(self, action):
        self.t += 1
        parts = {
            "observation": self.np_random.normal(size=self.observation_space.shape),
            "reward": 1.0,
            "terminated": False,
            "truncated": self.t == 10,
            "info": {"cost": 0.5},
        }
        if self.t >= 3:
            parts |= {name: value for name, value in self.change.items() if name in parts}
            if "cost" in self.change:
                parts["info"] = {"cost": self.change["cost"]}
        return tuple(parts.values())


def test_a_sound_environment_passes_and_stays_usable():
    env = Sound()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_env(env) == EnvShape(3, (-1.0, -1.0), (1.0, 1.0), 1)
    assert env.t == 0
    env.step(np.zeros(2))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"info": {}}, 'no "cost" into info at step 3'),
        ({"info": None}, 'info of type NoneType'),
        ({"cost": -0.1}, "negative"),
        ({"cost": np.nan}, "costs must be finite"),
        ({"cost": np.inf}, "costs must be finite"),
        ({"cost": "much"}, "a number is needed"),
        ({"cost": [0.1, 0.2]}, "length of info"),
        ({"cost": [[0.1]]}, "of shape"),
        ({"reward": np.nan}, "rewards must be finite"),
        ({"reward": np.zeros(1)}, "reward of type ndarray"),
        ({"reward": 10**5000}, "the reward an endless int at step 3 of its episode: rewards must be finite"),
        ({"reward": 10**400}, "the reward 1000.* at step 3 of its episode: rewards must be finite"),
        ({"reward": np.timedelta64(3, "s")}, "reward of type timedelta64"),
        ({"observation": np.full(3, np.nan)}, "observation that is not finite"),
        ({"observation": np.zeros(4)}, "shape"),
        ({"observation": [0.0, 0.0, 0.0]}, "type list"),
        ({"observation": np.zeros(3, np.int64)}, "type int64"),
        ({"terminated": 0}, "terminated of type int"),
        ({"truncated": None}, "truncated of type NoneType"),
        ({"action_space": Discrete(4)}, "Discrete actions"),
        ({"action_space": Box(-np.inf, np.inf, (2,))}, "unbounded"),
        ({"action_space": Box(0, 255, (2,), np.uint8)}, "vector of floats"),
        ({"action_space": Box(-1, 1, (2, 2))}, "vector of floats"),
        ({"action_space": Box(np.array([0.0, 1.0]), np.array([1.0, 1.0]))}, "low is not below"),
        ({"observation_space": Dict({"a": WIDE})}, "Dict observations"),
    ],
)
def test_each_fault_has_its_sentence(fault, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        check_env(Sound(**fault))
    assert str(caught.value).startswith("Sound ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"reward": np.bool_(True)}, {"action_space": Box(-1, 1, (2,), np.longdouble)}], ids=str)
def test_numbers_of_unusual_types_pass(change):
    assert check_env(Sound(**change)).constraints == 1


@pytest.mark.parametrize("steps", [20, 50, 100, 220])
def test_as_many_steps_are_checked_as_were_asked_for(steps):
    taken = []

    class Counting(Sound):
        def step(self, action):
            taken.append(self.t)
            return super().step(action)

    check_env(Counting(), steps=steps)
    assert len(taken) == steps


def test_large_seeds_must_be_taken():
    class Small(Sound):
        def reset(self, *, seed=None, options=None):
            if seed is not None and seed >= 2**31:
                raise ValueError("the simulator has 31 bits")
            return super().reset(seed=seed)

    with pytest.raises(UserError, match=r"^Small raised ValueError: the simulator has 31 bits .* the seed 4294967295: runs draw seeds of 32 bits"):
        check_env(Small())


def test_step_of_another_api_is_named():
    class Six(Sound):
        def step(self, action):
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, 0.0, terminated, truncated, {}

    with pytest.raises(UserError, match="SafetyGymnasiumAdapter"):
        check_env(Six())


class SixTuple(Sound):
    """As Safety-Gymnasium's are: the cost has a place of its own."""

    metadata, render_mode = {"render_modes": []}, None

    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, 0.25, terminated, truncated, {}


def test_six_values_are_named_under_gymnasiums_time_limit_and_adapted():
    gym.register("tests/Six-v0", SixTuple, max_episode_steps=7)
    with pytest.raises(UserError, match=r"returns six values .* saddlepoint\.envs\.adapters\.SafetyGymnasiumAdapter"):
        EnvBatch("tests/Six-v0", 1, seed=0)
    gym.register("tests/Adapted-v0", lambda **kwargs: SafetyGymnasiumAdapter(SixTuple(**kwargs)), max_episode_steps=7)
    envs = EnvBatch("tests/Adapted-v0", 1, seed=0)
    envs.reset()
    steps = [envs.step(np.zeros((1, 2), np.float32)) for _ in range(7)]
    assert [step.cost.item() for step in steps] == [0.25] * 7
    assert [bool(step.truncated) for step in steps] == [False] * 6 + [True]


def test_an_error_of_the_environments_own_is_not_taken_for_six_values():
    class Picky(Sound):
        def step(self, action):
            if self.t == 2:
                self.t = 5
                raise ValueError("the gripper is open")
            return super().step(action)

    with pytest.raises(UserError, match=r"Picky raised ValueError: the gripper is open \(.*, in step\)"):
        check_env(Picky())


def test_reset_without_info_is_named():
    class Old(Sound):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0]

    with pytest.raises(UserError, match="reset"):
        check_env(Old())


def test_an_unseeded_environment_is_only_warned_about():
    class Unseeded(Sound):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=None)

    with pytest.warns(UserWarning, match="same seed"):
        check_env(Unseeded())


def test_vector_costs_count_as_constraints():
    class Two(Sound):
        def step(self, action):
            return (*super().step(action)[:4], {"cost": np.array([0.0, 1.0])})

    assert check_env(Two()).constraints == 2
    assert check_env("saddlepoint/ToyTwo-v0") == EnvShape(6, (-1.0, -1.0), (1.0, 1.0), 2)


def test_a_cost_is_required_of_gymnasiums_own():
    with pytest.raises(UserError, match='Hopper-v5 puts no "cost"'):
        check_env("Hopper-v5")


@pytest.mark.parametrize(
    ("id", "near"),
    [
        ("saddlepoint/HoperVelocity-v0", "HopperVelocity-v0"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("saddlepoint/toy-v0", "Toy-v0"),
    ],
)
def test_unknown_ids_name_close_ones(id, near):
    with pytest.raises(UserError, match=near):
        make_env(id)


def test_unknown_ids_without_close_ones_and_unknown_modules():
    for id, words in (("zzzzqqqqxxxx", "no environment"), ("no_such_module_anywhere:Env-v0", "cannot be imported")):
        with pytest.raises(UserError, match=words):
            env_spec(id)


def test_a_module_that_python_cannot_read_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "hasty_module.py").write_text("import gymnasium\ndef make(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'hasty_module' .* cannot be read by Python \(.*hasty_module.py, line 2\)"):
        env_spec("hasty_module:Env-v0")


def test_arguments_that_an_environment_does_not_take():
    with pytest.raises(UserError, match="nonsense"):
        make_env("saddlepoint/Toy-v0", nonsense=3)
    with pytest.raises(UserError, match="at least one step"):
        make_env("saddlepoint/Toy-v0", max_episode_steps=0)


def test_pictures_are_flattened_to_floats():
    class Pictures(Sound):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.arange(12, dtype=np.uint8).reshape(2, 2, 3), {}

        def step(self, action):
            return (np.arange(12, dtype=np.uint8).reshape(2, 2, 3), *super().step(action)[1:])

    env = flattened(Pictures(observation_space=Box(0, 255, (2, 2, 3), np.uint8)), "Pictures")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, np.arange(12, dtype=np.float32))
    assert observation.dtype == np.float32
    assert env.observation_space.contains(observation)
    assert check_env(env).observation == 12


def test_six_tuples_are_adapted():
    calls = []

    def step(action):
        calls.append(action)
        return np.ones(3), 2.0, 0.25, False, len(calls) % 5 == 0, {"goal": 1}

    stub = SimpleNamespace(
        action_space=UNIT, observation_space=WIDE, metadata={"render_modes": []}, render_mode=None,
        reset=lambda seed=None, options=None: (np.zeros(3), {"seed": seed}), step=step,
        render=lambda: "frame", close=lambda: calls.append("closed"),
    )  # fmt: skip
    env = SafetyGymnasiumAdapter(stub)
    assert env.reset(seed=7)[1] == {"seed": 7}
    observation, *rest = env.step(np.zeros(2))
    np.testing.assert_array_equal(observation, np.ones(3))
    assert rest == [2.0, False, False, {"goal": 1, "cost": 0.25}]
    assert check_env(env).constraints == 1
    assert env.render() == "frame"
    env.close()
    assert calls[-1] == "closed"
