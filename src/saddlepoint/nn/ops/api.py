"""The operations, and the choice of a backend for each call."""

from __future__ import annotations

from torch import Tensor

from saddlepoint.nn.ops import reference
from saddlepoint.nn.ops.native import chain, ensemble
from saddlepoint.nn.ops.native.support import native_available, native_supported, native_wins
from saddlepoint.nn.ops.packed import Packed
from saddlepoint.nn.ops.precision import Precision, resolve_precision
from saddlepoint.nn.ops.reference import reverse_chain
from saddlepoint.nn.ops.types import ChainWeights, EnsembleWeights, ReverseTable

__all__ = [
    "ChainWeights", "EnsembleWeights", "Packed", "Precision", "ReverseTable", "denoising_chain", "ensemble_mlp", "ensemble_mse",
    "native_available", "native_supported", "native_wins", "resolve_precision", "reverse_chain",
]  # fmt: skip


def ensemble_mlp(net: EnsembleWeights, state: Tensor, action: Tensor) -> Tensor:
    """Q_m(s, a) of every member: (batch, state), (proposals, batch, action) -> (members, proposals, batch).

    Differentiable in the weights, the biases and the action; the state gets no gradient. Weights whose gradient nobody wants should be detached:
    autograd asks for all that require one.
    """
    backend = ensemble if ensemble.takes(net, state, action) else reference
    return backend.ensemble_mlp(net, state, action)


def ensemble_mse(net: EnsembleWeights, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
    """scale * sum over members and batch of (Q_m(s, a) - target_m)^2, 0-d.

    (batch, state), (batch, action); ``target`` (members, batch), or (batch,) for all members. Differentiable in the weights and the biases only.
    """
    backend = ensemble if ensemble.takes(net, state, action, action, target) else reference
    return backend.ensemble_mse(net, state, action, target, scale)


def denoising_chain(net: ChainWeights, start: Tensor, noise: Tensor | None, table: ReverseTable) -> Tensor:
    """All latents (steps + 1, batch, action) of a reverse chain from ``start`` (batch, action), which is row ``steps``; row 0 is the sample.

    ``noise`` (steps, batch, action) is standard normal, row k for step k; None runs the chain at its means. Differentiable in every tensor of ``net``.
    """
    backend = chain if chain.takes(net, start, noise, table) else reference
    return backend.denoising_chain(net, start, noise, table)
