"""Numbers as two-hot codes over bins of symlog(x): regression as classification, whatever the scale (DreamerV3, TD-MPC2).

``low`` and ``high`` are the first and the last bin in symlog units; ``bins`` of them are evenly spaced.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) * log(1 + |x|), elementwise."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) * (exp|x| - 1), elementwise: the inverse of ``symlog``."""
    return x.sign() * x.abs().expm1()


def two_hot(x: Tensor, bins: int = 101, low: float = -10.0, high: float = 10.0) -> Tensor:
    """(...) or (..., 1) -> (..., bins): the weights of the two bins between which symlog(x), clipped to [low, high], lies.

    A last axis of one number is taken away where it is not the only axis.
    """
    x = x.squeeze(-1) if x.ndim > 1 and x.shape[-1] == 1 else x
    place = (symlog(x).clamp(low, high) - low) / ((high - low) / (bins - 1))
    lower = place.floor().clamp(max=bins - 2)  # x at the last bin is all of the last bin, not the first one's successor
    upper = (place - lower).unsqueeze(-1)
    index = lower.long().unsqueeze(-1)
    code = torch.zeros(*x.shape, bins, dtype=x.dtype, device=x.device)
    return code.scatter_(-1, index, 1 - upper).scatter_(-1, index + 1, upper)


def two_hot_inverse(logits: Tensor, low: float = -10.0, high: float = 10.0) -> Tensor:
    """symexp of the mean bin under softmax(logits): (..., bins) -> (..., 1)."""
    places = torch.linspace(low, high, logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return symexp(logits.softmax(-1) @ places).unsqueeze(-1)


def two_hot_loss(logits: Tensor, x: Tensor, low: float = -10.0, high: float = 10.0) -> Tensor:
    """Cross-entropy of ``logits`` (..., bins) against two_hot(x), ``x`` (...) -> (...). Two bins are looked up; no code is built."""
    bins = logits.shape[-1]
    place = (symlog(x).clamp(low, high) - low) / ((high - low) / (bins - 1))
    lower = place.floor().clamp(max=bins - 2)
    lower = torch.where(place.isnan(), 0.0, lower)  # an index; the weights below carry the nan into the loss
    pair = lower.long().unsqueeze(-1) + torch.arange(2, device=x.device)
    upper = place - lower
    chosen = F.log_softmax(logits, -1).gather(-1, pair.expand(*logits.shape[:-1], 2))
    return -((1 - upper) * chosen[..., 0] + upper * chosen[..., 1])
