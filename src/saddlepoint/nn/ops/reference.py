"""The operations in plain PyTorch, under autograd: what every other backend is tested against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from saddlepoint.nn.ops.types import ChainWeights, EnsembleWeights, ReverseTable
from saddlepoint.nn.products import linear


def ensemble_mlp(net: EnsembleWeights, state: Tensor, action: Tensor) -> Tensor:
    """See ``api.ensemble_mlp``. Members are multiplied one after another: single products are as fast as batched ones, or faster."""
    split, dtype = state.shape[-1], net.dtype or state.dtype
    activation = F.relu if net.activation == "relu" else F.silu
    state, action = state.to(dtype), action.to(dtype)
    values = []
    for weights, biases in net.members():
        first = weights[0].to(dtype)
        shared = linear(state, first[:split].mT, biases[0].to(dtype))  # the state's part, once for all proposals
        hidden = activation(shared + linear(action, first[split:].mT))
        for weight, bias in zip(weights[1:-1], biases[1:-1]):
            hidden = activation(linear(hidden, weight.to(dtype).mT, bias.to(dtype)))
        values.append(linear(hidden, weights[-1].to(dtype).mT, biases[-1].to(dtype)).squeeze(-1))
    return net.stack(values)


def ensemble_mse(net: EnsembleWeights, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
    """See ``api.ensemble_mse``."""
    return scale * (ensemble_mlp(net, state, action[None])[:, 0] - target).square().sum()


def denoising_chain(net: ChainWeights, start: Tensor, noise: Tensor | None, table: ReverseTable) -> Tensor:
    """See ``api.denoising_chain``."""
    x, latents = start, [start]
    for k in reversed(range(len(table.keep))):
        x = table.keep[k] * x + table.drift[k] * net.output(x, k)
        if noise is not None:
            x = x + table.std[k] * noise[k]
        latents.append(x)
    return net.stack(latents[::-1])
