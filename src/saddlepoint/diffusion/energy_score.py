"""Monte-Carlo score of exp(-energy / beta) after Gaussian noising: gradient form and mean form of one estimate.

For a_tau = alpha * a_0 + sigma * eps and p(a_0) ~ exp(-E(a_0)/beta), with proposals a_i = (a_tau + sigma * eps_i) / alpha and
self-normalised weights w = softmax_i(-E(a_i)/beta):

    gradient   phi = -(1/(alpha beta)) sum_i w_i grad E(a_i)          ALGD's form (arXiv 2602.02924)
    mean       phi = (alpha sum_i w_i a_i - a_tau) / sigma^2          MBDPO's form (arXiv 2605.26282), no gradient needed

Both tend to grad log p_tau(a_tau) as the number of proposals grows (they differ by an integration by parts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

ScoreForm = Literal["gradient", "mean"]


def _column(value: Tensor | float, point: Tensor) -> Tensor:
    """A number, (batch,) or (batch, 1), as something that broadcasts against (..., batch, dim)."""
    value = torch.as_tensor(value, dtype=point.dtype, device=point.device)
    return value.unsqueeze(-1) if value.ndim == 1 else value


def propose(point: Tensor, alpha: Tensor | float, sigma: Tensor | float, noise: Tensor) -> Tensor:
    """(point + sigma * noise) / alpha: where the clean sample may have been. point (batch, dim), noise (proposals, batch, dim)."""
    return (point + _column(sigma, point) * noise) / _column(alpha, point)


def energy_weights(values: Tensor, beta: Tensor | float) -> Tensor:
    """softmax over proposals of -E/beta. (proposals, batch) -> (proposals, batch)."""
    return torch.softmax(-values / beta, dim=0)


def energy_score(
    energy: Callable[[Tensor], Tensor],
    point: Tensor,
    alpha: Tensor | float,
    sigma: Tensor | float,
    noise: Tensor,
    beta: Tensor | float,
    form: ScoreForm = "gradient",
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """Score of the noised distribution at ``point`` (batch, dim), with no gradient attached.

    ``energy`` maps (proposals, batch, dim) to (proposals, batch); ``alpha``, ``sigma`` are numbers or (batch,); ``noise`` is standard normal
    (proposals, batch, dim). ``low``/``high`` (dim,), if given, clip the proposals to a box before the energy sees them: outside the
    action bounds a critic was never trained. Raises ``ValueError`` for an unknown form.
    """
    if form not in ("gradient", "mean"):
        raise ValueError(f"form must be 'gradient' or 'mean', not {form!r}")
    point = point.detach()
    proposals = propose(point, alpha, sigma, noise)
    if low is not None or high is not None:
        proposals = proposals.clamp(min=low, max=high)
    if form == "mean":
        with torch.no_grad():
            weights = energy_weights(energy(proposals), beta).unsqueeze(-1)
        return (_column(alpha, point) * (weights * proposals).sum(0) - point) / _column(sigma, point).square()
    with torch.enable_grad():
        values = energy(proposals.requires_grad_())
        weights = energy_weights(values.detach(), beta)
        # A weight below the rounding error of the sum needs no gradient; native critics skip its row.
        upstream = weights * (weights > torch.finfo(weights.dtype).eps)
        (weighted,) = torch.autograd.grad(values, proposals, upstream)
    return -weighted.sum(0) / (beta * _column(alpha, point))
