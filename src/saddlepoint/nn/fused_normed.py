"""Passes of MLPs of Linear, LayerNorm and Mish on a CPU, written in C++ (fused_normed.cpp): what goes in is checked here, and autograd served.

PyTorch's norms and activations each read and write a layer once more: they took half of an update of the default size. Measured beside it
(benchmarks/mbdpo.py): see docs/results.md.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saddlepoint.nn import native
from saddlepoint.nn.native import Layouts, floats, integers, pointer, pointers, require, structure

ARGUMENTS = {
    "pack_normed": "pipi", "forward_normed": "pippipipp", "chain_normed": "pipippppp" "iip", "backward_normed": "pippipipp" "ppp",
}  # fmt: skip
"""of each C function: integers and pointers"""
NORMED = Path(__file__).with_name("normed.h")
"""what a pass of such a network is made of"""


_Normed = structure("members parts layers simplex", "inputs widths first weights biases gains shifts")
_Trail = structure("", "outputs hats inverses")
_Gradients = structure("", "first weights biases gains shifts parts")


class _Inputs(ctypes.Structure):
    _fields_ = [("parts", ctypes.c_void_p), ("base", ctypes.c_void_p), ("base_rows", ctypes.c_int64), ("repeat", ctypes.c_int64), ("drop", ctypes.c_void_p)]


def library() -> ctypes.CDLL | None:
    return native.library(Path(__file__).with_name("fused_normed.cpp"), *native.TILES, NORMED, **ARGUMENTS)


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this machine has the fused passes in ``dtype``: a compiler, and a processor that oneDNN has these products for."""
    if library() is None or dtype not in (torch.float32, torch.bfloat16):
        return False
    wide, square, narrow, vector = torch.zeros(32, 6), torch.zeros(32, 32), torch.zeros(3, 32), torch.zeros(32)
    net = FusedNormed(Parameters([wide], [square, narrow], [vector, vector, torch.zeros(3)], [vector] * 2, [vector] * 2), 0, 0, dtype)
    return native.serves(lambda: net(Request([torch.zeros(1, 6)], 1)))


class Parameters(NamedTuple):
    """As ``NormedMLP`` has them, with or without a leading axis of members."""

    first: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    gains: list[Tensor]
    shifts: list[Tensor]


class Request(NamedTuple):
    """What a forward pass is given."""

    parts: list[Tensor | None]  # (rows, width) each; None where ``base`` has its product
    rows: int
    chosen: tuple[int, ...] = (0,)  # members
    base: Tensor | None = None  # (chosen, base rows, widths[0]): the first layer's bias and the products of parts with fewer rows
    repeat: int = 1  # row r has row (r // repeat) % base rows of the base
    drop: Tensor | None = None  # (chosen, rows, widths[0]), multiplied with the first layer's


