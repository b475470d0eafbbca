"""Batched ensembles of MLP critics Q_m(s, a), with their backward pass written out.

The critic update and the energy's action gradient are nearly all of ALGD's arithmetic. Each needs only a part of what autograd would compute (weights
without inputs, or the action without weights and without the state), so the three passes are plain functions. The state's part of the first layer is
computed once for all proposals. ``Ensemble.fuse`` has C++ do the same (nn/fused.py); what is here is what it is held to.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.nn.fused import FusedNet, fits, works
from saddlepoint.nn.layers import truncated_normal, xavier_uniform
from saddlepoint.nn.products import ONEDNN, product

Activation = Literal["relu", "silu"]
Keep = Literal["slopes", "nothing"]
"""what a forward pass leaves: enough for ``action_gradient``, or the values alone (PyTorch's own passes always leave all)"""

FEW = 0.8
"""share of the rows from which on gathering them costs more than it saves"""


class Hidden(NamedTuple):
    """A hidden layer's output, and what ``slope`` makes its backward pass of: the output for ReLU, for SiLU the pre-activation."""

    output: Tensor
    source: Tensor


def activate(pre: Tensor, activation: Activation) -> Hidden:
    """ReLU or SiLU of a layer's pre-activation, which is given up for it."""
    if activation == "relu":
        output = pre.relu_()
        return Hidden(output, output)
    return Hidden(F.silu(pre), pre)


def slope(kept: Tensor, upstream: Tensor, activation: Activation) -> Tensor:
    """upstream * activation'(pre-activation), from the layer's ``Hidden.source``."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(upstream, kept, 0)
    return torch.ops.aten.silu_backward(upstream, kept)


class Layers(NamedTuple):
    """Weights and biases of what is worked on at a time: all members, (members, in, out) and (members, 1, out), or one, (in, out) and (out,)."""

    weights: list[Tensor]
    biases: list[Tensor]


Net = FusedNet | list[Layers]
"""an ensemble as its passes take it: for C++, or for PyTorch in the parts that are worked on one after another"""


class Trace(NamedTuple):
    """What a forward pass leaves for a backward one."""

    values: Tensor  # (members, proposals, batch), in float32 or better
    hidden: list[list[Hidden]]  # for each part its hidden layers, (members, rows, hidden) or (rows, hidden); what was not kept is empty


class Ensemble(nn.Module):
    """``members`` MLPs of one shape on concat(state, action); each returns a scalar."""

    def __init__(
        self,
        members: int,
        state: int,
        action: int,
        hidden: tuple[int, ...],
        activation: Activation,
        generator: torch.Generator,
    ):
        super().__init__()
        self.state, self.members, self.activation = state, members, activation
        self._fused: dict[torch.dtype, FusedNet] = {}
        self._parts: list[Layers] | None = (
            None  # views of the parameters, made once and not at every update
        )
        sizes = (state + action, *hidden, 1)
        pairs = list(itertools.pairwise(sizes))
        if activation == "relu":
            weights = [xavier_uniform((members, i, o), i, o, generator) for i, o in pairs]
        else:
            weights = [truncated_normal((members, i, o), 0.5 / i**0.5, generator) for i, o in pairs]
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList([torch.zeros(members, 1, o) for _, o in pairs])

    def fuse(self) -> None:
        """Have the C++ passes from now on, where ``fits`` says that they can. The parameters must stay where they are."""
        if fits(self.weights[0], [w.shape[-1] for w in self.weights[:-1]]):
            self._fused = {
                dtype: FusedNet(list(self.weights), list(self.biases), self.state, silu=self.activation == "silu", flipped=False, dtype=dtype)
                for dtype in (torch.float32, torch.bfloat16) if works(dtype)
            }  # fmt: skip

    def layers(self, dtype: torch.dtype | None = None) -> Net:
        """The parameters as they are now, detached and cast for the products.

        PyTorch's, one member each where single products are the faster ones: on a CPU in bfloat16 (Intel Xeon, one core, six of (1280, 256) @ (256, 256): 0.9
        ms against 2.7 batched), and in float32 where oneDNN makes them. Else all in one part: MKL gives each core members of its own.
        """
        wanted = dtype or self.weights[0].dtype
        if wanted in self._fused:
            return self._fused[wanted]
        single = wanted == torch.bfloat16 or (ONEDNN and wanted == torch.float32)
        if self.weights[0].device.type != "cpu" or not single:
            return [Layers([w.detach().to(wanted) for w in self.weights], [b.detach().to(wanted) for b in self.biases])]
        if wanted != self.weights[0].dtype:
            return self._single(wanted)
        if self._parts is None or self._parts[0].weights[0].data_ptr() != self.weights[0].data_ptr():
            self._parts = self._single(wanted)
        return self._parts

    def _single(self, dtype: torch.dtype) -> list[Layers]:
        weights = [w.detach().to(dtype).unbind() for w in self.weights]
        biases = [b.detach().to(dtype)[:, 0].unbind() for b in self.biases]
        return [Layers([w[m] for w in weights], [b[m] for b in biases]) for m in range(self.members)]

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(batch, state), (batch, action) -> (members, batch), with autograd."""
        return trace([Layers(list(self.weights), list(self.biases))], state, action[None], self.activation).values[:, 0]


