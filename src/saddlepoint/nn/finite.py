"""No step is taken with a number that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from saddlepoint.types import NonFiniteError


def require_finite(update: int, losses: dict[str, Tensor], total: Tensor, named: Iterable[tuple[str, Tensor | None]]) -> None:
    """One look at the losses and ``total``, 0-d, a sum that is finite only if all gradients are, and at each only when that is odd. Raises ``NonFiniteError``
    naming the first loss, or gradient of ``named``, that is not finite."""
    if math.isfinite(torch.stack([total, *losses.values()]).sum()):
        return
    found = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
    found += [f"the gradient of {name}" for name, gradient in named if gradient is not None and not bool(torch.isfinite(gradient).all())]
    if found:
        raise NonFiniteError(
            f"{found[0]} is not finite at update {update}: lower the learning rates, or look at the environment's rewards and costs."
        )
