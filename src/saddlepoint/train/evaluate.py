"""Honest evaluation: separate seeded environments, whole episodes, the noise-free and the stochastic policy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.train.episodes import Episodes, EpisodeSums, summarise
from saddlepoint.types import ActMode, NonFiniteError, Policy, UserError

MAX_ENVS = 10
PREFIXES: dict[ActMode, str] = {"deterministic": "eval", "stochastic": "eval/stochastic"}


def evaluate(
    policy: Policy, env: str, budgets: tuple[CostBudget, ...], episodes: int, seed: int,
    device: torch.device | str = "cpu", stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """``episodes`` whole episodes of the noise-free (``eval/``) and of the stochastic policy (``eval/stochastic/``).

    The environments and the generator are made here from ``seed`` and nothing else is touched, so the result depends
    on the policy and the arguments only, and training goes on as if there had been no evaluation. Both policies meet
    the same starts. Metrics are those of ``summarise`` and ``eval/episodes``. Returns None when ``stop`` asked to
    leave early.

    Raises ``UserError`` for fewer than one episode, ``NonFiniteError`` for a value that is not finite.
    """
    if episodes < 1:
        raise UserError(f"an evaluation needs at least one episode, not {episodes}: raise --episodes.")
    metrics: dict[str, float] = {}
    for mode, prefix in PREFIXES.items():
        finished = run_episodes(policy, env, budgets, episodes, seed, mode, device, stop)
        if finished is None:
            return None
        metrics |= summarise(finished, budgets, prefix)
    return metrics | {"eval/episodes": float(episodes)}


def run_episodes(
    policy: Policy, env: str, budgets: tuple[CostBudget, ...], episodes: int, seed: int, mode: ActMode,
    device: torch.device | str = "cpu", stop: Callable[[], bool] = lambda: False,
) -> Episodes | None:
    """``episodes`` whole episodes, at most ``MAX_ENVS`` side by side; None when ``stop`` asked to leave early.

    Each environment plays one episode a wave, so that short episodes are not counted more often than long ones.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    slots = min(episodes, MAX_ENVS)
    finished = Episodes.none(len(budgets))
    envs = EnvBatch(env, slots, seed=seed)
    try:
        for first in range(0, episodes, slots):
            observation = envs.reset(seed + first)
            sums = EpisodeSums(slots, budgets)
            playing = np.arange(slots) < episodes - first
            while playing.any():
                if stop():
                    return None
                with torch.no_grad():
                    action = policy.act(torch.as_tensor(observation, device=device), mode, generator).cpu().numpy()
                require_finite_action(action)
                step = envs.step(action)
                ended = (step.terminated | step.truncated) & playing
                finished = finished.join(sums.add(step.reward, step.cost, ended))
                playing &= ~ended
                observation = step.observation
    finally:
        envs.close()
    return finished


def require_finite_action(action: np.ndarray) -> None:
    """Raises ``NonFiniteError`` when the policy gave an action (envs, action) that is not finite."""
    if not np.isfinite(action).all():
        raise NonFiniteError("the policy gave an action that is not finite: lower the learning rates.")