class FusedNormed:
    """A ``NormedMLP`` as the C++ passes see it. Its parameters, all float32, may change, but stay where they are.

    ``members`` 0 is a single network. ``dtype`` is that of the products; norms, activations and all that goes in and comes out are float32.
    """

    def __init__(self, parameters: Parameters, members: int, simplex: int, dtype: torch.dtype) -> None:
        built = library()
        if built is None:
            raise ValueError("the fused passes cannot be built on this machine: see `works`")
        self.members, self.single, self.dtype, self.low = max(members, 1), not members, dtype, int(dtype == torch.bfloat16)
        self.kept = Parameters(*([p.detach() if members else p.detach().unsqueeze(0) for p in group] for group in parameters))
        for tensor in (t for group in self.kept for t in group):
            require(tensor, tuple(tensor.shape))
        self.inputs, self.widths = [w.shape[2] for w in self.kept.first], [b.shape[1] for b in self.kept.biases]
        self.normed = len(self.kept.gains)
        if any(width % native.WIDTHS for width in self.widths[: self.normed]):
            raise ValueError(f"normed layers must have a multiple of {native.WIDTHS} units")
        self.built = built
        sides = [(i, self.widths[0]) for i in self.inputs] + list(zip(self.widths, self.widths[1:]))
        self.pointers = (integers(self.inputs), integers(self.widths), *map(pointers, self.kept))
        self.net = _Normed(self.members, len(self.inputs), len(self.widths), simplex, *map(ctypes.addressof, self.pointers))
        self.here = ctypes.addressof(self.net)
        self.layouts = Layouts(built, "pack_normed", self.net, [*self.kept.first, *self.kept.weights], sides, self.members, dtype)

    def __call__(self, request: Request, trail: Trail | None = None) -> Tensor:
        """Values (chosen, rows, outputs); what is needed to come back is left in ``trail``."""
        values = torch.empty(len(request.chosen), request.rows, self.widths[-1])
        held, inputs = self._inputs(request)
        kind = self.layouts.kind(request.rows)
        native.call(
            self.built, "forward_normed", self.here, kind, self.layouts.at(kind, False), integers(request.chosen), len(request.chosen),
            ctypes.addressof(inputs), request.rows, None if trail is None else trail.address, pointer(values),
        )  # fmt: skip
        del held
        return values

    def _inputs(self, request: Request) -> tuple[Any, ctypes.Structure]:
        """What C++ reads the request from; the first of the two is to be kept until it has."""
        rows, count, first = request.rows, len(request.chosen), self.widths[0]
        for part, width in zip(request.parts, self.inputs, strict=True):
            if part is not None:
                require(part, (rows, width))
        base_rows = 1
        if request.base is not None:
            base_rows = request.base.shape[1]
            require(request.base, (count, base_rows, first))
        if request.drop is not None:
            require(request.drop, (count, rows, first))
        if not all(0 <= m < self.members for m in request.chosen) or all(part is None for part in request.parts):
            raise ValueError("the fused passes need members that exist, and a part of the input with all rows")
        parts = pointers(request.parts)
        return parts, _Inputs(ctypes.addressof(parts), pointer(request.base), base_rows, request.repeat, pointer(request.drop))

    def chain(
        self, part: int, common: Tensor, times: Tensor, x: Tensor, table: tuple[Sequence[float], Sequence[float]], mask: Tensor | None = None
    ) -> Tensor:
        """x after x <- keep_k x + drift_k output * mask for k = 0, 1, ...: a denoising process of a net of one member, whose outputs are as many as ``part``
        of its input is wide, which is x.

        ``common`` (rows, widths[0]) and ``times`` (steps, widths[0]) are what the first layer adds to its part of x, bias included; ``x`` and ``mask``
        (rows, inputs[part]); ``table`` (keep, drift).
        """
        rows, steps = len(x), len(times)
        size = self.inputs[part]
        if self.members != 1 or self.widths[-1] != size or self.normed != len(self.widths) - 1 or {len(t) for t in table} != {steps}:
            raise ValueError("a chain needs a single plain net whose outputs are as many as that part of its inputs, and two numbers a step")
        x = require(x.clone(memory_format=torch.contiguous_format), (rows, size))
        common, times = require(common.contiguous(), (rows, self.widths[0])), require(times.contiguous(), (steps, self.widths[0]))
        mask = None if mask is None else require(mask.expand(rows, size).contiguous(), (rows, size))
        kind = self.layouts.kind(rows)
        native.call(
            self.built, "chain_normed", self.here, kind, self.layouts.at(kind, False), part, pointer(common), pointer(times), *map(floats, table),
            pointer(mask), steps, rows, pointer(x),
        )  # fmt: skip
        return x

    def backward(self, request: Request, trail: Trail, values: Tensor, upstream: Tensor, parts: Sequence[bool], parameters: bool) -> Back:
        """The way back from ``upstream`` at ``values`` (chosen, rows, outputs) to the ``parts`` that are named and, where wanted, to the parameters."""
        rows, count = request.rows, len(request.chosen)
        upstream = require(upstream.contiguous(), (count, rows, self.widths[-1]))
        require(values, upstream.shape)
        grads = [torch.empty(count, rows, width) for width in self.widths[: self.normed]]
        of_parts = [torch.empty(rows, width) if wanted else None for width, wanted in zip(self.inputs, parts)]
        found: Parameters | None = None
        if parameters:
            found = Parameters(*([p.new_empty(count, *p.shape[1:]) for p in group] for group in self.kept))
        held, inputs = self._inputs(request)
        wanted_of = [*(map(pointers, found) if found else [None] * 5), pointers(of_parts)]
        gradients = _Gradients(*(None if each is None else ctypes.addressof(each) for each in wanted_of))
        kind = self.layouts.kind(rows)
        native.call(
            self.built, "backward_normed", self.here, kind, self.layouts.at(kind, True), integers(request.chosen), count, ctypes.addressof(inputs), rows,
            trail.address, pointer(values), pointer(upstream), pointers(grads), ctypes.addressof(gradients),
        )  # fmt: skip
        del held, wanted_of
        return Back(grads[0] if grads else upstream, of_parts, found)


