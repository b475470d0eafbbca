"""The operations, and the choice of a backend for each call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saddlepoint.nn.ops import reference, reference_normed
from saddlepoint.nn.ops.native import chain, ensemble, normed
from saddlepoint.nn.ops.native.support import native_available, native_supported, native_wins
from saddlepoint.nn.ops.packed import Packed
from saddlepoint.nn.ops.precision import Precision, resolve_precision
from saddlepoint.nn.ops.reference import reverse_chain
from saddlepoint.nn.ops.types import (
    ChainTable,
    ChainWeights,
    EnsembleWeights,
    Imagination,
    Imagined,
    NormedWeights,
    ReverseTable,
)

__all__ = [
    "ChainTable",
    "ChainWeights",
    "EnsembleWeights",
    "Imagination",
    "Imagined",
    "NormedWeights",
    "Packed",
    "Precision",
    "ReverseTable",
    "denoising_chain",
    "ensemble_mlp",
    "ensemble_mse",
    "imagine",
    "native_available",
    "native_supported",
    "native_wins",
    "normed_chain",
    "normed_mlp",
    "resolve_precision",
    "reverse_chain",
    "score_output",
]

FEW_ROWS = 100
"""up to here one evaluation without gradients takes longer by the native chain than by PyTorch: a third at one row, nothing at 100"""


def ensemble_mlp(net: EnsembleWeights, state: Tensor, action: Tensor) -> Tensor:
    """Q_m(s, a) of every member: (batch, state), (proposals, batch, action) -> (members, proposals, batch).

    Differentiable in the weights, the biases and the action; the state gets no gradient. Weights whose gradient nobody
    wants should be detached:
    autograd asks for all that require one.
    """
    backend = ensemble if ensemble.takes(net, state, action) else reference
    return backend.ensemble_mlp(net, state, action)


def ensemble_mse(net: EnsembleWeights, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
    """scale * sum over members and batch of (Q_m(s, a) - target_m)^2, 0-d.

    (batch, state), (batch, action); ``target`` (members, batch), or (batch,) for all members. Differentiable in the
    weights and the biases only.
    """
    backend = ensemble if ensemble.takes(net, state, action, action, target) else reference
    return backend.ensemble_mse(net, state, action, target, scale)


def denoising_chain(net: ChainWeights, start: Tensor, noise: Tensor | None, table: ReverseTable) -> Tensor:
    """All latents (steps + 1, batch, action) of a reverse chain from ``start`` (batch, action), which is row ``steps``;
    row 0 is the sample.

    ``noise`` (steps, batch, action) is standard normal, row k for step k; None runs the chain at its means.
    Differentiable in every tensor of ``net``.
    """
    backend = chain if chain.takes(net, start, noise, table) else reference
    return backend.denoising_chain(net, start, noise, table)


def score_output(net: ChainWeights, x: Tensor, k: int | Tensor) -> Tensor:
    """The network's output at the latent x (batch, action) and the step k, a number or (batch,) of them: (batch,
    action).

    Differentiable in every tensor of ``net``.
    """
    if net.packed is None or torch.compiler.is_compiling() or (len(x) < FEW_ROWS and not torch.is_grad_enabled()):
        return net.output(x, k)
    table = ReverseTable((0.0,), (1.0,), (0.0,))
    once = net._replace(common=net.common + net.times[k], times=net.times.new_zeros(1, net.times.shape[-1]))
    return chain.denoising_chain(once, x, None, table)[0] if chain.takes(once, x, None, table) else net.output(x, k)


def normed_mlp(
    net: NormedWeights, parts: Sequence[Tensor], chosen: Sequence[int] | None = None, drop: Tensor | None = None
) -> Tensor:
    """Parts (..., width) of the input, whose leading axes broadcast -> (..., outputs).

    Of an ensemble: (members, ..., outputs), or (chosen, ..., outputs) from the members ``chosen`` alone. ``drop``
    (members, rows, hidden), or
    (rows, hidden), multiplies the first layer's sums. Differentiable in the parts and the parameters.
    """
    if normed.takes(net, parts, chosen, drop):
        return normed.normed_mlp(net, parts, chosen, drop)
    return reference_normed.normed_mlp(net, parts, chosen, drop)


def normed_chain(
    net: NormedWeights,
    part: int,
    common: Tensor,
    times: Tensor,
    start: Tensor,
    table: ChainTable,
    mask: Tensor | None = None,
) -> Tensor:
    """x after x <- keep_i x + drift_i output(x) * mask for i = 0, 1, ...: a denoising process of a single network, from
    ``start`` (rows, width).

    x is the ``part`` of its input that is as wide as its output; ``common`` (rows, hidden) and ``times`` (steps,
    hidden) are what the other parts add
    to the first layer's sums, bias included. ``mask`` (rows, width) is 0 where x stays as it is scaled.
    """
    if normed.takes_chain(net, part, common, times, start, mask):
        return normed.normed_chain(net, part, common, times, start, table, mask)
    return reference_normed.normed_chain(net, part, common, times, start, table, mask)


def imagine(model: Imagination, z: Tensor, task: Tensor | None, actions: Tensor) -> Imagined:
    """G = sum_t gamma^t alive_t (r_t + eta * F_norm(z_t, a_t)), z_{t+1} = d(z_t, a_t).  MBDPO, Eq. for G, without its
    last term.

    ``z`` (states, latent), ``task`` None or the tasks' embeddings (states, width), ``actions`` (states, proposals,
    horizon, action). ``alive`` falls to 0
    where the logit of the task's end passes 0.
    """
    if normed.takes_imagine(model, z, task, actions):
        return normed.imagine(model, z, task, actions)
    return reference_normed.imagine(model, z, task, actions)
