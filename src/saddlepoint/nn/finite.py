"""No step is taken with a number that is not finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from saddlepoint.types import NonFiniteError


def require_finite(update: int, losses: dict[str, Tensor], gradients: Iterable[tuple[str, Tensor | None]]) -> None:
    """One look at the sum of all, and at each only when that is odd. Raises ``NonFiniteError`` naming the first loss or gradient that is not finite."""
    named = [(name, gradient) for name, gradient in gradients if gradient is not None]
    norms = torch.stack(torch._foreach_norm([gradient for _, gradient in named])).sum()
    if bool(torch.isfinite(norms + sum(losses.values()))):
        return
    found = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
    found += [f"the gradient of {name}" for name, gradient in named if not bool(torch.isfinite(gradient).all())]
    if found:
        raise NonFiniteError(
            f"{found[0]} is not finite at update {update}: lower the learning rates, or look at the environment's rewards and costs."
        )
