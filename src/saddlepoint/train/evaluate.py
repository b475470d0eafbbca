"""Honest evaluation: separate seeded environments, whole episodes, the noise-free and the stochastic policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.train.acting import Actor
from saddlepoint.train.episodes import Episodes, EpisodeSums, summarise
from saddlepoint.types import ActMode, NonFiniteError, Policy, UserError

MAX_ENVS = 10
PREFIXES: dict[ActMode, str] = {"deterministic": "eval", "stochastic": "eval/stochastic"}


def evaluate(
    policy: Policy, env: str, budgets: tuple[CostBudget, ...], episodes: int, seed: int,
    device: torch.device | str = "cpu", stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:  # fmt: skip
    """``episodes`` whole episodes of the noise-free (``eval/``) and of the stochastic policy (``eval/stochastic/``).

    The environments and the generator are made here from ``seed`` and nothing else is touched, so the result depends
    on the policy and the arguments only, and training goes on as if there had been no evaluation. Both policies meet
    the same starts. Metrics are those of ``summarise``, ``success_rate`` where the task reports a success (the share of
    episodes whose last step has it, as TD-MPC2 counts), and ``eval/episodes``. Returns None when ``stop`` asked to leave early.

    Raises ``UserError`` for fewer than one episode, ``NonFiniteError`` for a value that is not finite.
    """
    if episodes < 1:
        raise UserError(f"an evaluation needs at least one episode, not {episodes}: raise --episodes.")
    metrics: dict[str, float] = {}
    envs = EnvBatch(env, min(episodes, MAX_ENVS), seed=seed, needs_cost=bool(budgets))
    try:
        for mode, prefix in PREFIXES.items():
            generator = torch.Generator(device=device).manual_seed(seed)
            played = run_episodes(policy, envs, budgets, episodes, seed, mode, generator, stop)
            if played is None:
                return None
            metrics |= summarise(played.episodes, budgets, prefix)
            if not np.isnan(played.success).any():
                metrics[f"{prefix}/success_rate"] = float(played.success.mean())
    finally:
        envs.close()
    return metrics | {"eval/episodes": float(episodes)}


class Played(NamedTuple):
    """Whole episodes of an evaluation."""

    episodes: Episodes
    success: np.ndarray  # (episodes,) at the last step; NaN where the task says nothing of it


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
            step = envs.step(action)
            actor.restart(step.terminated | step.truncated)
            ended = (step.terminated | step.truncated) & playing
            finished = finished.join(sums.add(step.reward, step.cost, ended))
            success.append(step.success[ended])
            playing &= ~ended
            observation = step.observation
    return Played(finished, np.concatenate(success))


def require_finite_action(action: np.ndarray) -> None:
    """Raises ``NonFiniteError`` when the policy gave an action (envs, action) that is not finite."""
    if not np.isfinite(action).all():
        raise NonFiniteError("the policy gave an action that is not finite: lower the learning rates.")
