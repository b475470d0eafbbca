"""Sums over episodes, kept while they run, and their statistics once they are whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from saddlepoint.constrained.budget import CostBudget


class Episodes(NamedTuple):
    """Whole episodes."""

    returns: np.ndarray  # (episodes,)
    costs: np.ndarray  # (episodes, constraints), undiscounted sums
    discounted_costs: np.ndarray  # (episodes, constraints)
    lengths: np.ndarray  # (episodes,)

    @classmethod
    def none(cls, constraints: int) -> Episodes:
        return cls(np.zeros(0), np.zeros((0, constraints)), np.zeros((0, constraints)), np.zeros(0))

    @classmethod
    def stored(cls, state: dict[str, Any], constraints: int) -> Episodes:
        """What ``_asdict`` gave. Raises ``ValueError``, ``KeyError`` or ``TypeError`` for anything else."""
        return cls(*(stored_like(state[name], part, np.shape(state["returns"])[:1]) for name, part in cls.none(constraints)._asdict().items()))

    def join(self, other: Episodes) -> Episodes:
        return Episodes(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def __len__(self) -> int:
        return len(self.returns)


def stored_like(found: Any, known: np.ndarray, rows: tuple[int, ...] | None = None) -> np.ndarray:
    """A copy of ``found``, an array as ``known``, of other ``rows`` where given. Raises ``ValueError`` for anything else."""
    shape = known.shape if rows is None else rows + known.shape[1:]
    if not isinstance(found, np.ndarray) or found.dtype != known.dtype or found.shape != shape:
        raise ValueError(f"{str(found)[:40]!r} instead of {known.dtype} of shape {shape}")
    return found.copy()


class EpisodeSums:
    """Running return, cost and length of every environment's current episode, in float64."""

    def __init__(self, num_envs: int, budgets: tuple[CostBudget, ...]) -> None:
        self._gamma = np.array([budget.gamma for budget in budgets])
        costs = np.zeros((num_envs, len(budgets)))
        self._running = Episodes(np.zeros(num_envs), costs, costs.copy(), np.zeros(num_envs))

    def add(self, reward: np.ndarray, cost: np.ndarray, ended: np.ndarray) -> Episodes:
        """One step: (envs,), (envs, constraints), (envs,) bool. Returns the episodes that it ended."""
        returns, costs, discounted, lengths = self._running
        returns += reward
        cost = cost[:, : costs.shape[1]]  # without budgets nobody asks for costs
        costs += cost
        discounted += self._gamma ** lengths[:, None] * cost
        lengths += 1
        finished = Episodes(*(sums[ended] for sums in self._running))
        self.restart(ended)
        return finished

    def restart(self, which: np.ndarray) -> None:
        """Forget the current episodes of these environments, (envs,) bool."""
        for sums in self._running:
            sums[which] = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {name: sums.copy() for name, sums in self._running._asdict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ``ValueError`` for what is not the sums of so many environments."""
        self._running = Episodes(*(stored_like(state[name], sums) for name, sums in self._running._asdict().items()))


def summarise(episodes: Episodes, budgets: tuple[CostBudget, ...], prefix: str) -> dict[str, float]:
    """Flat statistics of at least one episode: mean, std (over the episodes, not a sample's estimate), min and max.

    ``cost`` is the sum over constraints, with each constraint as ``cost_<i>`` beside it when there are several;
    ``violation_rate`` is the share of episodes over any budget, as the user stated it.
    """
    costs = {"cost": episodes.costs.sum(1)}
    discounted = {"discounted_cost": episodes.discounted_costs.sum(1)}
    if len(budgets) > 1:
        costs |= {f"cost_{i}": episodes.costs[:, i] for i in range(len(budgets))}
        discounted |= {f"discounted_cost_{i}": episodes.discounted_costs[:, i] for i in range(len(budgets))}
    over = np.zeros(len(episodes), bool)
    for i, budget in enumerate(budgets):
        over |= budget.violated(episodes.costs[:, i], episodes.discounted_costs[:, i])
    metrics: dict[str, float] = {}
    for name, values in ({"return": episodes.returns} | costs).items():
        metrics |= {
            f"{prefix}/{name}_mean": float(values.mean()), f"{prefix}/{name}_std": float(values.std()),
            f"{prefix}/{name}_min": float(values.min()), f"{prefix}/{name}_max": float(values.max()),
        }  # fmt: skip
    metrics |= {f"{prefix}/{name}_mean": float(values.mean()) for name, values in discounted.items()}
    metrics[f"{prefix}/violation_rate"] = float(over.mean())
    metrics[f"{prefix}/length_mean"] = float(episodes.lengths.mean())
    return metrics
