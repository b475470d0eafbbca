"""Which states of a task to look at: those that the policy meets in whole episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.landscape import excess
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.train.evaluate import longest_episode, require_finite_action
from saddlepoint.types import EnvSetup

EPISODES = 4
FRACTIONS = (1 / 2, 1 / 4, 3 / 4, 1 / 8, 3 / 8, 5 / 8, 7 / 8)
MOST = 2 + len(FRACTIONS)
"""the largest number of states that can be chosen"""


@dataclass(frozen=True)
class ChosenState:
    """A state that the policy met."""

    title: str
    episode: int
    step: int
    """steps after the start of its episode"""
    observation: np.ndarray  # (observation,)
    excess: float
    """max_c R_c - h_c of the noise-free action there"""


def choose_states(
    agent: ALGD, env: str | EnvSetup, count: int, seed: int, see: Callable[[Tensor], Tensor] | None = None
) -> list[ChosenState]:
    """``count`` <= ``MOST`` states of ``EPISODES`` stochastic episodes, in the order in which they are met in one.

    The one whose noise-free action has the largest risk of all; of the first episode the start, the middle, then
    its quarters and eighths. Fewer where an episode is too short to have as many.
    """
    episodes = play(agent, env, seed, see)
    over = []
    for observations in episodes:
        state = torch.as_tensor(observations, device=agent.device, dtype=agent.dtype)
        action = agent.act(state, "deterministic", torch.Generator(agent.device).manual_seed(seed))
        over.append(excess(agent, state, action).cpu().numpy())
    worst = max(range(len(episodes)), key=lambda episode: over[episode].max())
    length = len(episodes[0])
    wanted = [("largest risk", worst, int(over[worst].argmax())), ("start", 0, 0)]
    wanted += [(_name(fraction), 0, int(fraction * length)) for fraction in FRACTIONS]
    chosen: dict[tuple[int, int], ChosenState] = {}
    for title, episode, step in wanted:
        if len(chosen) < count and (episode, step) not in chosen:
            chosen[episode, step] = ChosenState(
                title, episode, step, episodes[episode][step], float(over[episode][step])
            )
    return sorted(chosen.values(), key=lambda state: (state.step, state.episode))


def play(
    agent: ALGD, env: str | EnvSetup, seed: int, see: Callable[[Tensor], Tensor] | None = None
) -> list[np.ndarray]:
    """The observations of ``EPISODES`` whole episodes of the stochastic policy, each (steps, observation), as the agent
    sees them: ``see`` normalises them, where it does so.
    """
    setup = EnvSetup.of(env)
    envs = EnvBatch(replace(setup, longest=setup.longest or longest_episode(agent.budgets)), EPISODES, seed=seed)
    generator = torch.Generator(agent.device).manual_seed(seed)
    met: list[list[np.ndarray]] = [[] for _ in range(EPISODES)]
    playing = np.ones(EPISODES, bool)
    try:
        observation = envs.reset()
        while playing.any():
            seen = torch.as_tensor(observation)
            seen = seen if see is None else see(seen)
            for i in np.flatnonzero(playing):
                met[i].append(seen[i].numpy())
            action = agent.act(seen, "stochastic", generator).cpu().numpy()
            require_finite_action(action)
            step = envs.step(action)
            observation, playing = step.observation, playing & ~(step.terminated | step.truncated)
    finally:
        envs.close()
    return [np.stack(observations) for observations in met]


def _name(fraction: float) -> str:
    return "middle" if fraction == 0.5 else f"{100 * fraction:g} % of an episode"
