"""Is this environment fit to learn from? One clear sentence for each fault, before any work starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from saddlepoint.envs.guarded import GuardedEnv
from saddlepoint.envs.snapshot import RUNNING
from saddlepoint.foreign import foreign
from saddlepoint.options import require_seed, truth_value, whole_number
from saddlepoint.types import EnvSetup, EnvShape, ForeignFault

STEPS = 220
REPEATED = 100
"""of them at most so many repeat the first ones, to see whether a seed fixes an episode and the start of the next"""
LARGEST_SEED = 2**32 - 1
"""a word of ``numpy.random.SeedSequence``, from which every environment's seed is drawn"""


class Seen(NamedTuple):
    """A step of the check, or with None a reset."""

    observation: np.ndarray
    reward: float | None
    cost: np.ndarray | None


def check_env(
    env_or_id: gym.Env[Any, Any] | str | Callable[..., Any] | EnvSetup, steps: int = STEPS, seed: int = 0,
    needs_cost: bool = True,
) -> EnvShape:  # fmt: skip
    """The environment's shape, after ``steps`` random actions from a seeded reset, with a reset wherever an episode
    ends and one at the end; the last of them repeat the first episode.

    Raises ``UserError`` at the first fault: spaces (see ``make.require_spaces``), a cost that is absent from ``info``
    at some step, not a number, not finite, negative or of changing length, a reward or observation that is not finite
    or not of the declared kind, ``terminated`` and ``truncated`` that are not two booleans, an error of its own, also
    at a reset with the largest seed of 32 bits. A seed that fixes not the episode, or not the reset after it, is only
    warned about, and so are wrappers whose learnt statistics no evaluation has. ``env_or_id`` is left reset; one that
    was made here is closed. Unless ``needs_cost``, a cost may be absent, but then from every step: the shape has 0
    constraints.
    """
    steps, seed, needs_cost = whole_number("steps", steps, 1), require_seed(seed, "seed"), truth_value("needs_cost", needs_cost)
    if isinstance(env_or_id, gym.Env):
        env = GuardedEnv(env_or_id, _name(env_or_id))
        return check_guarded(env, needs_cost, steps, seed)
    env = GuardedEnv.open(EnvSetup.of(env_or_id))
    try:
        return check_guarded(env, needs_cost, steps, seed)
    finally:
        env.close()


def check_guarded(env: GuardedEnv, needs_cost: bool, steps: int = STEPS, seed: int = 0) -> EnvShape:
    """``check_env`` of an environment that is open. It is left reset, and knows its constraints."""
    space = env.env.action_space
    low, high = (bound.astype(np.float64) for bound in (space.low, space.high))  # type: ignore[attr-defined]
    steps = max(1, steps // env.action_repeat)
    repeated = max(1, min(REPEATED // env.action_repeat, steps // 2))
    actions = np.random.default_rng(seed).uniform(low, high, (steps, *low.shape)).astype(np.float32)
    env.needs_cost, env.constraints = needs_cost, None
    first: list[Seen] = []
    taken = 0
    for seen in _rollout(env, actions, seed):
        first.append(seen)
        taken += seen.reward is not None
        if seen.reward is None and taken:
            repeated = min(repeated, taken)
        if taken >= max(1, steps - repeated):
            break
    if learnt := learnt_wrappers(env.env):
        warnings.warn(f"{env.name} {_learnt(learnt)}", stacklevel=2)
    else:
        again = list(_rollout(env, actions[:repeated], seed, one_episode=True))
        alike = all(_same(a, b) for a, b in zip(first, again))
        if not alike or not (again[-1].reward is None or _restarts_alike(env, seed)):
            warnings.warn(
                f"{env.name} does not repeat its episodes when it is reset with the same seed: runs will not be"
                " reproducible; draw from self.np_random alone, and pass reset's seed on as it is, None included.",
                stacklevel=2,
            )
    cost = first[1].cost
    assert cost is not None
    env.constraints = len(cost)
    _require_large_seeds(env)
    env.reset(seed)
    return env.shape


def learnt_wrappers(env: gym.Env[Any, Any]) -> list[str]:
    """The wrappers round ``env`` that hold running statistics, such as Gymnasium's NormalizeObservation."""
    found, layer = [], env
    while isinstance(layer, gym.Wrapper):
        if any(type(value).__name__ == RUNNING for value in vars(layer).values()):
            found.append(type(layer).__name__)
        layer = layer.env
    return found


def _learnt(wrappers: list[str]) -> str:
    instead = (
        "leave it out and give --normalise-observations, whose statistics the run keeps"
        if "NormalizeObservation" in wrappers
        else "leave it out"
    )
    return (
        f"is wrapped in {' and '.join(wrappers)}, which learns statistics in each environment by itself: evaluation,"
        f" video and an exported policy begin without them, so their numbers are not those of training; {instead}."
    )


def _rollout(env: GuardedEnv, actions: np.ndarray, seed: int, one_episode: bool = False) -> Iterator[Seen]:
    """The steps of ``actions`` and the resets between them; with ``one_episode`` up to the second reset."""
    yield Seen(env.reset(seed), None, None)
    constraints: int | None = None
    for action in actions:
        answer = env.step(action)
        if constraints == 0 and len(answer.cost):
            raise ForeignFault(
                f'{env.name} changes the length of info["cost"] from 0 to {len(answer.cost)} at step {env.age} of its'
                " episode: give every constraint its own fixed place."
            )
        constraints = len(answer.cost)
        yield Seen(answer.observation, answer.reward, answer.cost)
        if answer.ended:
            yield Seen(env.reset(), None, None)
            if one_episode:
                return


def _restarts_alike(env: GuardedEnv, seed: int) -> bool:
    """Whether the episode after a seeded one begins alike twice; for episodes longer than what was repeated."""
    starts = []
    for _ in range(2):
        env.reset(seed)
        starts.append(env.reset())
    first, second = starts
    return bool(np.array_equal(first, second))


def _require_large_seeds(env: GuardedEnv) -> None:
    """Raises ``ForeignFault`` where ``env`` cannot be reset with the largest seed that ``EnvBatch`` may draw."""
    try:
        env.reset(LARGEST_SEED)
    except ForeignFault as fault:
        raise ForeignFault(
            f"{str(fault).rstrip('.')}; it was reset with the seed {LARGEST_SEED}: runs draw seeds of 32 bits, so take"
            " any of them, such as seed % 2**31 where the simulator needs smaller ones."
        ) from fault


def _same(a: Seen, b: Seen) -> bool:
    costs = a.cost is b.cost if a.cost is None or b.cost is None else np.array_equal(a.cost, b.cost)
    return np.array_equal(a.observation, b.observation) and a.reward == b.reward and costs


def _name(env: gym.Env[Any, Any]) -> str:
    spec = foreign("the environment", lambda: env.spec)
    return spec.id if spec is not None else type(env.unwrapped).__name__
