"""What is taken at first sight and what is read part by part: the same outcome and sentence for every answer."""

from __future__ import annotations

import random
import warnings
from collections import Counter, OrderedDict
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from saddlepoint.envs.answers import LARGEST
from saddlepoint.envs.guarded import Answer, GuardedEnv
from saddlepoint.types import ForeignFault, NonFiniteError

ANSWERS = 3000
"""for each space and number of constraints"""


class Fed(gym.Env):
    """Answers what it is given."""

    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, space: Box) -> None:
        self.observation_space, self.answer = space, None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action: np.ndarray) -> Any:
        return self.answer


class Sub(np.ndarray):
    """A subclass whose comparisons and sums of squares lie."""

    def __array_function__(self, *_: Any) -> float:  # type: ignore[override]
        return 0.0


class Float(float):
    pass


class Five(NamedTuple):
    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any


def observation(draw: random.Random, space: Box) -> Any:
    shape, dtype = space.shape, space.dtype
    good = np.random.default_rng(draw.randrange(2**32)).normal(size=shape).astype(dtype)
    kind = draw.randrange(26)
    if kind < 8:
        return good
    if kind < 12:
        good.flat[draw.randrange(good.size)] = draw.choice([np.nan, np.inf, -np.inf]) if dtype.kind == "f" else 1
        return good
    if kind < 15:
        with np.errstate(over="ignore"):
            huge = np.array(draw.choice([1e19, 2e19, 1e38, -3.4e38, LARGEST, 3.5e38, 1e300])).astype(dtype) if dtype.kind == "f" else 1
        good.flat[draw.randrange(good.size)] = huge
        return good
    frozen = good.copy()
    frozen.flags.writeable = False
    wide = np.repeat(good, 2, axis=-1)
    return [
        good.astype(draw.choice(["f2", "f4", "f8", "g", "i8", "u1", "?", "O", "U8", "c16"])),
        np.zeros(draw.choice([(), (1,), (2,), (4,), (1, 3), (3, 1), (0,)]), dtype),
        good.view(Sub) * draw.choice([1.0, np.nan]),
        np.ma.masked_array(good),
        frozen,
        wide[..., ::2],
        good[::-1],
        draw.choice([good.tolist(), tuple(good.tolist()), None, "0.5", 7.0, {}, b"abc"]),
        dtype.type(1),
        good.astype(good.dtype.newbyteorder()),
        good.astype(np.dtype(dtype, metadata={"unit": "m"})),
    ][kind - 15]


def number(draw: random.Random) -> Any:
    if draw.random() < 0.6:
        return draw.choice([1.0, 0.0, draw.uniform(0, 2), np.float64(0.5), np.float32(0.1)])
    return draw.choice([
        -0.0, -1.0, np.nan, np.inf, -np.inf, LARGEST, -LARGEST, 3.5e38, 1e300, np.float64(np.nan), np.float32(np.inf), np.float64(1e39),
        np.float64(-1.0), np.float16(2), np.longdouble(1), 1, -1, 10**400, True, np.True_, np.int64(3), np.array(1.0), np.array([1.0]),
        np.array([1.0, 2.0]), np.array([np.nan, 1.0]), np.array([0.5, -1.0]), np.array([]), np.array(["1"]), [1.0], [0.5, 0.5], (1.0,),
        "0.5", b"1", None, 1j, Decimal(1), Float(2.0), Float("nan"), {}, np.float32(3e38),
    ])  # fmt: skip


def flag(draw: random.Random) -> Any:
    if draw.random() < 0.8:
        return draw.random() < 0.5
    return draw.choice([np.True_, np.False_, 0, 1, None, "False", np.array(True), np.array([True]), 1.0])


def info(draw: random.Random) -> Any:
    held: dict[str, Any] = {"x": 1.0, "cost": number(draw)} if draw.random() < 0.9 else {"x": 1.0}
    if draw.random() < 0.3:
        held["success"] = draw.choice([1.0, True, None, "yes", np.float32(0.0), np.array([1.0]), [1, 2]])
    if draw.random() < 0.9:
        return held
    return draw.choice([OrderedDict(held), MappingProxyType(held), None, list(held), "info"])


