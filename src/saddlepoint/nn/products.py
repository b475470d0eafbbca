"""The matrix products of the critics and the score network, where nearly all of an update's time goes.

Which library multiplies fastest depends on the processor, and was measured. AMD EPYC (Zen 5), PyTorch 2.13, float32, one core, (1280, 256) @ (256, 256):
MKL 88 GFLOP/s, oneDNN 190; two cores, six members batched: 107 against 370. So float32 calls the operator that TorchInductor uses for oneDNN there. Intel
Xeon (Sapphire Rapids): MKL 121 against oneDNN's 114 on one core at (256, 256) @ (256, 256), and 222 against 155 on two at (1280, 256): there, and on what
was not measured, PyTorch's own product is taken. bfloat16 goes to oneDNN by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 1 << 24
"""below this many multiply-adds PyTorch's own linear is faster under autograd"""
FEW_ROWS = 16
"""below this many rows (acting in a few environments) the operator's own overhead is the larger part"""


def _amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise") and _amd()
"""whether float32 products on the CPU go to oneDNN"""


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight^T + bias: (rows, in), (out, in), (out,) -> (rows, out). Not differentiable."""
    fits = ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu" and 1 not in weight.shape and len(x) >= FEW_ROWS
    if fits and not torch.compiler.is_compiling():
        return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")
    return F.linear(x, weight, bias)


def _dense(matrix: Tensor) -> Tensor:
    """The matrix or, where its rows have gaps, a copy: a slice of columns takes oneDNN's reference path, a thousand times slower."""
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


class _Affine(torch.autograd.Function):
    """x @ weight^T + bias for (rows, in), (out, in), (out,), all three products by ``products.affine``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = upstream[0].contiguous()
        return (
            affine(grad, weight.mT, None) if ctx.needs_input_grad[0] else None,
            affine(grad.mT, x.mT, None) if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, low: bool = False) -> Tensor:
    """x @ weight^T + bias: (..., in), (out, in), (out,) -> (..., out). Differentiable; by oneDNN where that is faster; ``low`` multiplies in bfloat16."""
    if low:
        y = F.linear(x.bfloat16(), weight.bfloat16()).to(x.dtype)
        return y if bias is None else y + bias
    if torch.compiler.is_compiling() or not (ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"):
        return F.linear(x, weight, bias)
    if x.numel() // x.shape[-1] * weight.numel() < SMALL:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    product = _Affine.apply if torch.is_grad_enabled() else affine
    return product(rows, weight, bias).view(*x.shape[:-1], len(weight))
