"""The Python API is as strict as the command line, and as kind: one meaning is taken, every other value is one sentence."""

from __future__ import annotations

import inspect
import pydoc
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import saddlepoint
from saddlepoint import (
    ALGD,
    CAL,
    SAC,
    SACPID,
    ALGDConfig,
    Callback,
    SACConfig,
    SACLag,
    SACLagConfig,
    StopAfter,
    StopWhenSafe,
    TrainConfig,
    check_env,
    load_policy,
    register_system,
)
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs import EnvBatch, EnvSetup
from saddlepoint.flags import read_integer
from saddlepoint.mbdpo.config import MBDPOConfig
from saddlepoint.offline.config import PretrainConfig
from saddlepoint.offline.pretrain import pretrain
from saddlepoint.options import conform, restore, whole_number
from saddlepoint.policies import stored_learner
from saddlepoint.systems import SYSTEMS
from saddlepoint.train import run
from saddlepoint.train.evaluate import evaluate
from saddlepoint.types import UserError
from tests.toys import ENV, Tiny, TinyConfig


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"] = "a"
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    count: int = 1
    rate: float = 1.0
    flag: bool = False
    layers: tuple[int, ...] = (8,)
    limit: float | None = None
    out: Path | None = None
    mode: Literal["x", "y"] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"count": 2e4}, {"count": 20_000}), ({"count": np.int64(3)}, {"count": 3}), ({"count": torch.tensor(3)}, {"count": 3}),
        ({"rate": torch.tensor(0.5)}, {"rate": 0.5}), ({"rate": np.array(0.5)}, {"rate": 0.5}), ({"flag": torch.tensor(True)}, {"flag": True}),
        ({"rate": 2}, {"rate": 2.0}),
        ({"rate": np.float32(0.5)}, {"rate": 0.5}), ({"layers": [4, 4]}, {"layers": (4, 4)}), ({"layers": np.array([4, 5])}, {"layers": (4, 5)}),
        ({"out": "runs/x"}, {"out": Path("runs/x")}), ({"limit": 3}, {"limit": 3.0}), ({"limit": None}, {"limit": None}),
        ({"mode": "y"}, {"mode": "y"}), ({"flag": np.bool_(True)}, {"flag": True}), ({"inner": Inner(rate=1)}, {"inner": Inner(rate=1.0)}),
    ],
)  # fmt: skip
def test_what_means_one_thing_is_taken(given: dict[str, Any], taken: dict[str, Any]) -> None:
    found = conform(Outer(**given))
    assert found == Outer(**taken)
    for name, value in taken.items():
        assert type(getattr(found, name)) is type(value), name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": 2.5}, "--count cannot be 2.5: give a whole number"), ({"count": True}, "--count cannot be True"), ({"count": "3"}, "--count cannot be '3'"),
        ({"rate": "fast"}, "--rate cannot be 'fast': give a number"), ({"rate": None}, "--rate cannot be None"), ({"flag": 1}, "--flag cannot be 1"),
        ({"layers": 8}, "--layers cannot be 8: give a tuple"), ({"layers": torch.tensor(8)}, "--layers cannot be .*: give a tuple"),
        ({"layers": "88"}, "--layers"), ({"layers": (8, 0.5)}, "--layers"),
        ({"mode": "z"}, "--mode cannot be 'z': use one of x, y or None"), ({"out": 3}, "--out cannot be 3: give a path"),
        ({"inner": Inner(kind="c")}, "--kind cannot be 'c': use one of a, b"), ({"inner": 3}, "--inner cannot be 3"), ({"extra": [1]}, "--extra"),
    ],
)  # fmt: skip
def test_all_else_is_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        conform(Outer(**given))
    assert "\n" not in str(caught.value)


def test_a_config_comes_back_from_json_as_it_was() -> None:
    import json

    whole = Outer(layers=(3, 4), out=Path("x"), limit=2.0, inner=Inner("b", 0.25), extra={"a": [1]})
    assert restore(Outer, json.loads(json.dumps(run._plain(vars(whole) | {"inner": vars(whole.inner)}))), Path("config.json")) == whole
    with pytest.raises(UserError, match=r"damaged .--kind cannot be 'c'"):
        restore(Outer, {"inner": {"kind": "c"}}, Path("config.json"))


