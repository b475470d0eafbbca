"""The operations in plain PyTorch, under autograd: what every other backend is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from saddlepoint.nn.ops.types import ChainWeights, EnsembleWeights, ReverseTable
from saddlepoint.nn.products import linear

Activate = Callable[[Tensor], Tensor]
OutputFunction = Callable[[Tensor, int], Tensor]
"""(latent (batch, dim), step k) -> what drives a chain, (batch, dim)"""


def ensemble_mlp(net: EnsembleWeights, state: Tensor, action: Tensor) -> Tensor:
    """See ``api.ensemble_mlp``. Small products are made for all members at once, large ones member by member, as is faster on a CPU."""
    dtype = net.dtype or state.dtype
    activation = F.relu if net.activation == "relu" else F.silu
    state, action = state.to(dtype), action.to(dtype)
    proposals, batch, _ = action.shape
    if memberwise(proposals * batch, net.weights):
        return torch.stack([_one(groups, state, action, activation) for groups in net.members()])
    rows = torch.cat([state.expand(proposals, -1, -1), action], -1).flatten(0, 1)
    hidden = rows.expand(len(net.weights[0]), -1, -1)
    for layer, (weight, bias) in enumerate(zip(net.weights[:-1], net.biases[:-1])):
        sums = torch.baddbmm(bias.to(dtype), hidden, weight.to(dtype))
        hidden = activation(_normed(sums, net.gains, net.shifts, layer))
    values = torch.baddbmm(net.biases[-1], hidden.to(net.biases[-1].dtype), net.weights[-1])  # in the parameters' own type
    return values.view(len(values), proposals, batch)


def _normed(sums: Tensor, gains: Sequence[Tensor], shifts: Sequence[Tensor], layer: int) -> Tensor:
    """A hidden layer's sums, after LayerNorm where there are gains."""
    if not gains:
        return sums
    return torch.addcmul(shifts[layer].to(sums.dtype), F.layer_norm(sums, sums.shape[-1:]), gains[layer].to(sums.dtype))


def memberwise(rows: int, weights: Sequence[Tensor]) -> bool:
    """Whether single products are faster than batched ones: on a CPU from some 4 million multiply-adds on."""
    if torch.compiler.is_compiling() or weights[0].device.type != "cpu":  # where no path may depend on sizes
        return False
    return rows * weights[0].shape[-1] * max((w.shape[-1] for w in weights[1:]), default=1) >= 1 << 22


def _one(groups: tuple[list[Tensor], ...], state: Tensor, action: Tensor, activation: Activate) -> Tensor:
    """One member, (in, out) and (out,) a layer: (proposals, batch). The state's part of the first layer is made once for all proposals."""
    weights, biases, gains, shifts = groups
    dtype, split = state.dtype, state.shape[-1]
    first = weights[0].to(dtype)
    if len(action) == 1:
        sums = linear(torch.cat([state.unsqueeze(0), action], -1), first.mT, biases[0].to(dtype))
    else:
        sums = linear(state, first[:split].mT, biases[0].to(dtype)) + linear(action, first[split:].mT)
    hidden = activation(_normed(sums, gains, shifts, 0))
    for layer in range(1, len(weights) - 1):
        sums = linear(hidden, weights[layer].to(dtype).mT, biases[layer].to(dtype))
        hidden = activation(_normed(sums, gains, shifts, layer))
    return linear(hidden.to(biases[-1].dtype), weights[-1].mT, biases[-1]).squeeze(-1)  # in the parameters' own type


def ensemble_mse(net: EnsembleWeights, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
    """See ``api.ensemble_mse``."""
    return scale * (ensemble_mlp(net, state, action[None])[:, 0] - target).square().sum()


def reverse_chain(output: OutputFunction, start: Tensor, noise: Tensor | None, table: ReverseTable) -> Tensor:
    """All latents (steps + 1, batch, dim) of the chain whose network is ``output``; see ``api.denoising_chain``. Gradients flow through every step."""
    x, latents = start, [start]
    for k in reversed(range(len(table.keep))):
        x = table.keep[k] * x + table.drift[k] * output(x, k)
        if noise is not None:
            x = x + table.std[k] * noise[k]
        latents.append(x)
    return torch.stack(latents[::-1])


def denoising_chain(net: ChainWeights, start: Tensor, noise: Tensor | None, table: ReverseTable) -> Tensor:
    """See ``api.denoising_chain``."""
    return reverse_chain(net.output, start, noise, table)