class Back(NamedTuple):
    """What a backward pass found."""

    front: Tensor  # at the first pre-activations (before dropping), (chosen, rows, widths[0])
    parts: list[Tensor | None]
    parameters: Parameters | None  # of the chosen members, where wanted


class Trail:
    """What a forward pass leaves for the way back: the layers' outputs, and what LayerNorm made of them."""

    def __init__(self, net: FusedNormed, count: int, rows: int) -> None:
        normed = net.widths[: net.normed]
        self.outputs = [torch.empty(count, rows, width, dtype=net.dtype) for width in net.widths[:-1]]
        self.hats = [torch.empty(count, rows, width) for width in normed]
        self.inverses = [torch.empty(count, rows) for _ in normed]
        self._pointers = [pointers(group) for group in (self.outputs, self.hats, self.inverses)]
        self._structure = _Trail(*map(ctypes.addressof, self._pointers))
        self.address = ctypes.addressof(self._structure)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: FusedNormed, request: Request, *tensors: Tensor | None) -> Tensor:
        trail = Trail(net, len(request.chosen), request.rows)
        values = net(request, trail)
        ctx.net, ctx.request, ctx.trail = net, request, trail
        ctx.save_for_backward(values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        net, request = ctx.net, ctx.request
        base, *needed = ctx.needs_input_grad[2:]
        parts, parameters = needed[: len(net.inputs)], needed[len(net.inputs) :]
        back = net.backward(request, ctx.trail, *ctx.saved_tensors, upstream[0], parts, any(parameters))
        of_base = None
        if base:
            front = back.front.view(len(request.chosen), -1, request.base.shape[1], request.repeat, net.widths[0])
            of_base = front.sum((1, 3))
        found = [g[0] if net.single else g for group in back.parameters or () for g in group] or [None] * len(parameters)
        return None, None, of_base, *back.parts, *(g if wanted else None for g, wanted in zip(found, parameters, strict=True))


def differentiable(net: FusedNormed, request: Request, parameters: Parameters) -> Tensor:
    """``net(request)`` with a way back to the request's base and parts and to ``parameters``, the net's own, as it was made with.

    To those whose product is in the base it is the base that leads back.
    """
    if request.base is not None:
        first = [p.detach() if part is None else p for p, part in zip(parameters.first, request.parts)]
        parameters = parameters._replace(first=first, biases=[parameters.biases[0].detach(), *parameters.biases[1:]])
    flat = [p for group in parameters for p in group]
    return _Pass.apply(net, request, request.base, *request.parts, *flat)


def spread(parts: Sequence[Tensor]) -> tuple[torch.Size, list[bool], int, int] | None:
    """How parts (..., width) whose leading axes broadcast are laid out: the joint leading axes, which parts have all rows, and of the others together the rows
    and how often each is repeated, as ``Request`` has it. None where they fit no such layout."""
    lead = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    whole = [p.shape[:-1].numel() == lead.numel() for p in parts]
    if all(whole):
        return lead, whole, 1, 1
    others = torch.broadcast_shapes(*(p.shape[:-1] for p, full in zip(parts, whole) if not full))
    others = (1,) * (len(lead) - len(others)) + tuple(others)
    own = [axis for axis, (size, most) in enumerate(zip(others, lead)) if size == most > 1]
    start, end = (own[0], own[-1] + 1) if own else (0, 0)
    if not any(whole) or any(others[axis] != lead[axis] for axis in range(start, end)):
        return None
    return lead, whole, math.prod(lead[start:end]), math.prod(lead[end:])