def trace(parts: Net, state: Tensor, action: Tensor, activation: Activation, keep: Keep = "slopes") -> Trace:
    """Values at (batch, state) and (proposals, batch, action), and what the backward passes need."""
    if isinstance(parts, FusedNet):
        return _fused_trace(parts, state, action, activation, keep)
    dtype = parts[0].weights[0].dtype
    state, action = state.to(dtype), action.to(dtype)
    if len(action) == 1:
        inputs = torch.cat([state, action[0]], dim=-1)
        firsts = (_layer(inputs, part.weights[0], part.biases[0], activation) for part in parts)
    else:
        firsts = (activate(_shared_first(part, state, action), activation) for part in parts)
    values, hidden = zip(*(_forward(part, first, activation) for part, first in zip(parts, firsts)))
    joined = torch.cat([value.view(-1, *action.shape[:2]) for value in values])
    return Trace(joined.float() if dtype == torch.bfloat16 else joined, list(hidden))


def _fused_trace(net: FusedNet, state: Tensor, action: Tensor, activation: Activation, keep: Keep) -> Trace:
    kept = None if keep == "nothing" else net.hidden(action.shape[0] * action.shape[1])
    outputs, sources = (kept, None) if activation == "relu" else (None, kept)  # ReLU's outputs tell its slopes
    values = net.forward(state, action, outputs, sources)[..., 0]
    return Trace(values, [[Hidden(layer, layer) for layer in kept or ()]])


def action_gradient(parts: Net, saved: Trace, upstream: Tensor, activation: Activation, state: int) -> Tensor:
    """sum_m upstream_m * dQ_m/da. ``upstream`` (members, proposals, batch) -> (proposals, batch, action).

    Rows without upstream are left out where that pays: each reward head is the minimum in a part of the rows only, and the cost critics
    matter only where the penalty pushes.
    """
    members, proposals, batch = upstream.shape
    if isinstance(parts, FusedNet):
        below = torch.empty(proposals * batch, parts.narrow)
        parts.backward([layer.source for layer in saved.hidden[0]], upstream.reshape(members, -1, 1), below=below)
        return below.view(proposals, batch, -1)
    total = upstream.new_zeros(proposals * batch, parts[0].weights[0].shape[-2] - state)
    for part, hidden, above in zip(parts, saved.hidden, _per_part(upstream.reshape(members, -1, 1), parts)):
        rows, above = _where_it_matters(above)
        kept = [layer.source if rows is None else layer.source.index_select(0, rows) for layer in hidden]
        grad = above * part.weights[-1].mT
        for weight, source in zip(part.weights[-2:0:-1], kept[:0:-1]):
            grad = product(slope(source, grad, activation), weight.mT)
        grad = slope(kept[0], grad, activation)
        found = product(grad, part.weights[0][..., state:, :].mT).to(upstream.dtype)
        if rows is not None:
            total.index_add_(0, rows, found)
        else:
            total += found.sum(0) if found.ndim == 3 else found
    return total.view(proposals, batch, -1)


class Fit(NamedTuple):
    """A loss (0-d) and its gradients, weights then biases, in the order of the parameters."""

    loss: Tensor
    gradients: list[Tensor]


def fit(parts: Net, state: Tensor, action: Tensor, wanted: Tensor, scale: float, activation: Activation) -> Fit:
    """scale * sum over members and batch of (Q_m - wanted_m)^2, at (batch, state) and (batch, action), with ``wanted`` (members, batch) or, for all members,
    (batch,)."""
    if isinstance(parts, FusedNet):
        loss, weights, biases = parts.fit(state, action, wanted, scale)
    else:
        saved = trace(parts, state, action[None], activation)
        error = saved.values[:, 0] - wanted
        loss = scale * error.square().sum()
        weights, biases = weight_gradients(parts, saved, torch.cat([state, action], -1), 2 * scale * error, activation)
    return Fit(loss, [*weights, *biases])


