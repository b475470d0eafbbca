"""Honest evaluation: separate seeded environments, whole episodes, the noise-free and the stochastic policy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.envs.guarded import GuardedEnv
from saddlepoint.envs.tasks import env_spec
from saddlepoint.options import require_episodes, require_seed, several
from saddlepoint.train.acting import Actor
from saddlepoint.train.episodes import Episodes, EpisodeSums, summarise
from saddlepoint.train.foresight import Foresees, Foresight
from saddlepoint.types import ActMode, EnvSetup, NonFiniteError, NotMade, Policy, TakesArrays, UserError

MAX_ENVS = 10
UNLIMITED = 10_000
"""steps after which an episode is cut where neither a time limit nor a budget says how long it is"""
PREFIXES: dict[ActMode, str] = {"deterministic": "eval", "stochastic": "eval/stochastic"}


def evaluate(
    policy: Policy, env: str | Callable[..., Any] | EnvSetup, budgets: tuple[CostBudget, ...], episodes: int, seed: int,
    device: torch.device | str = "cpu", stop: Callable[[], bool] = lambda: False, envs: int = MAX_ENVS,
) -> dict[str, float] | None:  # fmt: skip
    """``episodes`` whole episodes of the noise-free (``eval/``) and of the stochastic policy (``eval/stochastic/``).

    At most ``envs`` are played side by side; one after the other, with a warning, where the environment cannot be made
    so often. Without a time limit they are cut as ``longest_episode`` says. The environments and the generator are made
    here from ``seed`` and nothing else is touched, so the result depends on the policy and the arguments only, and
    training goes on as if there had been no evaluation. Both policies meet the same starts. Metrics are those of
    ``summarise``, ``success_rate`` where the task reports a success (the share of episodes whose last step has it, as
    TD-MPC2 counts), and ``eval/episodes``. Returns None when ``stop`` asked to leave early.

    Raises ``UserError`` for wrong arguments, ``NonFiniteError`` for a value that is not finite.
    """
    episodes, seed = require_episodes(episodes, name="episodes"), require_seed(seed, "seed")
    if not hasattr(policy, "act") or isinstance(policy, TakesArrays):
        raise UserError(f"evaluate takes a learner first, not {type(policy).__name__}: give load_policy(run).learner, for example.")
    budgets = several("budgets", budgets, CostBudget, "CostBudget(25)")
    setup = EnvSetup.of(env)
    setup = replace(setup, longest=setup.longest or longest_episode(budgets))
    batch = open_for_episodes(setup, min(episodes, envs), seed, bool(budgets))
    try:
        return evaluate_in(batch, policy, budgets, episodes, seed, device, stop)
    finally:
        batch.close()


def evaluate_in(
    envs: EnvBatch, policy: Policy, budgets: tuple[CostBudget, ...], episodes: int, seed: int,
    device: torch.device | str = "cpu", stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:  # fmt: skip
    """``evaluate`` in environments that are there already, and stay open: their own episodes are given up."""
    metrics: dict[str, float] = {}
    for mode, prefix in PREFIXES.items():
        generator = torch.Generator(device=device).manual_seed(seed)
        played = run_episodes(policy, envs, budgets, episodes, seed, mode, generator, stop)
        if played is None:
            return None
        metrics |= summarise(played.episodes, budgets, prefix)
        if played.foresight is not None:
            metrics |= played.foresight.metrics(prefix)
        if not np.isnan(played.success).any():
            metrics[f"{prefix}/success_rate"] = float(played.success.mean())
    return metrics | {"eval/episodes": float(episodes)}


def longest_episode(budgets: tuple[CostBudget, ...]) -> int:
    """Steps after which an episode without a time limit is cut: the longest horizon of the budgets."""
    horizons = [budget.horizon for budget in budgets if isinstance(budget, CostBudget)]  # others are refused later
    return max((horizon for horizon in horizons if horizon is not None), default=UNLIMITED)


def require_second(setup: EnvSetup) -> None:
    """Raises ``UserError`` where the environment cannot be made while another is open, as an evaluation does."""
    if env_spec(setup).source == "saddlepoint":
        return
    try:
        GuardedEnv.open(setup).close()
    except NotMade as error:
        raise UserError(
            f"{str(error).rstrip('.')}, while the one that it trains in is open, and an evaluation has its own: give"
            " --eval-envs 0 to evaluate in the training environments, or change the environment."
        ) from error


def open_for_episodes(setup: EnvSetup, count: int, seed: int, needs_cost: bool) -> EnvBatch:
    """``count`` environments, or with a warning one where the environment cannot be made so often."""
    try:
        return EnvBatch(setup, count, seed=seed, needs_cost=needs_cost)
    except NotMade as error:
        if count == 1:
            raise
        try:
            single = EnvBatch(setup, 1, seed=seed, needs_cost=needs_cost)
        except UserError:
            raise error from None
        warnings.warn(
            f"{setup.name} cannot be made {count} times: its episodes are played one after the other; --eval-envs 1"
            f" says so from the start ({error})",
            stacklevel=3,
        )
        return single


class Played(NamedTuple):
    """Whole episodes of an evaluation."""

    episodes: Episodes
    success: np.ndarray  # (episodes,) at the last step; NaN where the task says nothing of it
    foresight: Foresight | None = None  # of a learner that says what it expects


def run_episodes(
    policy: Policy, envs: EnvBatch, budgets: tuple[CostBudget, ...], episodes: int, seed: int, mode: ActMode,
    generator: torch.Generator, stop: Callable[[], bool] = lambda: False,
) -> Played | None:  # fmt: skip
    """``episodes`` whole episodes, side by side in ``envs``; None when ``stop`` asked to leave early.

    Each environment plays one episode, then all are seeded anew for the next wave: short episodes do not count more
    often than long ones. The policy acts on the device of ``generator``.
    """
    slots = envs.num_envs
    finished, success = Episodes.none(len(budgets)), [np.zeros(0, np.float32)]
    actor = Actor(policy, slots, generator.device)
    foresight = Foresight(policy, budgets, generator.device) if isinstance(policy, Foresees) else None
    for first in range(0, episodes, slots):
        observation = envs.reset(seed + first)
        actor.restart()
        sums = EpisodeSums(slots, budgets)
        playing = np.arange(slots) < episodes - first
        while playing.any():
            if stop():
                return None
            action = actor.act(observation, mode, generator)
            require_finite_action(action)
            expected = None if foresight is None else foresight.expect(observation, action)
            step = envs.step(action)
            if foresight is not None and expected is not None:
                foresight.add(expected, step, playing)
            actor.follow(step.cost, step.terminated | step.truncated)
            ended = (step.terminated | step.truncated) & playing
            finished = finished.join(sums.add(step.reward, step.cost, ended))
            success.append(step.success[ended])
            playing &= ~ended
            observation = step.observation
        if foresight is not None:
            foresight.end_wave()
    return Played(finished, np.concatenate(success), foresight)


def require_finite_action(action: np.ndarray) -> None:
    """Raises ``NonFiniteError`` when the policy gave an action (envs, action) that is not finite."""
    if not np.isfinite(action).all():
        raise NonFiniteError("the policy gave an action that is not finite: lower the learning rates.")