def answer(draw: random.Random, space: Box) -> Any:
    five = (observation(draw, space), number(draw), flag(draw), flag(draw), info(draw))
    if draw.random() < 0.93:
        return five
    return draw.choice([list(five), Five(*five), five[:4], (*five, 1), None, iter(five), "12345", {}])


def outcome(env: GuardedEnv, given: Any) -> Any:
    env.env.answer = given  # type: ignore[attr-defined]
    try:
        got = env.step(np.zeros(2, np.float32))
    except (ForeignFault, NonFiniteError) as fault:
        return type(fault), str(fault)
    assert type(got) is Answer
    assert got.observation.flags.writeable
    assert not isinstance(given[0], np.ndarray) or not np.shares_memory(got.observation, given[0])
    parts = [got.observation.tobytes(), got.observation.dtype, got.observation.shape, type(got.observation), got.cost.tobytes(), got.cost.dtype, got.cost.shape]
    return [*parts, *map(repr, got[1:2] + got[3:])]


SPACES = [
    Box(-np.inf, np.inf, (3,), np.float64), Box(-np.inf, np.inf, (3,), np.float32), Box(-1.0, 1.0, (3,), np.float32),
    Box(-np.inf, np.inf, (2, 3), np.float64), Box(-np.inf, np.inf, (3,), np.float16), Box(0, 255, (3,), np.uint8),
]  # fmt: skip


def pair(space: Box, constraints: int | None) -> tuple[GuardedEnv, GuardedEnv]:
    """One that takes what is right at first sight, and one that reads every answer."""
    swift, exact = GuardedEnv(Fed(space), "fed"), GuardedEnv(Fed(space), "fed")
    exact._kind = None
    for env in (swift, exact):
        env.constraints, env.needs_cost = constraints, constraints != 0
        env.reset()
    return swift, exact


@pytest.mark.filterwarnings("ignore:fed gives info", "error::RuntimeWarning")
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_both_ways_give_the_same_outcome_and_sentence(space: Box) -> None:
    draw, taken = random.Random(0), Counter()
    for constraints in (1, 1, 2, 0, None):
        swift, exact = pair(space, constraints)
        for _ in range(ANSWERS // 5):
            given = answer(draw, space)
            found = outcome(swift, given)
            assert found == outcome(exact, given), given
            taken[found[0] if isinstance(found, tuple) else "taken"] += 1
            swift.constraints = exact.constraints = constraints
    assert min(taken["taken"], taken[ForeignFault], taken[NonFiniteError]) > ANSWERS // 100, taken


def test_a_first_sight_without_its_look_for_finite_numbers_is_caught() -> None:
    space = SPACES[0]
    swift, exact = pair(space, 1)
    swift._finite = b""  # type: ignore[assignment]  # nothing in which a zero could be
    draw = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert any(outcome(swift, given) != outcome(exact, given) for given in (answer(draw, space) for _ in range(ANSWERS)))


def test_what_is_right_is_taken_at_first_sight() -> None:
    for space in SPACES[:3]:
        env, _ = pair(space, 1)
        env._read = None  # type: ignore[assignment, method-assign]
        for reward in (1.0, np.float64(1.0), np.float32(1.0)):
            assert isinstance(outcome(env, (np.ones(3, space.dtype), reward, False, True, {"cost": reward})), list)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
def test_actions_are_fitted_as_by_clip_in_the_space_s_own_type(dtype: Any, given: Any) -> None:
    seen = []

    class Noted(Fed):
        action_space = Box(np.array([-0.1, 0.3]), np.array([0.1, 0.7]), dtype=dtype)

        def step(self, action: np.ndarray) -> Any:
            seen.append(action)
            return np.zeros(3), 0.0, False, False, {"cost": 0.0}

    env = GuardedEnv(Noted(SPACES[0]), "noted")
    env.reset()
    actions = np.random.default_rng(0).normal(size=(50, 2)).astype(given)
    for action in [*actions, np.array([0.1, 0.3], given), np.array([-0.1, 0.7], given)]:
        before = action.copy()
        env.step(action)
        space = Noted.action_space
        assert seen[-1].dtype == dtype
        assert space.contains(seen[-1])
        np.testing.assert_array_equal(seen[-1], np.clip(action.astype(dtype), space.low, space.high))
        np.testing.assert_array_equal(action, before)
        assert not np.shares_memory(seen[-1], action)
