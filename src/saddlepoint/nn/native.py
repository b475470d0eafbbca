"""C++ that PyTorch builds for this processor, and handing tensors over to it. The sources lie beside this file."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

Pointers = Any  # a ctypes array

WIDTHS = 32
"""hidden widths of networks with fused passes are multiples of it"""


TILES = tuple(Path(__file__).with_name(name) for name in ("split.h", "tiles.h"))
"""what passes of networks are made of"""

FLOAT32, BFLOAT16, PARTS = range(3)
"""kinds of products: in float32, in bfloat16, in float32 of bfloat16 parts (split.h)"""

FEW = 16
"""rows from which on products of parts are faster: they take the time of so many. Acting by MBDPO's score network, one row, takes 3.6 ms with them and 1.0
without"""

BROAD = 256
"""units of a layer from which on they are: splitting the rows takes as long for few columns. With 128 an update of MBDPO's small preset took 2 % longer"""

KINDS = {"i": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}


@functools.cache
def library(source: Path, *before: Path, **arguments: str) -> ctypes.CDLL | None:
    """``source``, after the text of the files ``before``, built at the first call (some ten seconds with ``TILES``, kept by PyTorch on disk); None, with a
    warning, where that cannot be.

    ``arguments`` of each C function: i for an integer, f for a float, p for a pointer. They return an int, 0 for success.
    """
    from torch._inductor.codecache import (
        CppCodeCache,  # picks the compiler and its flags, locks, and keeps what was built
    )

    try:
        built = cast(ctypes.CDLL, CppCodeCache.load("".join(path.read_text() for path in (*before, source))))
    except Exception as error:  # whatever a compiler can come to
        logging.getLogger(__name__).warning("the fused passes cannot be built here (%s): PyTorch's are used.", str(error).splitlines()[0])
        return None
    for function, kinds in arguments.items():
        getattr(built, function).argtypes = [KINDS[kind] for kind in kinds]
    return built


def promises(*widths: int) -> bool:
    """Whether networks with ``widths`` hidden units can be expected to have fused passes here, and to gain by them, without building any."""
    return all(w % WIDTHS == 0 for w in widths) and "AVX512" in torch.backends.cpu.get_cpu_capability()


def call(built: ctypes.CDLL, function: str, *arguments: Any) -> None:
    """Raises ``RuntimeError`` where the processor lacks what the function needs."""
    if getattr(built, function)(*arguments):
        raise RuntimeError(f"oneDNN has no such products on this processor ({function})")


def serves(pass_: Callable[[], Any]) -> bool:
    """Whether a small pass can be made on this processor; with a warning where not."""
    try:
        pass_()
    except RuntimeError as error:
        logging.getLogger(__name__).warning("%s: PyTorch's passes are used.", error)
        return False
    return True


def require(tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor, if C++ may read or write that much behind its pointer; else ``ValueError``."""
    if tensor is None or tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        found = None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device.type, tensor.stride())
        raise ValueError(f"the fused passes take a dense {dtype} tensor of {shape} on the CPU here, not {found}")
    return tensor


def tell_of_steps(optimiser: torch.optim.Optimizer) -> None:
    """Have PyTorch count every step as a change of the parameters: its fused Adam does not, and C++ passes keep what they made of weights until they change."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(parameters))


def structure(numbers: str, addresses: str) -> type[ctypes.Structure]:
    """A C struct of 64-bit integers, then pointers, by their names."""
    fields = [(name, ctypes.c_int64) for name in numbers.split()] + [(name, ctypes.c_void_p) for name in addresses.split()]
    return type("Structure", (ctypes.Structure,), {"_fields_": fields})


def version_of(tensor: Tensor) -> int | None:
    """How many changes of the tensor PyTorch has counted; None where it counts none, in what was made in inference mode."""
    return None if tensor.is_inference() else tensor._version


class Layouts:
    """Weights as the products of C++ passes take them, forward and backward, laid out anew where PyTorch counts a change of them (``tell_of_steps``)."""

    def __init__(
        self, built: ctypes.CDLL, function: str, net: ctypes.Structure, weights: Sequence[Tensor], sides: Sequence[tuple[int, int]], members: int,
        dtype: torch.dtype,
    ):  # fmt: skip
        """``function`` lays out the ``weights`` of ``net``, of whose ``members`` each has products of the ``sides`` (inputs, outputs)."""
        self.built, self.function, self.net, self.weights, self.sides, self.members = built, function, ctypes.addressof(net), weights, sides, members
        built.room.argtypes, built.room.restype = [ctypes.c_int64] * 2 + [ctypes.c_int], ctypes.c_int64
        self.many = BFLOAT16 if dtype == torch.bfloat16 else PARTS if built.has_parts() and max(max(side) for side in sides) >= BROAD else FLOAT32
        self.few = FLOAT32 if self.many == PARTS else self.many
        self.made: dict[tuple[int, bool], _Layout] = {}

    def kind(self, rows: int) -> int:
        """The kind of products that is fastest for so many rows."""
        return self.many if rows >= FEW else self.few

    def at(self, kind: int, backward: bool) -> Pointers:
        """Where they lie for products of this kind, as the weights are now."""
        if (made := self.made.get((kind, backward))) is None:
            sizes = [self.members * self.built.room(*(side[::-1] if backward else side), kind) for side in self.sides]
            rooms = [torch.empty(size, dtype=torch.bfloat16 if kind == BFLOAT16 else torch.float32) for size in sizes]
            made = self.made[kind, backward] = _Layout(rooms, pointers(rooms), [])
        versions = [version_of(weight) for weight in self.weights]
        if None in versions or made.versions != versions:
            call(self.built, self.function, self.net, kind, made.addresses, backward)
            made.versions[:] = versions
        return made.addresses


class _Layout(NamedTuple):
    rooms: list[Tensor]
    addresses: Pointers
    versions: list[int | None]  # of the weights that were laid out


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def pointers(tensors: Sequence[Tensor | None] | None) -> Pointers:
    return None if tensors is None else (ctypes.c_void_p * len(tensors))(*map(pointer, tensors))


def floats(numbers: Sequence[float]) -> Pointers:
    return (ctypes.c_float * len(numbers))(*numbers)


def integers(numbers: Sequence[int]) -> Pointers:
    return (ctypes.c_int64 * len(numbers))(*numbers)