@pytest.mark.parametrize("system", sorted(set(SYSTEMS) - {"tiny"}))
def test_every_choice_of_every_system_is_checked_in_python(system: str, tmp_path: Path) -> None:
    """A typo never trains something else, such as without the constraint."""
    known = SYSTEMS[system]
    config = known.config_class()()
    choices = [name for name, value in vars(config).items() if isinstance(value, str)]
    assert choices
    for name in choices:
        with pytest.raises(UserError, match=name.replace("_", "-")):
            saddlepoint.train(TrainConfig(env=ENV, out=tmp_path / "run"), known.learner_class(), replace(config, **{name: f"{vars(config)[name]}x"}))
    assert not (tmp_path / "run").exists()


def test_wrong_arguments_are_one_sentence(tmp_path: Path) -> None:
    where = TrainConfig(env="saddlepoint/Toy-v0", out=tmp_path / "run")
    for call, words in (
        (lambda: saddlepoint.train(where, ALGD, SACConfig()), "algd takes a config of class ALGDConfig, not SACConfig"),
        (lambda: saddlepoint.train(where, SAC, ALGDConfig()), "sac takes a config of class SACConfig, not ALGDConfig"),
        (lambda: saddlepoint.train(where, SAC, SACLagConfig()), "sac takes a config of class SACConfig, not SACLagConfig"),
        (lambda: saddlepoint.train(where, SACLag, SACConfig()), "sac-lag takes a config of class SACLagConfig, not SACConfig"),
        (lambda: saddlepoint.train(where, SACPID, SACLagConfig()), "sac-pid takes a config of class SACPIDConfig, not SACLagConfig"),
        (lambda: saddlepoint.train(where, CAL, ALGDConfig()), "cal takes a config of class CALConfig, not ALGDConfig"),
        (lambda: saddlepoint.train(where, ALGD, ALGDConfig), "algd takes a config of class ALGDConfig, not the class ALGDConfig itself"),
        (lambda: saddlepoint.train(ALGDConfig(), ALGD, ALGDConfig()), "takes a TrainConfig first, not ALGDConfig"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(replace(where, device="gpu"), SAC, SACConfig()), "--device cannot be 'gpu': use one of auto, cpu, cuda"),
        (lambda: saddlepoint.train(replace(where, binds="noisefree"), SAC, SACConfig()), "--binds cannot be 'noisefree'"),
        (lambda: saddlepoint.train(where, SAC, SACConfig(), [60]), "budgets must be instances of CostBudget, not int"),  # type: ignore[list-item]
        (lambda: saddlepoint.train(where, SAC, SACConfig(), 60), "budgets must be instances of CostBudget, not int"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, SAC, SACConfig(), np.array(60)), "budgets must be instances of CostBudget, not ndarray"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, SAC, SACConfig(critic_hidden=(10**30,))), "there is not enough memory"),
        (lambda: saddlepoint.train(where, ALGD, ALGDConfig(policy_hidden=(10**12,))), "there is not enough memory"),
        (lambda: saddlepoint.train(where, SAC, SACConfig(), CostBudget), "budgets must be instances of CostBudget, not the class CostBudget"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, "sac", SACConfig()), "takes a system's class second, such as saddlepoint.ALGD, not 'sac'"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, SACConfig(), SAC), "takes a system's class second"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, None, SACConfig()), "takes a system's class second"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, SAC, SACConfig(), {CostBudget(1), CostBudget(2)}), "budgets need an order, and a set has none"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, SAC, SACConfig(), resume="no"), "resume cannot be 'no': use True or False"),  # type: ignore[arg-type]
        (lambda: pretrain(PretrainConfig(data="x"), MBDPOConfig(), resume="no"), "resume cannot be 'no': use True or False"),  # type: ignore[arg-type]
        (lambda: saddlepoint.make_env("saddlepoint/Toy-v0", flatten="no"), "flatten cannot be 'no': use True or False"),  # type: ignore[arg-type]
        (lambda: saddlepoint.make_env("saddlepoint/Toy-v0", render_mode=3), "render_mode must be a text"),  # type: ignore[arg-type]
        (lambda: check_env("saddlepoint/Toy-v0", needs_cost="no"), "needs_cost cannot be 'no': use True or False"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, SAC, SACConfig(), callbacks=None), "callbacks must be instances of Callback, not NoneType"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(where, SAC, SACConfig(), callbacks=Callback), "callbacks must be instances of Callback, not the class Callback"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(replace(where, out="a\0b"), SAC, SACConfig()), r"the run folder '.*a\\x00b' cannot be written"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(replace(where, out=5), SAC, SACConfig()), "--out cannot be 5: give a path"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(replace(where, out="x" * 300), SAC, SACConfig()), "cannot be looked at .File name too long"),  # type: ignore[arg-type]
        (lambda: load_policy(None), "load_policy takes the folder of a run first, not None"),  # type: ignore[arg-type]
        (lambda: saddlepoint.train(replace(where, env="a\nb"), SAC, SACConfig()), r"no environment is called 'a\\nb'.*my_module:ID"),
        (lambda: saddlepoint.train(replace(where, total_steps="1e4"), SAC, SACConfig()), "--total-steps cannot be '1e4'"),
        (lambda: CostBudget(60, per="epsiode"), "--per cannot be 'epsiode': use one of episode, step"),  # type: ignore[arg-type]
        (lambda: CostBudget("60"), "--limit cannot be '60'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_budget_without_a_horizon_takes_the_environment_s(tmp_path: Path) -> None:
    config = TrainConfig(env=ENV, total_steps=30, warmup_steps=20, num_envs=3, out=str(tmp_path / "run"), quiet=True)  # type: ignore[arg-type]
    folder = saddlepoint.train(config, Tiny, TinyConfig(), CostBudget(2))
    (budget,) = run.budgets_of(run.read(folder))
    assert budget == CostBudget(2.0, horizon=12)
    assert budget.critic == pytest.approx(2 * sum(0.99**t for t in range(12)) / 12)
    assert run.read(folder)["train"]["warmup_steps"] == 20
    other = replace(config, out=tmp_path / "own", warmup_steps=None)
    (own,) = run.budgets_of(run.read(saddlepoint.train(other, Tiny, TinyConfig(), (CostBudget(2, horizon=5),))))
    assert own.horizon == 5
    assert run.read(tmp_path / "own")["train"]["warmup_steps"] == 3  # a tenth of the run


def test_train_says_what_it_takes() -> None:
    names = list(inspect.signature(saddlepoint.train).parameters)
    assert names == ["config", "learner", "learner_config", "budgets", "resume", "callbacks"]
    words = pydoc.plain(pydoc.render_doc(saddlepoint.train))
    assert "saddlepoint.train(config:" in words
    assert "``callbacks`` are called after steps" in words
    for name in saddlepoint.__all__:
        assert getattr(saddlepoint, name) is not None


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = TrainConfig(env="saddlepoint/Toy-v0", total_steps=60, warmup_steps=40, quiet=True, threads=1, out=tmp_path_factory.mktemp("policy") / "run")
    return load_policy(saddlepoint.train(config, SAC, SACConfig(critic_hidden=(8,), policy_hidden=(8,), batch_size=8)))


def test_a_policy_acts_by_the_names_of_others(policy: Any) -> None:
    seen = np.zeros((3, policy.shape.observation), np.float32)
    free = policy.act(seen)
    np.testing.assert_array_equal(policy.act(seen, deterministic=True), free)
    np.testing.assert_array_equal(policy.predict(seen, deterministic=True)[0], free)
    assert policy.predict(seen)[1] is None
    assert policy.predict(seen[0])[0].shape == (policy.shape.action,)
    assert (policy.act(seen, deterministic=False) != free).any()
    policy.reset()
    first = policy.act(seen, "stochastic")
    policy.reset()
    np.testing.assert_array_equal(policy.act(seen, deterministic=False), first)
    policy.reset()  # noise is carried on from step to step
    drawn = policy.act(seen, "stochastic", torch.Generator().manual_seed(policy.seed))
    np.testing.assert_array_equal(drawn, first)
    np.testing.assert_array_equal(policy.predict(seen, episode_start=np.ones(3, bool))[0], free)
    for rows in (1, 2):  # other numbers of environments than before
        np.testing.assert_array_equal(policy.predict(seen[:rows], episode_start=np.ones(rows, bool))[0], free[:rows])


def test_numbers_of_the_python_api_are_checked(policy: Any) -> None:
    learner, env = policy.learner, policy.env
    for call, words in (
        (lambda: CostBudget(10**400), "--limit cannot be 1000"), (lambda: CostBudget(5, horizon=10**400), "--horizon cannot be 1000"),
        (lambda: CostBudget(5, horizon=2**60), "fewer than"),
        (lambda: load_policy("x", "gpu"), "cannot act on the device 'gpu'"), (lambda: load_policy("x", None), "cannot act on the device None"),  # type: ignore[arg-type]
        (lambda: load_policy("x", acting="a=1"), "acting are settings by name"),  # type: ignore[arg-type]
        (lambda: policy.reset("x"), "reset takes which episodes ended"), (lambda: policy.reset([1]), "reset takes which episodes ended"),
        (lambda: check_env(env, steps="x"), "steps cannot be 'x'"), (lambda: check_env(env, seed=-1), "seed must lie from 0 to"),  # type: ignore[arg-type]
        (lambda: evaluate(learner, env, (), 1.5, 0), "episodes cannot be 1.5"), (lambda: evaluate(learner, env, (), 2, 2**31), "seed must lie from 0 to"),  # type: ignore[arg-type]
        (lambda: evaluate(learner, env, 25, 2, 0), "budgets must be instances of CostBudget, not int"),  # type: ignore[arg-type]
        (lambda: evaluate(learner, env, None, 2, 0), "budgets must be instances of CostBudget"),  # type: ignore[arg-type]
        (lambda: evaluate(policy, env, (), 2, 0), "takes a learner first, not TrainedPolicy"), (lambda: evaluate(None, env, (), 2, 0), "not NoneType"),  # type: ignore[arg-type]
        (lambda: StopWhenSafe("x"), "StopWhenSafe's evaluations cannot be 'x'"), (lambda: StopAfter(hours=float("nan")), "hours must be finite"),  # type: ignore[arg-type]
        (lambda: register_system(None, Tiny, TinyConfig), "cannot be called None"),  # type: ignore[arg-type]
        (lambda: register_system("tiny", Tiny, TinyConfig, [1]), "give a dict, not list"),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            call()


def test_a_policy_takes_every_array(policy: Any) -> None:
    seen = np.linspace(-1, 1, policy.shape.observation, dtype=np.float32)
    wanted = policy.act(seen)
    grown = torch.tensor(seen, requires_grad=True)
    for same in (seen.tolist(), seen[::-1].copy()[::-1], seen.astype(">f4"), torch.tensor(seen), grown, seen.astype(np.longdouble), tuple(torch.tensor(seen))):
        np.testing.assert_array_equal(policy.act(same), wanted)
    short = torch.tensor(seen).bfloat16()  # which NumPy does not know
    np.testing.assert_array_equal(policy.act(short), policy.act(short.float()))


@pytest.mark.parametrize("odd", [None, "x", ["a", "b"], [[1.0, 2.0], [3.0]], {1.0}, np.zeros(2, complex), np.array([None, 1.0])], ids=str)
def test_a_policy_takes_numbers_only(policy: Any, odd: Any) -> None:
    with pytest.raises(UserError, match=r"takes an observation (of numbers|of shape)"):
        policy.act(odd)


def test_a_masked_entry_of_an_observation_is_not_finite(policy: Any) -> None:
    seen = np.ma.masked_array(np.zeros(policy.shape.observation, np.int64), mask=np.arange(policy.shape.observation) == 1)
    with pytest.raises(UserError, match=r"is not finite \(entry 1 is nan\)"):
        policy.act(seen)


@pytest.mark.parametrize("odd", ["False", 0.0, [True], np.array([True, False]), {}, int], ids=str)
def test_switches_of_a_policy_are_truth_values(policy: Any, odd: Any) -> None:
    seen = np.zeros(policy.shape.observation, np.float32)
    for call, words in (
        (lambda: policy.act(seen, deterministic=odd), "^deterministic cannot be .*: use True or False"),
        (lambda: policy.predict(seen, deterministic=odd), "^deterministic cannot be .*: use True or False"),
        (lambda: load_policy("x", compile=odd), "^compile cannot be .*: use True or False"),
        (lambda: policy.act(seen, mode=odd), "^a policy cannot act in mode "), (lambda: policy.act(seen, on_nan=odd), "^on_nan must be "),
        (lambda: policy.act(seen, "stochastic", odd), r"^a policy draws from a torch\.Generator, not "),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            call()
    np.testing.assert_array_equal(policy.act(seen, deterministic=np.bool_(True)), policy.act(seen))


@pytest.mark.parametrize("odd", ["x", 3.5, [1], [True, False], [[True]], [[True], [True, False]], {}], ids=str)
def test_episodes_that_begin_are_truth_values_one_each(policy: Any, odd: Any) -> None:
    with pytest.raises(UserError, match="episode_start says which episodes begin, a truth value for each environment, not "):
        policy.predict(np.zeros(policy.shape.observation, np.float32), episode_start=odd)


def test_a_policy_refuses_what_contradicts_itself(policy: Any) -> None:
    seen = np.zeros(policy.shape.observation, np.float32)
    with pytest.raises(UserError, match="cannot act in mode 'greedy'"):
        policy.act(seen, "greedy")
    with pytest.raises(UserError, match="contradict each other"):
        policy.act(seen, "stochastic", deterministic=True)
    assert policy.act(seen, "explore", deterministic=False).shape == (policy.shape.action,)


@pytest.mark.parametrize(("word", "number"), [("20000", 20000), ("2e4", 20000), ("2.5E+3", 2500), ("20000.0", 20000), ("1_000", 1000), ("-3", -3)])
def test_whole_numbers_are_read_in_every_form(word: str, number: int) -> None:
    assert read_integer(word) == number


@pytest.mark.parametrize("word", ["2.5", "1e-3", "x", "", "e4", "1e", "0x10", "nan", "1e9999", "--3", "1.2.3"])
def test_what_is_no_whole_number(word: str) -> None:
    with pytest.raises(ValueError, match=r"not a whole number|invalid literal"):
        read_integer(word)


@pytest.mark.parametrize("word", ["9" * 5000, "-" + "9" * 5000, "1e400", str(10**30 + 1)], ids=lambda word: word[:9])
def test_whole_numbers_that_nothing_calculates_with_are_one_sentence(word: str) -> None:
    with pytest.raises(ValueError, match="is too large"):
        read_integer(word)
    number = -(10**5000) if word[0] == "-" else 10**5000
    with pytest.raises(UserError, match="seed cannot be an endless int: it is too large"):
        whole_number("seed", number)
    with pytest.raises(UserError, match="is neither a step nor best"):
        stored_learner(Path(), word if "e" not in word else number)
    assert whole_number("seed", 10**30) == read_integer(str(10**30)) == 10**30


NEITHER = [None, "x", 1.5, float("nan"), True, [1], {"a": 1}, np.array([1, 2]), object()]
"""no whole numbers"""


@pytest.mark.parametrize("name", ["num_envs", "seed", "processes", "needs_cost", "env_kwargs"])
@pytest.mark.parametrize("odd", ["x", 1.5, float("nan"), [1], {1: 1}, np.array([1, 2]), object()])
def test_a_batch_of_environments_takes_what_it_says(name: str, odd: Any) -> None:
    with pytest.raises(UserError, match=rf"^({name}|the arguments of an environment) ") as caught:
        EnvBatch(**{"env": "saddlepoint/Toy-v0", "num_envs": 2, "seed": 0, name: odd})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("odd", [*NEITHER, np.zeros((2, 1)), np.zeros((1, 2)), np.zeros((2, 2), bool)])
def test_a_batch_of_environments_steps_by_one_action_each(odd: Any) -> None:
    envs = EnvBatch("saddlepoint/Toy-v0", 2, seed=0)
    envs.reset()
    with pytest.raises(UserError, match=r"the actions of 2 environments must be an array of numbers of shape \(2, 2\), not"):
        envs.step(odd)
    if odd is not None:
        with pytest.raises(UserError, match=r"^seed "):
            envs.reset(odd)


@pytest.mark.parametrize("name", ["kwargs", "flatten", "action_repeat", "longest", "cut"])
@pytest.mark.parametrize("odd", ["x", 1.5, float("nan"), [1], {1: 1}, np.array([1, 2]), object()])
def test_how_environments_are_made_is_checked(name: str, odd: Any) -> None:
    with pytest.raises(UserError, match=rf"^({name}|the arguments of an environment) .*must be .* not ") as caught:
        EnvSetup("saddlepoint/Toy-v0", **{name: odd})
    assert "\n" not in str(caught.value)
    assert EnvSetup("saddlepoint/Toy-v0", longest=np.int64(3)).longest == 3  # type: ignore[arg-type]
