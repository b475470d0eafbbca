"""No step is taken with a number that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from saddlepoint.types import NonFiniteError


def require_finite(update: int, losses: dict[str, Tensor], gradients: list[Tensor], named: Iterable[tuple[str, Tensor | None]]) -> None:
    """One look at the sum of the losses and the gradients' norms, and only when that is odd one at each. Raises ``NonFiniteError`` naming the first loss, or
    of the same gradients ``named``, that is not finite."""
    norms = torch._foreach_norm(gradients)
    if math.isfinite(torch.stack([*norms, *losses.values()]).sum()):
        return
    found = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
    found += [f"the gradient of {name}" for name, gradient in named if gradient is not None and not bool(torch.isfinite(gradient).all())]
    if found:
        raise NonFiniteError(
            f"{found[0]} is not finite at update {update}: lower the learning rates, or look at the environment's rewards and costs."
        )
