"""Passes of small MLPs on a CPU, written in C++ (fused.cpp): this file builds them, checks what goes in, and hands over the tensors.

PyTorch works layer by layer: each product's result goes to memory and comes back for the activation, each small product pays some 50 us to be dispatched, and
one library call does not use two cores well. Measured beside it (benchmarks/algd_update.py): see docs/results.md.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saddlepoint.nn import native
from saddlepoint.nn.native import WIDTHS, Layouts, floats, integers, pointer, pointers, require, structure

ARGUMENTS = {
    "pack_net": "pipi", "forward_net": "pipppp" "ii" "ppp", "backward_net": "pipippp" "ip", "weight_gradients_net": "piipppippp",
    "chain_forward_net": "pipppppppiiipp", "chain_backward_net": "pippppiippp",
    "fit_net": "pipppp" "ipif" "pp" "ipp", "conditioned_gradients_net": "piiippipppp" "ippp",
}  # fmt: skip
"""of each C function: integers and pointers"""


_Net = structure("members wide narrow hidden head silu flipped", "widths weights biases")


def library() -> ctypes.CDLL | None:
    """The C++ passes (fused.cpp), built at the first call; None, with a warning, where that cannot be."""
    return native.library(Path(__file__).with_name("fused.cpp"), *native.TILES, **ARGUMENTS)


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this machine has the fused passes in ``dtype``: a compiler, and a processor that oneDNN has these products for."""
    if library() is None or dtype not in (torch.float32, torch.bfloat16):
        return False
    weights = [torch.zeros(1, 33, 32), torch.zeros(1, 32, 32), torch.zeros(1, 32, 1)]
    net = FusedNet(weights, [torch.zeros(1, w.shape[-1]) for w in weights], 32, silu=False, flipped=False, dtype=dtype)
    return native.serves(lambda: net.forward(torch.zeros(1, 32), torch.zeros(1, 1, 1)))


def fits(first: Tensor, widths: Sequence[int]) -> bool:
    """Whether networks with ``widths`` hidden units and parameters such as ``first`` can have the fused passes here."""
    return first.device.type == "cpu" and first.dtype == torch.float32 and all(w % WIDTHS == 0 for w in widths) and works(torch.float32)


