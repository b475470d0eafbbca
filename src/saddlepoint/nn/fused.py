"""Passes of small MLPs on a CPU, written in C++ (fused.cpp): this file builds them, checks what goes in, and hands over the tensors.

PyTorch works layer by layer: each product's result goes to memory and comes back for the activation, each small product pays some 50 us to be dispatched, and
one library call does not use two cores well. Measured beside it (benchmarks/algd_update.py): see README.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

WIDTHS = 32
"""hidden widths are multiples of it"""

ARGUMENTS = {
    "room": "ii", "pack_net": "pipp", "forward_net": "pipppp" "ii" "ppp", "backward_net": "pipippp" "ip", "weight_gradients_net": "piipppippp",
    "chain_forward_net": "pppppppp" "iii" "pp", "chain_backward_net": "ppppp" "ii" "ppp",
}  # fmt: skip
"""of each C function: integers and pointers"""

Pointers = Any  # a ctypes array


class _Net(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("members", "wide", "narrow", "hidden", "head", "silu", "flipped")] + [
        (name, ctypes.c_void_p) for name in ("widths", "weights", "biases")
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C++ passes, built for this processor at the first call (some ten seconds, kept by PyTorch on disk); None, with a warning, where that cannot be."""
    from torch._inductor.codecache import (
        CppCodeCache,  # picks the compiler and its flags, locks, and keeps what was built
    )

    try:
        built = cast(ctypes.CDLL, CppCodeCache.load((Path(__file__).parent / "fused.cpp").read_text()))
    except Exception as error:  # whatever a compiler can come to
        logging.getLogger(__name__).warning("the fused passes cannot be built here (%s): PyTorch's are used.", str(error).splitlines()[0])
        return None
    for name, kinds in ARGUMENTS.items():
        getattr(built, name).argtypes = [ctypes.c_int64 if kind == "i" else ctypes.c_void_p for kind in kinds]
    built.room.restype = ctypes.c_int64
    return built


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this machine has the fused passes in ``dtype``: a compiler, and a processor that oneDNN has these products for."""
    if library() is None or dtype not in (torch.float32, torch.bfloat16):
        return False
    weights = [torch.zeros(1, 33, 32), torch.zeros(1, 32, 32), torch.zeros(1, 32, 1)]
    net = FusedNet(weights, [torch.zeros(1, w.shape[-1]) for w in weights], 32, silu=False, flipped=False, dtype=dtype)
    try:
        net.refresh().forward(torch.zeros(1, 32), torch.zeros(1, 1, 1))
    except RuntimeError as error:
        logging.getLogger(__name__).warning("%s: PyTorch's passes are used.", error)
        return False
    return True


def promises(*widths: int) -> bool:
    """Whether networks with ``widths`` hidden units can be expected to have the fused passes here, and to gain by them, without building any."""
    return all(w % WIDTHS == 0 for w in widths) and "AVX512" in torch.backends.cpu.get_cpu_capability()


def fits(first: Tensor, widths: Sequence[int]) -> bool:
    """Whether networks with ``widths`` hidden units and parameters such as ``first`` can have the fused passes here."""
    return first.device.type == "cpu" and first.dtype == torch.float32 and all(w % WIDTHS == 0 for w in widths) and works(torch.float32)


class FusedNet:
    """An ensemble of MLPs as the C++ passes see it; ``refresh`` takes up its weights as they are now.

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
            _require(tensor, tuple(tensor.shape))
        if built is None or any(w % WIDTHS for w in self.widths) or not (flipped or self.head == 1):
            raise ValueError("the fused passes are not for this network or not on this machine: see `fits`")
        self.built = built
        self.pointers = ((ctypes.c_int64 * len(self.widths))(*self.widths), *map(_pointers, self.kept))
        self.net = _Net(members, wide, self.narrow, len(self.widths), self.head, silu, flipped, *map(ctypes.addressof, self.pointers))
        sides = list(zip([wide, *self.widths], self.widths))
        self.packed = [torch.empty(members * built.room(into, out), dtype=dtype) for into, out in sides]
        self.turned = [torch.empty(members * built.room(out, into), dtype=dtype) for into, out in sides]
        self.here, self.forwards, self.backwards = ctypes.addressof(self.net), _pointers(self.packed), _pointers(self.turned)

    def refresh(self, backward: bool = True) -> FusedNet:
        """Lay the weights out for the products as they are now, for the backward passes only if asked."""
        self._call("pack_net", self.low, self.forwards, self.backwards if backward else None)
        return self

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
        narrow = _require(narrow.contiguous(), (proposals, batch, self.narrow))
        wide = None if wide is None else _require(wide.contiguous(), (batch, self.wide))
        if base is not None or wide is None:
            _require(base, (batch, self.widths[0]))
        self._require_layers(outputs, proposals * batch)
        self._require_layers(sources, proposals * batch)
        values = torch.empty(self.members, proposals, batch, self.head)
        self._call(
            "forward_net", self.low, self.forwards, _pointer(wide), _pointer(base), _pointer(narrow), proposals, batch,
            _pointers(outputs), _pointers(sources if self.silu else None), _pointer(values),
        )  # fmt: skip
        return values

    def backward(self, sources: list[Tensor], upstream: Tensor, grads: list[Tensor] | None = None, below: Tensor | None = None) -> None:
        """From ``upstream`` (members, rows, head) to the pre-activations' gradients ``grads`` or to those at the narrow inputs, ``below`` (rows, narrow),
        summed over members. ``sources``: SiLU's derivatives, ReLU's outputs."""
        rows = upstream.shape[1]
        upstream = _require(upstream.contiguous(), (self.members, rows, self.head))
        stride = grads[0].shape[1] if grads else rows
        if grads is None:
            _require(below, (rows, self.narrow))
        self._require_layers(sources, rows)
        self._require_layers(grads, stride)
        self._call("backward_net", self.low, self.backwards, rows, _pointers(sources), _pointer(upstream), _pointers(grads), stride, _pointer(below))

    def weight_gradients(self, inputs: Tensor, outputs: list[Tensor], sources: list[Tensor], upstream: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of weights and biases, shaped as these, for ``inputs`` (rows, wide + narrow) and ``upstream`` (members, rows, head)."""
        rows = len(inputs)
        stride = -(-rows // WIDTHS) * WIDTHS if self.low else rows  # what oneDNN sums over in bfloat16
        grads = self.hidden(rows, stride)
        for grad in grads if stride > rows else ():
            grad[:, rows:] = 0
        self.backward(sources, upstream, grads)
        return self._weight_gradients(inputs.to(self.dtype).contiguous(), outputs, grads, upstream.contiguous())

    def later_weight_gradients(self, outputs: list[Tensor], grads: list[Tensor], upstream: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of all weights but the first layer's, whose place holds nothing, and of all biases, from what ``chain_forward`` and ``chain_backward``
        left: (evaluations, batch, width or head) each."""
        outputs, grads = ([t.view(1, -1, t.shape[-1]) for t in tensors] for tensors in (outputs, grads))
        return self._weight_gradients(None, outputs, grads, upstream.view(1, -1, self.head))

    def _weight_gradients(
        self, inputs: Tensor | None, outputs: list[Tensor], grads: list[Tensor], upstream: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
        rows, stride = upstream.shape[1], grads[0].shape[1]
        if inputs is not None:
            _require(inputs, (rows, self.inputs), self.dtype)
        _require(upstream, (self.members, rows, self.head))
        self._require_layers(outputs, rows)
        self._require_layers(grads, stride)
        weights, biases = ([torch.empty_like(t) if room is None else room for t, room in zip(*each)] for each in zip(self.kept, self.rooms))
        self._call(
            "weight_gradients_net", self.low, rows, _pointer(inputs), _pointers(outputs), _pointers(grads), stride, _pointer(upstream),
            _pointers(weights), _pointers(biases),
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
        common, times = _require(common.contiguous(), (rows, self.widths[0])), _require(times.contiguous(), (steps, self.widths[0]))
        noise = None if noise is None else _require(noise.contiguous(), (steps, rows, size))
        recorded = kept[0].shape[1] if kept else 0
        self._require_chain(kept, steps, recorded, size)
        latents = start.new_empty(steps + 1, rows, size)
        latents[-1] = start
        self._call(
            "chain_forward_net", self.forwards, _pointer(common), _pointer(times), _pointer(noise), *map(_floats, table), steps, rows, rows - recorded,
            _pointer(latents), _pointers(kept),
        )  # fmt: skip
        return latents

    def chain_backward(self, upstream: Tensor, table: Sequence[tuple[float, ...]], kept: list[Tensor], grads: list[Tensor], of_output: Tensor) -> None:
        """Back along a chain whose layers' outputs are ``kept``, from ``upstream`` (steps + 1, rows, narrow) at its latents, with ``table`` (keep, drift, ...):
        fills ``of_output`` (>= steps, rows, narrow), the gradients at the network's outputs, and ``grads``, shaped as ``kept``, at its pre-activations."""
        steps, rows, size = len(upstream) - 1, *upstream.shape[1:]
        self._require_chain(kept, steps, rows, size)
        self._require_chain(grads, steps, rows, size)
        _require(of_output, (max(steps, len(of_output)), rows, size))
        upstream = _require(upstream.contiguous(), (steps + 1, rows, size))
        self._call(
            "chain_backward_net", self.backwards, _pointer(upstream), *map(_floats, table[:2]), steps, rows, _pointers(kept), _pointer(of_output),
            _pointers(grads),
        )  # fmt: skip

    def _require_chain(self, tensors: list[Tensor] | None, steps: int, rows: int, size: int) -> None:
        if self.members != 1 or self.low or not size == self.narrow == self.head:
            raise ValueError("a chain needs a net of one member in float32 whose outputs are as many as its narrow inputs")
        for tensor, width in zip(tensors or (), self.widths, strict=tensors is not None):
            _require(tensor, (max(steps, len(tensor)), rows, width))

    def _require_layers(self, tensors: list[Tensor] | None, rows: int) -> None:
        for tensor, width in zip(tensors or (), self.widths, strict=tensors is not None):
            _require(tensor, (self.members, rows, width), self.dtype)

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self.built, name)(self.here, *arguments):
            raise RuntimeError(f"oneDNN has no such products on this processor ({name}, {self.dtype})")


def _require(tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor, if C++ may read or write that much behind its pointer."""
    if tensor is None or tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        found = None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device.type, tensor.stride())
        raise ValueError(f"the fused passes take a dense {dtype} tensor of {shape} on the CPU here, not {found}")
    return tensor


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _floats(numbers: Sequence[float]) -> Pointers:
    return (ctypes.c_float * len(numbers))(*numbers)


def _pointers(tensors: Sequence[Tensor] | None) -> Pointers:
    return None if tensors is None else (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])
