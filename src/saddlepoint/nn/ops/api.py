"""The operations, and the choice of a backend for each call."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saddlepoint.nn.native import promises
from saddlepoint.nn.ops import reference
from saddlepoint.nn.ops.types import ChainWeights, EnsembleWeights, ReverseTable


def ensemble_mlp(net: EnsembleWeights, state: Tensor, action: Tensor) -> Tensor:
    """Q_m(s, a) of every member: (batch, state), (proposals, batch, action) -> (members, proposals, batch).

    Differentiable in the weights, the biases and the action; the state gets no gradient.
    """
    return reference.ensemble_mlp(net, state, action)


def ensemble_mse(net: EnsembleWeights, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
    """scale * sum over members and batch of (Q_m(s, a) - target_m)^2, 0-d.

    (batch, state), (batch, action); ``target`` (members, batch), or (batch,) for all members. Differentiable in the weights and the biases only.
    """
    return reference.ensemble_mse(net, state, action, target, scale)


def denoising_chain(net: ChainWeights, start: Tensor, noise: Tensor | None, table: ReverseTable) -> Tensor:
    """All latents (steps + 1, batch, action) of a reverse chain from ``start`` (batch, action), which is row ``steps``; row 0 is the sample.

    ``noise`` (steps, batch, action) is standard normal, row k for step k; None runs the chain at its means. Differentiable in every tensor of ``net``.
    """
    return reference.denoising_chain(net, start, noise, table)


Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(precision: Precision) -> torch.dtype | None:
    """The type of the products that a config asks for; None: that of the inputs."""
    return torch.bfloat16 if precision == "bfloat16" else None


def native_wins(*widths: int) -> bool:
    """Whether networks with ``widths`` hidden units have native kernels here and gain by them, without building any."""
    return promises(*widths)