def weight_gradients(
    parts: list[Layers], saved: Trace, inputs: Tensor, upstream: Tensor, activation: Activation
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of sum upstream * Q for weights and biases. ``inputs`` (batch, state + action), ``upstream`` (members, batch)."""
    inputs = inputs.to(parts[0].weights[0].dtype)
    found = [
        _weight_gradients(part, hidden, inputs, above, upstream.dtype, activation)
        for part, hidden, above in zip(parts, saved.hidden, _per_part(upstream.unsqueeze(-1), parts))
    ]
    if parts[0].weights[0].ndim == 3:
        return found[0]
    weights = [torch.stack(of_layer) for of_layer in zip(*(w for w, _ in found))]
    return weights, [torch.stack(of_layer) for of_layer in zip(*(b for _, b in found))]


def _per_part(upstream: Tensor, parts: list[Layers]) -> list[Tensor]:
    """(members, rows, 1) in the parts' precision: whole for one part, (rows, 1) each for single members."""
    upstream = upstream.to(parts[0].weights[0].dtype)
    return [upstream] if parts[0].weights[0].ndim == 3 else list(upstream)


def _where_it_matters(above: Tensor) -> tuple[Tensor | None, Tensor]:
    """The rows (count,) of the upstream (rows, 1) that are not 0, and it in these rows; None and all of it where leaving rows out does not pay.

    The count is rounded up to sixteenths, with row 0 and an upstream of 0, because oneDNN prepares a product anew for every new size.
    """
    if above.ndim == 3 or above.device.type != "cpu" or torch.compiler.is_compiling():  # where no shape may depend on numbers
        return None, above
    rows, step = above.view(-1).nonzero().view(-1), -(-len(above) // 16)
    size = -(-len(rows) // step) * step
    if size > FEW * len(above):
        return None, above
    padding = (0, size - len(rows))
    return F.pad(rows, padding), F.pad(above.index_select(0, rows).view(-1), padding).view(-1, 1)


def _layer(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation) -> Hidden:
    if activation == "relu":  # which the product takes along
        output = product(x, weight, bias, relu=True)
        return Hidden(output, output)
    return activate(product(x, weight, bias), activation)


def _shared_first(layers: Layers, state: Tensor, action: Tensor) -> Tensor:
    """The first layer's pre-activation, (..., proposals * batch, hidden), with the state's part computed once for all proposals."""
    weight, split = layers.weights[0], state.shape[-1]
    shared = product(state, weight[..., :split, :], layers.biases[0])
    if weight.ndim == 2:
        return product(action.flatten(0, 1), weight[split:]).view(*action.shape[:2], -1).add_(shared).flatten(0, 1)
    first = product(action.flatten(0, 1), weight[..., split:, :])
    first.unflatten(-2, action.shape[:2]).add_(shared.unsqueeze(-3))
    return first


def _forward(layers: Layers, first: Hidden, activation: Activation) -> tuple[Tensor, list[Hidden]]:
    """The values (..., rows, 1) and all hidden layers from the first on."""
    kept = [first]
    for weight, bias in zip(layers.weights[1:-1], layers.biases[1:-1]):
        kept.append(_layer(kept[-1].output, weight, bias, activation))
    return product(kept[-1].output, layers.weights[-1], layers.biases[-1]), kept


def _weight_gradients(
    layers: Layers, hidden: list[Hidden], inputs: Tensor, grad: Tensor, dtype: torch.dtype, activation: Activation
) -> tuple[list[Tensor], list[Tensor]]:
    weights = layers.weights
    d_weights, d_biases = [], []
    for index in range(len(weights) - 1, -1, -1):
        before = hidden[index - 1].output if index else inputs
        last = index == len(weights) - 1
        d_weights.append(product(before.mT, grad).to(dtype))
        d_biases.append(grad.to(dtype).sum(-2, keepdim=True))
        if index:
            below = grad * weights[index].mT if last else product(grad, weights[index].mT)
            grad = slope(hidden[index - 1].source, below, activation)
    return d_weights[::-1], d_biases[::-1]
