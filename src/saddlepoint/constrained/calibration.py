"""Do critics know what follows? Their predictions against what was measured afterwards, at the policy's own actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from saddlepoint.constrained.budget import CostBudget

BLIND = 0.3
"""correlation below which a cost critic that sees cost being paid is called blind"""


class Calibration(NamedTuple):
    """Means over all states, and how far prediction and measurement move together."""

    predicted: float
    measured: float
    correlation: float
    """Pearson's; NaN where either does not vary"""
    error_in_costly_states: float
    """mean of predicted - measured over the states in which something is paid at once; NaN where there are none"""


def calibration(predicted: np.ndarray, measured: np.ndarray, paid: np.ndarray | None = None) -> Calibration:
    """Of ``predicted`` values (states,) and the discounted sums ``measured`` to follow (states,). ``paid`` (states,) is what each state's own step paid.

    Without ``paid`` the costly states are those whose measured sum is at least its mean and not 0. Raises ``ValueError`` for arrays of other shapes.
    """
    predicted, measured = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    if predicted.ndim != 1 or predicted.shape != measured.shape or not len(predicted):
        raise ValueError(f"predicted and measured must be two vectors of one length, not {predicted.shape} and {measured.shape}")
    costly = (measured >= measured.mean()) & (measured != 0) if paid is None else np.asarray(paid) > 0
    spread = predicted.std() * measured.std()
    together = ((predicted - predicted.mean()) * (measured - measured.mean())).mean()
    correlation = float(together / spread) if spread > 1e-12 else float("nan")
    error = float((predicted - measured)[costly].mean()) if costly.any() else float("nan")
    return Calibration(float(predicted.mean()), float(measured.mean()), correlation, error)


def to_go(paid: np.ndarray, gamma: float, ended: np.ndarray) -> np.ndarray:
    """sum_{k>=0} gamma^k paid_{t+k} of each episode: ``paid`` and ``ended`` (steps, envs) -> (steps, envs). ``ended`` marks an episode's last step."""
    found, rest = np.zeros(paid.shape), np.zeros(paid.shape[1])
    for t in range(len(paid) - 1, -1, -1):
        rest = paid[t] + gamma * np.where(ended[t], 0.0, rest)
        found[t] = rest
    return found


def has_future(playing: np.ndarray, ended: np.ndarray, terminated: np.ndarray, gamma: float) -> np.ndarray:
    """Which states (steps, envs) have enough left of their episode, themselves included, to measure a discounted sum.

    Enough is 1/(1 - gamma) steps, or half of the episode where that is less. An episode that the task itself ended has nothing after it,
    so all of its states count.
    """
    steps = len(playing)
    left = np.zeros(playing.shape)
    after, whole = np.zeros(playing.shape[1]), np.zeros(playing.shape[1], bool)
    for t in range(steps - 1, -1, -1):
        after = np.where(ended[t], 1.0, after + 1)
        whole = np.where(ended[t], terminated[t], whole)
        left[t] = np.where(whole, np.inf, after)
    length = playing.sum(0)
    enough = np.minimum(1 / (1 - gamma) if gamma < 1 else np.inf, length / 2)
    return playing & (left >= enough)


def metrics(name: str, found: Calibration) -> dict[str, float]:
    """``<name>_predicted`` and so on; what is NaN is left out, because a log holds numbers."""
    return {f"{name}_{field}": value for field, value in found._asdict().items() if np.isfinite(value)}


def blindness(metrics: Mapping[str, float], budgets: Sequence[CostBudget], prefix: str) -> str | None:
    """One sentence where a cost critic of an evaluation does not see a cost of a quarter of its budget or more; ``prefix`` is that of the policy."""
    for i, budget in enumerate(budgets):
        start = f"{prefix}/calibration/cost" + (f"_{i}" if len(budgets) > 1 else "")
        if f"{start}_correlation" not in metrics:
            continue
        correlation, predicted, measured = (metrics[f"{start}_{name}"] for name in ("correlation", "predicted", "measured"))
        if measured > 0.25 * budget.critic and correlation < BLIND:
            which = f" of constraint {i + 1}, whose budget is {budget.limit:g}," if len(budgets) > 1 else ""
            return f"the cost critic{which} is blind: it says {predicted:.2g} where {measured:.2g} follows, correlation {correlation:.2f}"
    return None
