"""What this machine can do, and what the native operations take."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from saddlepoint.nn.ops.native import build
from saddlepoint.nn.ops.packed import Packed

WIDTHS = 32
"""hidden widths of networks with native passes are multiples of it"""


def ops() -> Any:
    return torch.ops.saddlepoint


def native_supported() -> bool:
    """Whether there is a native backend for this processor and system: Linux on x86-64 with AVX2 or AVX-512. Builds
    nothing."""
    return build.supported()


def native_available() -> bool:
    """Whether the native operations can be called; the first call builds them."""
    return build.loaded()


def native_wins(*widths: int) -> bool:
    """Whether networks with ``widths`` hidden units have native operations here. They were measured to gain with
    AVX-512 and with AVX2 (docs/results.md, Speed). Builds nothing."""
    return build.supported() and all(width % WIDTHS == 0 for width in widths)


@functools.cache
def bfloat16_products() -> bool:
    """Whether this processor multiplies bfloat16 in hardware: AMX or AVX512-BF16."""
    found = torch.cpu.get_capabilities()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(
        found.get("amx_bf16") or found.get("avx512_bf16")
    )


def taken(packed: Packed | None, dtype: torch.dtype | None, tensors: Iterable[Tensor | None]) -> bool:
    """Whether a native operation may be called on ``tensors``: float32, on the CPU, not empty, outside
    ``torch.compile`` and its fake tensors."""
    if packed is None or torch.compiler.is_compiling():
        return False
    if not (dtype in (None, torch.float32) or (dtype == torch.bfloat16 and bfloat16_products())):
        return False
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in (Tensor, torch.nn.Parameter)
            and tensor.dtype == torch.float32
            and tensor.device.type == "cpu"
            and tensor.numel()
        ):
            return False
    return native_available()


def known(packed: Packed | None, dtype: torch.dtype | None, parameters: list[Tensor]) -> bool:
    """Whether a native operation may be called on a network's ``parameters``: as ``taken`` says, and dense. They are looked at once until they change."""
    if packed is None or torch.compiler.is_compiling():
        return False
    if not all(type(p) in (Tensor, torch.nn.Parameter) for p in parameters):  # which have no address
        return False
    key = ("known", dtype, *(p.data_ptr() for p in parameters))
    if key not in packed.forms:
        if not (taken(packed, dtype, parameters) and dense(parameters)):
            return False
        packed.forms[key] = parameters  # kept, so that no other tensor can take their addresses
    return True


def dense(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)
