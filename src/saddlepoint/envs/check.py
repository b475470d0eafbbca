"""Is this environment fit to learn from? One clear sentence for each fault, before any work starts."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from saddlepoint.envs.make import FlatObservation, open_env, require_spaces
from saddlepoint.envs.pixels import PixelObservation
from saddlepoint.foreign import foreign
from saddlepoint.types import EnvShape, UserError

_REPEATED = 20  # steps that are made twice to see whether a seed fixes the episode


class _Seen(NamedTuple):
    observation: np.ndarray
    reward: float
    cost: np.ndarray
    ended: bool


def check_env(
    env_or_id: gym.Env[Any, Any] | str, steps: int = 200, seed: int = 0, needs_cost: bool = True
) -> EnvShape:
    """The environment's shape, after a seeded rollout of ``steps`` random actions, with a reset wherever an episode
    ends and one at the end.

    Raises ``UserError`` at the first fault: spaces (see ``make.require_spaces``), a cost that is absent from ``info``
    at some step, not a number, not finite, negative or of changing length, a reward or observation that is not finite
    or not of the declared kind, ``terminated`` and ``truncated`` that are not two booleans, an error of its own. A seed that does not fix
    the episode is only warned about. ``env_or_id`` is left reset; one that was made here is closed. Unless
    ``needs_cost``, a cost may be absent, but then from every step: the shape has 0 constraints.
    """
    made = isinstance(env_or_id, str)
    env = open_env(env_or_id) if isinstance(env_or_id, str) else env_or_id
    env = env.env if isinstance(env, FlatObservation) else env  # judge what its author wrote
    name = env_or_id if isinstance(env_or_id, str) else _name(env)
    require_spaces(env, name)
    rng = np.random.default_rng(seed)
    space = env.action_space
    low, high = space.low, space.high  # type: ignore[attr-defined]
    actions = rng.uniform(low, high, (steps, *low.shape)).astype(space.dtype)

    first = _rollout(env, name, actions, seed, needs_cost)
    again = _rollout(env, name, actions[:_REPEATED], seed, needs_cost)
    if not all(_same(a, b) for a, b in zip(first, again)):
        warnings.warn(
            f"{name} does not repeat an episode when it is reset with the same seed: runs will not be reproducible.",
            stacklevel=2,
        )
    if made:
        env.close()
    else:
        env.reset(seed=seed)
    size = int(np.prod(env.observation_space.shape or ()))
    image = env.image if isinstance(env, PixelObservation) else None
    return EnvShape(size, tuple(low.tolist()), tuple(high.tolist()), len(first[0].cost), image)


def _rollout(
    env: gym.Env[Any, Any], name: str, actions: np.ndarray, seed: int, needs_cost: bool
) -> list[_Seen]:
    observation, _ = _reset(env, name, seed)
    _observation(env, name, observation, "at reset")
    seen: list[_Seen] = []
    for t, action in enumerate(actions):
        seen.append(foreign(name, _step, env, name, action, f"at step {t}", needs_cost))
        if len(seen[-1].cost) != len(seen[0].cost):
            raise UserError(
                f'{name} changes the length of info["cost"] from {len(seen[0].cost)} to {len(seen[-1].cost)} '
                f"at step {t}: give every constraint its own fixed place."
            )
        if seen[-1].ended:
            observation, _ = _reset(env, name, None)
            _observation(env, name, observation, f"at the reset after step {t}")
    return seen


def _reset(env: gym.Env[Any, Any], name: str, seed: int | None) -> tuple[Any, dict[str, Any]]:
    result = foreign(name, env.reset, seed=seed)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise UserError(f"{name} returns no (observation, info) from reset(): follow Gymnasium's API.")
    return result


def _step(env: gym.Env[Any, Any], name: str, action: np.ndarray, when: str, needs_cost: bool) -> _Seen:
    try:
        result = env.step(action)
    except ValueError:
        result = env.unwrapped.step(action)  # Gymnasium's time limit unpacks five values before they can be counted
        if len(result) == 5:
            raise
    if len(result) == 6:
        raise UserError(f"{name} returns six values from step(): wrap it in saddlepoint.envs.adapters.SafetyGymnasiumAdapter.")
    if len(result) != 5:
        raise UserError(
            f"{name} returns {len(result)} values from step(): return observation, reward, terminated, truncated, info."
        )
    observation, reward, terminated, truncated, info = result
    seen = _observation(env, name, observation, when)
    if not isinstance(reward, (int, float, np.floating, np.integer)):
        raise UserError(f"{name} returns a reward of type {type(reward).__name__} {when}: return a float.")
    if not np.isfinite(reward):
        raise UserError(f"{name} returns the reward {reward} {when}: rewards must be finite.")
    for flag, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, (bool, np.bool_)):
            raise UserError(
                f"{name} returns {flag} of type {type(value).__name__} {when}: "
                "return terminated and truncated as two booleans."
            )
    free = not needs_cost and isinstance(info, dict) and "cost" not in info
    cost = np.zeros(0) if free else _cost(name, info, when)
    return _Seen(seen, float(reward), cost, bool(terminated or truncated))


def _observation(env: gym.Env[Any, Any], name: str, observation: Any, when: str) -> np.ndarray:
    space = env.observation_space
    if not isinstance(observation, np.ndarray) or observation.dtype.kind not in "fiub":
        kind = observation.dtype if isinstance(observation, np.ndarray) else type(observation).__name__
        raise UserError(f"{name} returns an observation of type {kind} {when}: return a numpy array of numbers.")
    if observation.shape != space.shape:
        raise UserError(
            f"{name} returns an observation of shape {observation.shape} {when}, "
            f"but its observation space says {space.shape}."
        )
    if observation.dtype.kind != np.dtype(space.dtype).kind:
        raise UserError(
            f"{name} returns an observation of type {observation.dtype} {when}, "
            f"but its observation space says {space.dtype}."
        )
    if not np.isfinite(observation).all():
        raise UserError(f"{name} returns an observation that is not finite {when}: correct it in the environment.")
    return observation.copy()


def _cost(name: str, info: Any, when: str) -> np.ndarray:
    if not isinstance(info, dict) or "cost" not in info:
        raise UserError(
            f'{name} puts no "cost" into info {when}: '
            'put the cost of the step (a float >= 0, or one for each constraint) into info["cost"].'
        )
    try:
        cost = np.atleast_1d(np.asarray(info["cost"], np.float64))
    except (TypeError, ValueError) as error:
        raise UserError(f'{name} gives {info["cost"]!r} as info["cost"] {when}: a number is needed.') from error
    if cost.ndim != 1 or cost.size == 0:
        raise UserError(
            f'{name} gives info["cost"] of shape {cost.shape} {when}: '
            "give a float, or a vector of one for each constraint."
        )
    if not np.isfinite(cost).all():
        raise UserError(f"{name} gives the cost {info['cost']} {when}: costs must be finite.")
    if (cost < 0).any():
        raise UserError(
            f"{name} gives the cost {info['cost']} {when}: "
            "costs must not be negative, what is good belongs in the reward."
        )
    return cost


def _same(a: _Seen, b: _Seen) -> bool:
    return np.array_equal(a.observation, b.observation) and a.reward == b.reward and np.array_equal(a.cost, b.cost)


def _name(env: gym.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
