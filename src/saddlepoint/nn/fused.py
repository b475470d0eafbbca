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
import torch.nn.functional as F
from torch import Tensor

WIDTHS = 32
"""hidden widths are multiples of it"""

Pointers = Any  # a ctypes array


class _Net(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("members", "wide", "narrow", "hidden", "head", "silu", "flipped")] + [
        (name, ctypes.c_void_p) for name in ("widths", "weights", "biases")
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C++ passes, built for this processor at the first call (some ten seconds, kept by PyTorch on disk); None, with a warning, where that cannot be."""
    from torch._inductor.codecache import CppCodeCache  # picks the compiler and its flags, locks, and keeps what was built

    try:
        built = cast(ctypes.CDLL, CppCodeCache.load((Path(__file__).parent / "fused.cpp").read_text()))
    except Exception as error:  # whatever a compiler can come to
        logging.getLogger(__name__).warning("the fused passes cannot be built here (%s): PyTorch's are used.", str(error).splitlines()[0])
        return None
    built.room.argtypes, built.room.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
    return built


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this machine has the fused passes in ``dtype``: a compiler, and a processor that oneDNN has these products for."""
    if library() is None or dtype not in (torch.float32, torch.bfloat16):
        return False
    weights = [torch.zeros(1, 33, 32), torch.zeros(1, 32, 32), torch.zeros(1, 32, 1)]
    net = FusedNet(weights, [torch.zeros(1, w.shape[-1]) for w in weights], 32, silu=False, flipped=False, dtype=dtype)
    try:
        net.forward(torch.zeros(1, 32), torch.zeros(1, 1, 1))
    except RuntimeError:
        return False
    return True


def fits(first: Tensor, widths: Sequence[int]) -> bool:
    """Whether networks with ``widths`` hidden units and parameters such as ``first`` can have the fused passes here."""
    return first.device.type == "cpu" and first.dtype == torch.float32 and all(w % WIDTHS == 0 for w in widths) and works(torch.float32)


class FusedNet:
    """An ensemble of MLPs, its weights laid out for the products as they are now: make another after they have moved.

    ``weights``: the first layer (members, wide + narrow, out), hidden layers (members, in, out), or ``flipped`` (members, out, in), and a head (members, last,
    head), or flipped (members, head, last); a head of several columns must be flipped. ``biases`` (members, out) each, in any shape. All float32. Inputs are
    ``wide`` columns and some narrow ones: a state and an action. Instead of the wide part its product with the first layer may be given, bias included.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], wide: int, *, silu: bool, flipped: bool, dtype: torch.dtype, backward: bool = True
    ):  # fmt: skip
        members, inputs, first = weights[0].shape
        self.widths = [first, *(w.shape[1 if flipped else 2] for w in weights[1:-1])]
        self.members, self.wide, self.narrow, self.inputs = members, wide, inputs - wide, inputs
        self.head = weights[-1].shape[1] if flipped else weights[-1].shape[2]
        self.dtype, self.low, self.silu = dtype, int(dtype == torch.bfloat16), silu
        assert all(t.dtype == torch.float32 and t.is_contiguous() and t.device.type == "cpu" for t in (*weights, *biases))
        assert all(w % WIDTHS == 0 for w in self.widths) and (flipped or self.head == 1)
        self.kept = (list(weights), list(biases))
        built = library()
        assert built is not None
        self.built = built
        self.pointers = (
            (ctypes.c_int64 * len(self.widths))(*self.widths), _pointers([w.detach() for w in weights]), _pointers([b.detach() for b in biases])
        )  # fmt: skip
        self.net = _Net(members, wide, self.narrow, len(self.widths), self.head, silu, flipped, *map(ctypes.addressof, self.pointers))
        self.packed = self._pack(backward=False)
        self.turned = self._pack(backward=True) if backward else None

    def _pack(self, backward: bool) -> list[Tensor]:
        sides = [self.wide, *self.widths]
        pairs = [(out, into) if backward else (into, out) for into, out in zip(sides, self.widths)]
        used = range(len(pairs)) if self.wide and not backward else range(1, len(pairs))
        packed = [torch.empty(self.members * self.built.room(*pair) if i in used else 0, dtype=self.dtype) for i, pair in enumerate(pairs)]
        self._call("pack_net", self.low, int(backward), _pointers(packed))
        return packed

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
        narrow = narrow.contiguous()
        assert narrow.shape[-1] == self.narrow and narrow.dtype == torch.float32
        if wide is None:
            assert base is not None and base.is_contiguous() and base.shape == (batch, self.widths[0]) and base.dtype == torch.float32
        else:
            assert wide.shape == (batch, self.wide)
            wide = F.pad(wide.to(self.dtype), (0, -self.wide % WIDTHS)).contiguous()
        self._require(outputs, proposals * batch)
        self._require(sources, proposals * batch)
        values = torch.empty(self.members, proposals, batch, self.head)
        self._call(
            "forward_net", self.low, _pointers(self.packed), _pointer(wide), _pointer(base), _pointer(narrow), proposals, batch,
            _pointers(outputs), _pointers(sources if self.silu else None), _pointer(values),
        )  # fmt: skip
        return values

    def backward(self, sources: list[Tensor], upstream: Tensor, grads: list[Tensor] | None = None, below: Tensor | None = None) -> None:
        """From ``upstream`` (members, rows, head) to the pre-activations' gradients ``grads`` and those at the narrow inputs, ``below`` (rows, narrow), summed
        over members. ``sources``: SiLU's derivatives, ReLU's outputs."""
        rows = upstream.shape[1]
        upstream = upstream.contiguous()
        assert self.turned is not None and upstream.shape == (self.members, rows, self.head) and upstream.dtype == torch.float32
        assert below is None or (below.is_contiguous() and below.shape == (rows, self.narrow) and (grads is None or self.members == 1))
        self._require(sources, rows)
        stride = grads[0].shape[1] if grads else rows
        self._require(grads, stride)
        self._call("backward_net", self.low, _pointers(self.turned), rows, _pointers(sources), _pointer(upstream), _pointers(grads), stride, _pointer(below))

    def weight_gradients(self, inputs: Tensor, outputs: list[Tensor], sources: list[Tensor], upstream: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of weights and biases, shaped as these, for ``inputs`` (rows, wide + narrow) and ``upstream`` (members, rows, 1)."""
        rows, inputs, upstream = len(inputs), inputs.to(self.dtype).contiguous(), upstream.contiguous()
        stride = -(-rows // WIDTHS) * WIDTHS
        grads = self.hidden(rows, stride)
        for grad in grads if stride > rows else ():
            grad[:, rows:] = 0
        self.backward(sources, upstream, grads)
        assert inputs.shape[1] == self.inputs
        self._require(outputs, rows)
        weights, biases = ([torch.empty_like(t) for t in kept] for kept in self.kept)
        self._call(
            "weight_gradients_net", self.low, rows, _pointer(inputs), _pointers(outputs), _pointers(grads), stride, _pointer(upstream),
            _pointers(weights), _pointers(biases),
        )  # fmt: skip
        return weights, biases

    def _require(self, tensors: list[Tensor] | None, rows: int) -> None:
        for tensor, width in zip(tensors or (), self.widths, strict=tensors is not None):
            assert tensor.shape == (self.members, rows, width) and tensor.dtype == self.dtype and tensor.is_contiguous()

    def _call(self, name: str, *arguments: Any) -> None:
        wrapped = [ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments]
        if getattr(self.built, name)(ctypes.byref(self.net), *wrapped):
            raise RuntimeError(f"oneDNN has no such products on this processor ({name}, {self.dtype})")


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor] | None) -> Pointers:
    return None if tensors is None else (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