class FusedNet:
    """An ensemble of MLPs as the C++ passes see it.

    ``weights``: the first layer (members, wide + narrow, out), hidden layers (members, in, out), or ``flipped`` (members, out, in), and a head (members, last,
    head), or flipped (members, head, last); a head of several columns must be flipped. ``biases`` (members, out) each, in any shape. All float32; they may
    change, but stay where they are, and so their ``grad``: gradients are written into those that have one. Inputs are ``wide`` columns and some narrow ones: a
    state and an action. Instead of the wide part, its product with the first layer may be given, bias included.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], wide: int, *, silu: bool, flipped: bool, dtype: torch.dtype):
        members, inputs, first = weights[0].shape
        self.widths = [first, *(w.shape[1 if flipped else 2] for w in weights[1:-1])]
        self.members, self.wide, self.narrow, self.inputs = members, wide, inputs - wide, inputs
        self.head = weights[-1].shape[1] if flipped else weights[-1].shape[2]
        self.dtype, self.low, self.silu = dtype, int(dtype == torch.bfloat16), silu
        self.kept = ([w.detach() for w in weights], [b.detach() for b in biases])
        self.rooms = [[t.grad for t in tensors] for tensors in (weights, biases)]
        built = library()
        for tensor in (*self.kept[0], *self.kept[1]):
            require(tensor, tuple(tensor.shape))
        if built is None or any(w % WIDTHS for w in self.widths) or not (flipped or self.head == 1):
            raise ValueError("the fused passes are not for this network or not on this machine: see `fits`")
        self.built = built
        self.pointers = (integers(self.widths), *map(pointers, self.kept))
        self.net = _Net(members, wide, self.narrow, len(self.widths), self.head, silu, flipped, *map(ctypes.addressof, self.pointers))
        sides = list(zip([wide, *self.widths], self.widths))
        self.layouts = Layouts(built, "pack_net", self.net, self.kept[0], sides, members, dtype)

    def hidden(self, rows: int, stride: int | None = None) -> list[Tensor]:
        """Room for something of every hidden layer: (members, rows, width) each."""
        return [torch.empty(self.members, stride or rows, width, dtype=self.dtype) for width in self.widths]

    def forward(
        self, wide: Tensor | None, narrow: Tensor, outputs: list[Tensor] | None = None, sources: list[Tensor] | None = None, base: Tensor | None = None
    ) -> Tensor:
        """Values (members, proposals, batch, head) at (batch, wide) and (proposals, batch, narrow), or at ``base`` (batch, widths[0]) in place of the former.

        Filled where given: the hidden layers' ``outputs`` and, of SiLU, ``sources``, its derivatives; as ``hidden`` makes them, for proposals * batch rows.
        """
        proposals, batch, _ = narrow.shape
        narrow = require(narrow.contiguous(), (proposals, batch, self.narrow))
        wide = None if wide is None else require(wide.contiguous(), (batch, self.wide))
        if base is not None or wide is None:
            require(base, (batch, self.widths[0]))
        self._require_layers(outputs, proposals * batch)
        self._require_layers(sources, proposals * batch)
        values, kind = torch.empty(self.members, proposals, batch, self.head), self.layouts.kind(batch)
        self._call(
            "forward_net", kind, self.layouts.at(kind, False), pointer(wide), pointer(base), pointer(narrow), proposals, batch,
            pointers(outputs), pointers(sources if self.silu else None), pointer(values),
        )  # fmt: skip
        return values

    def backward(self, sources: list[Tensor], upstream: Tensor, grads: list[Tensor] | None = None, below: Tensor | None = None) -> None:
        """From ``upstream`` (members, rows, head) to the pre-activations' gradients ``grads`` or to those at the narrow inputs, ``below`` (rows, narrow),
        summed over members. ``sources``: SiLU's derivatives, ReLU's outputs."""
        rows = upstream.shape[1]
        upstream = require(upstream.contiguous(), (self.members, rows, self.head))
        stride = grads[0].shape[1] if grads else rows
        if grads is None:
            require(below, (rows, self.narrow))
        self._require_layers(sources, rows)
        self._require_layers(grads, stride)
        kind = self.layouts.kind(rows)
        self._call("backward_net", kind, self.layouts.at(kind, True), rows, pointers(sources), pointer(upstream), pointers(grads), stride, pointer(below))

    def fit(self, wide: Tensor, narrow: Tensor, wanted: Tensor, scale: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """scale * sum over members and rows of (value - wanted)^2, 0-d, and its gradients of weights and biases, shaped as these.

        ``wide`` (rows, wide), ``narrow`` (rows, narrow), ``wanted`` (members, rows) or, for all members, (rows,). For nets of one value.
        """
        rows, shared = len(wide), wanted.ndim == 1
        if self.head != 1:
            raise ValueError(f"only nets of one value are fitted: this one has {self.head}")
        wide, narrow = require(wide.contiguous(), (rows, self.wide)), require(narrow.contiguous(), (rows, self.narrow))
        wanted = require(wanted.contiguous(), (rows,) if shared else (self.members, rows))
        stride = -(-rows // WIDTHS) * WIDTHS if self.low else rows  # what oneDNN sums over in bfloat16
        outputs, grads, upstream, loss = self.hidden(rows), self.hidden(rows, stride), torch.empty(self.members, rows, 1), torch.empty(())
        kind = self.layouts.kind(rows)
        self._call(
            "fit_net", kind, self.layouts.at(kind, False), self.layouts.at(kind, True), pointer(wide), pointer(narrow), rows, pointer(wanted), shared, scale,
            pointers(outputs), pointers(grads), stride, pointer(upstream), pointer(loss),
        )  # fmt: skip
        return loss, *self._weight_gradients(torch.cat([wide, narrow], 1).to(self.dtype), outputs, grads, upstream)

    def later_weight_gradients(self, outputs: list[Tensor], grads: list[Tensor], upstream: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of all weights but the first layer's, whose place holds nothing, and of all biases, from what ``chain_forward`` and ``chain_backward``
        left: (evaluations, batch, width or head) each."""
        outputs, grads = ([t.view(1, -1, t.shape[-1]) for t in tensors] for tensors in (outputs, grads))
        lacking = -grads[0].shape[1] % WIDTHS if self.low else 0
        grads = [F.pad(grad, (0, 0, 0, lacking)) for grad in grads] if lacking else grads
        return self._weight_gradients(None, outputs, grads, upstream.view(1, -1, self.head))

    def conditioned_gradients(
        self, state: Tensor, latents: Tensor, point: Tensor, taus: Tensor, grads: Tensor, embedding: Tensor, weight: Tensor, rooms: tuple[Tensor, Tensor]
    ) -> None:
        """Fill ``rooms`` with the gradients of the first layer's ``weight`` (out, state + narrow + embedding) and of the ``embedding`` (steps, columns), from
        those at its pre-activations, ``grads`` (steps + 1, batch, out), at the ``latents`` (steps, batch, narrow) of the steps 0, 1, ... and then at ``point``
        (batch, narrow) of the steps ``taus`` (batch,)."""
        (steps, rows, size), (_, depth), wide = latents.shape, embedding.shape, state.shape[1]
        state, latents = require(state.contiguous(), (rows, wide)), require(latents.contiguous(), (steps, rows, self.narrow))
        point, taus = require(point.contiguous(), (rows, size)), require(taus.contiguous(), (rows,), torch.int64)
        require(grads, (steps + 1, rows, self.widths[0]), self.dtype)
        for tensor, room in zip((weight, embedding), rooms, strict=True):
            require(tensor, tensor.shape), require(room, tensor.shape)
        if weight.shape != (self.widths[0], wide + size + depth) or len(embedding) != steps:
            raise ValueError("the first layer's columns are a state's, a narrow input's and an embedding's, which has a row for each step")
        self._call(
            "conditioned_gradients_net", self.layouts.kind(rows), steps, rows, pointer(grads), pointer(state), wide, pointer(latents), pointer(point),
            pointer(taus), pointer(embedding), depth, pointer(weight), *map(pointer, rooms),
        )  # fmt: skip

    def _weight_gradients(
        self, inputs: Tensor | None, outputs: list[Tensor], grads: list[Tensor], upstream: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
        rows, stride = upstream.shape[1], grads[0].shape[1]
        if inputs is not None:
            require(inputs, (rows, self.inputs), self.dtype)
        require(upstream, (self.members, rows, self.head))
        self._require_layers(outputs, rows)
        self._require_layers(grads, stride)
        weights, biases = ([torch.empty_like(t) if room is None else room for t, room in zip(*each)] for each in zip(self.kept, self.rooms))
        self._call(
            "weight_gradients_net", self.layouts.kind(rows), rows, pointer(inputs), pointers(outputs), pointers(grads), stride, pointer(upstream),
            pointers(weights), pointers(biases),
        )  # fmt: skip
        return weights, biases

    def chain_forward(
        self, common: Tensor, times: Tensor, start: Tensor, noise: Tensor | None, table: Sequence[tuple[float, ...]], kept: list[Tensor] | None = None
    ) -> Tensor:
        """All latents (steps + 1, rows, narrow) of chains of a net of one member: x_k = keep_k x_{k+1} + drift_k output(x_{k+1}) + std_k noise_k.

        ``common`` (rows, widths[0]) and ``times`` (steps, widths[0]) are what the first layer adds to its part of x; ``start`` (rows, narrow), ``noise``
        (steps, rows, narrow); ``table`` (keep, drift, std). Of the last rows, as many as ``kept`` has room for, (>= steps, some rows, width), the hidden
        layers' outputs are left there.
        """
        (rows, size), steps = start.shape, len(times)
        common, times = require(common.contiguous(), (rows, self.widths[0])), require(times.contiguous(), (steps, self.widths[0]))
        noise = None if noise is None else require(noise.contiguous(), (steps, rows, size))
        recorded = kept[0].shape[1] if kept else 0
        self._require_chain(kept, steps, recorded, size)
        latents = start.new_empty(steps + 1, rows, size)
        latents[-1] = start
        kind = self.layouts.kind(rows)
        self._call(
            "chain_forward_net", kind, self.layouts.at(kind, False), pointer(common), pointer(times), pointer(noise), *map(floats, table), steps, rows,
            rows - recorded, pointer(latents), pointers(kept),
        )  # fmt: skip
        return latents

    def chain_backward(self, upstream: Tensor, table: Sequence[tuple[float, ...]], kept: list[Tensor], grads: list[Tensor], of_output: Tensor) -> None:
        """Back along a chain whose layers' outputs are ``kept``, from ``upstream`` (steps + 1, rows, narrow) at its latents, with ``table`` (keep, drift, ...):
        fills ``of_output`` (>= steps, rows, narrow), the gradients at the network's outputs, and ``grads``, shaped as ``kept``, at its pre-activations."""
        steps, rows, size = len(upstream) - 1, *upstream.shape[1:]
        self._require_chain(kept, steps, rows, size)
        self._require_chain(grads, steps, rows, size)
        require(of_output, (max(steps, len(of_output)), rows, size))
        upstream = require(upstream.contiguous(), (steps + 1, rows, size))
        kind = self.layouts.kind(rows)
        self._call(
            "chain_backward_net", kind, self.layouts.at(kind, True), pointer(upstream), *map(floats, table[:2]), steps, rows, pointers(kept),
            pointer(of_output), pointers(grads),
        )  # fmt: skip

    def _require_chain(self, tensors: list[Tensor] | None, steps: int, rows: int, size: int) -> None:
        if self.members != 1 or not size == self.narrow == self.head:
            raise ValueError("a chain needs a net of one member whose outputs are as many as its narrow inputs")
        for tensor, width in zip(tensors or (), self.widths, strict=tensors is not None):
            require(tensor, (max(steps, len(tensor)), rows, width), self.dtype)

    def _require_layers(self, tensors: list[Tensor] | None, rows: int) -> None:
        for tensor, width in zip(tensors or (), self.widths, strict=tensors is not None):
            require(tensor, (self.members, rows, width), self.dtype)

    def _call(self, name: str, *arguments: Any) -> None:
        native.call(self.built, name, ctypes.addressof(self.net), *arguments)
