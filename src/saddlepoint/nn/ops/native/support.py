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


@functools.cache
def available() -> bool:
    """Whether the native operations are built and multiply on this processor."""
    return build.loaded()


def taken(packed: Packed | None, dtype: torch.dtype | None, tensors: Iterable[Tensor | None]) -> bool:
    """Whether a native operation may be called on ``tensors``: dense float32 tensors on the CPU, not empty, outside ``torch.compile`` and its fake tensors."""
    if packed is None or dtype not in (None, torch.float32, torch.bfloat16) or torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in (Tensor, torch.nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel()
        ):
            return False
    return available()


def dense(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)


def form(packed: Packed, kind: str, low: bool, backward: bool, weights: list[Tensor], pack: Any) -> list[Tensor]:
    """The packed ``weights`` for one direction of products, made by ``pack`` where ``packed`` has none.

    The weights are kept beside their form, so that no other tensor can take their addresses, by which the form is found.
    """
    key = (kind, low, backward, *(weight.data_ptr() for weight in weights))
    found = packed.forms.get(key)
    if found is None:
        with torch.no_grad():
            found = packed.forms[key] = (pack(), [weight.detach() for weight in weights])
    return found[0]
