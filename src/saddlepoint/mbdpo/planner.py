"""Planning as denoising: the reverse process of a plan, its Monte-Carlo score, and MPPI beside it. Pure functions of given noise and values.

A plan is (batch, horizon, action) in [-1, 1]; proposals are (batch, proposals, horizon, action) and their values (batch, proposals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from saddlepoint.diffusion.schedule import Schedule

X = TypeVar("X", Tensor, float)

EPSILON = 1e-8  # the release's guard of the division by 1 - alpha_bar
LEAST_STD = 1e-4
"""values that differ by less are not stretched to unit deviation"""


def plan_weights(values: Tensor, temperature: float, elites: int) -> Tensor:
    """Softmax over the ``elites`` best of (G - mean)/std/temperature, 0 for the others. (..., proposals) -> (..., proposals).

    Mean and unbiased std are those of all proposals; a std below 1e-4 counts as 1, a value that is nan as 0. ``elites`` = 0 weighs all.
    """
    values = torch.where(values.isnan(), 0.0, values)
    std = values.std(-1, keepdim=True)
    logits = (values - values.mean(-1, keepdim=True)) / torch.where(std < LEAST_STD, 1.0, std) / temperature
    if 0 < elites < values.shape[-1]:
        best = logits.topk(elites, dim=-1)
        return torch.zeros_like(logits).scatter_(-1, best.indices, best.values.softmax(-1))
    return logits.softmax(-1)


def plan_mean(proposals: Tensor, values: Tensor, temperature: float, elites: int) -> Tensor:
    """a_bar: the mean proposal under ``plan_weights``. (..., proposals, horizon, action), (..., proposals) -> (..., horizon, action)."""
    return torch.einsum("...n,...nha->...ha", plan_weights(values, temperature, elites).to(proposals.dtype), proposals)


def plan_score(point: Tensor, proposals: Tensor, values: Tensor, alpha_bar: Tensor | float, temperature: float, elites: int) -> Tensor:
    """(sqrt(alpha_bar) * a_bar - x) / (1 - alpha_bar): the Monte-Carlo score at the noisy plan x = ``point``.  MBDPO, Eq. for the score.

    ``point`` (..., horizon, action), ``proposals`` (..., proposals, horizon, action), ``values`` (..., proposals), ``alpha_bar`` a number.
    """
    return score_of_mean(point, plan_mean(proposals, values, temperature, elites), alpha_bar)


def score_of_mean(point: X, mean: X, alpha_bar: Any) -> X:
    """(sqrt(alpha_bar) * mean - x) / (1 - alpha_bar): the score of a Gaussian noising of a plan known to be ``mean`` (Tweedie). Shape as ``point``."""
    return (alpha_bar**0.5 * mean - point) / (1 - alpha_bar + EPSILON)


def propose(point: Tensor, alpha_bar: Tensor | float, noise: Tensor) -> Tensor:
    """clip(x/sqrt(alpha_bar) + sqrt((1-alpha_bar)/alpha_bar) * noise, -1, 1): clean plans that the noisy plan may have come from.

    ``point`` (..., horizon, action), ``noise`` and result (..., proposals, horizon, action).
    """
    return (point.unsqueeze(-3) / alpha_bar**0.5 + ((1 - alpha_bar) / alpha_bar) ** 0.5 * noise).clamp(-1, 1)


def visited(steps: int, levels: int | None = None) -> list[int]:
    """The levels from the noisiest down to 1; only ``levels`` of them, evenly spread, when that is fewer. The cleanest, 0, is where the process ends."""
    everyone = list(range(steps - 1, 0, -1))
    if levels is None or levels >= len(everyone):
        return everyone
    return [everyone[round(i * (len(everyone) - 1) / max(levels - 1, 1))] for i in range(levels)]


def denoise(start: Tensor, schedule: Schedule, levels: Sequence[int], score: Callable[[Tensor, int], Tensor]) -> Tensor:
    """x <- (x + (1 - alpha_bar_tau) * score(x, tau)) * sqrt(alpha_bar_next / alpha_bar_tau) along ``levels``, ending at level 0, clipped to [-1, 1].

    ``start`` is the clean plan to begin from: the process starts at sqrt(alpha_bar_T) * start, without noise, as released. Between neighbouring levels
    the factor is 1/sqrt(alpha_tau).
    """
    alpha_bar = schedule.alpha_bar.tolist()
    x = alpha_bar[-1] ** 0.5 * start
    for tau, after in pairwise([*levels, 0]):
        x = denoising_step(x, score(x, tau), alpha_bar[tau], alpha_bar[after])
    return x.clamp(-1, 1)


def denoising_step(x: X, score: X, alpha_bar: float, after: float) -> X:
    """From the level with ``alpha_bar`` to that with ``after``; numbers or tensors of one shape."""
    return (x + (1 - alpha_bar) * score) * (after / alpha_bar) ** 0.5


def mppi(
    start: Tensor, noise: Tensor, complete: Callable[[Tensor, int], Tensor], value: Callable[[Tensor, int], Tensor],
    temperature: float, elites: int, std_range: tuple[float, float], choice: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Model-predictive path integral control as in TD-MPC2: Gaussian proposals refitted to their elites. Returns the mean plan and what to execute.

    ``start`` (batch, horizon, action) is the first mean, ``noise`` (iterations, batch, proposals, horizon, action); ``complete`` may replace some of the
    proposals, ``value`` values them (batch, proposals); both are given the iteration. The elites weigh exp(temperature * (value - best)).
    ``choice`` None executes the mean's first action. Else, (batch, 1 + action), its first column, uniform on [0, 1), draws an elite by its weight, and the
    others, standard normal, are noise of the last std.
    """
    least, most = std_range
    mean, std = start, torch.full_like(start, most)
    weights, best = start.new_ones(len(start), 1), start.unsqueeze(1)
    for i, draws in enumerate(noise):
        proposals = complete((mean.unsqueeze(1) + std.unsqueeze(1) * draws).clamp(-1, 1), i)
        values = value(proposals, i)
        top = torch.where(values.isnan(), 0.0, values).topk(elites or values.shape[1], dim=1)
        best = proposals.gather(1, top.indices[:, :, None, None].expand(-1, -1, *proposals.shape[2:]))
        weights = torch.softmax(temperature * top.values, dim=1).to(best.dtype)
        mean = torch.einsum("bn,bnha->bha", weights, best)
        spread = torch.einsum("bn,bnha->bha", weights, (best - mean.unsqueeze(1)).square())
        std = spread.sqrt().clamp(least, most)
    if choice is None:
        return mean, mean[:, 0]
    passed = weights.cumsum(1) < choice[:, :1]
    drawn = passed.sum(1).clamp(max=weights.shape[1] - 1)
    action = best[torch.arange(len(best), device=best.device), drawn, 0]
    return mean, (action + std[:, 0] * choice[:, 1:]).clamp(-1, 1)
