"""What the operations take: weights by name, with the packed forms of their owner."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saddlepoint.nn.ops.packed import Packed
from saddlepoint.nn.products import linear

Activation = Literal["relu", "silu"]


class EnsembleWeights(NamedTuple):
    """An ensemble of MLPs on concat(state, action), each with one value."""

    weights: list[Tensor]
    """(members, in, out) a layer; the last has one column"""
    biases: list[Tensor]
    """(members, 1, out) a layer"""
    activation: Activation
    packed: Packed | None = None
    """the owner's packed forms; None: the PyTorch reference"""
    dtype: torch.dtype | None = None
    """type of the products, float32 or bfloat16; None: that of the inputs"""

    def members(self) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """(weights, biases) of each member: (in, out) and (out,) a layer."""
        weights = zip(*(weight.unbind(0) for weight in self.weights))
        biases = zip(*(bias.squeeze(1).unbind(0) for bias in self.biases))
        return list(zip(weights, biases))


class ChainWeights(NamedTuple):
    """A score network at given states, as a reverse chain evaluates it: its first layer's sums are common + times_k + x @ columns^T."""

    common: Tensor
    """(batch, hidden): the state's part of the first layer, bias included"""
    times: Tensor
    """(steps, hidden): the part of each step's embedding"""
    columns: Tensor
    """(hidden, action): the weights of the latent"""
    weights: list[Tensor]
    """(out, in) of the later hidden layers"""
    biases: list[Tensor]
    """(out,) of the same"""
    head_weight: Tensor
    """(action, last)"""
    head_bias: Tensor
    """(action,)"""
    packed: Packed | None = None
    dtype: torch.dtype | None = None

    def output(self, x: Tensor, k: int | Tensor) -> Tensor:
        """The network's output at the latent x (batch, action) and the step k, a number or (batch,) of them: (batch, action)."""
        hidden = F.relu(self.common + self.times[k] + linear(x, self.columns))
        for weight, bias in zip(self.weights, self.biases):
            hidden = F.relu(linear(hidden, weight, bias))
        return linear(hidden, self.head_weight, self.head_bias)


class ReverseTable(NamedTuple):
    """Coefficients of a reverse chain, one for each step: x_k = keep_k x_{k+1} + drift_k output(x_{k+1}, k) + std_k noise_k."""

    keep: tuple[float, ...]
    drift: tuple[float, ...]
    std: tuple[float, ...]
