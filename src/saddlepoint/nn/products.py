"""The matrix products of the critics and the score network, where nearly all of an update's time goes.

Which library multiplies fastest depends on the processor, and was measured. AMD EPYC (Zen 5), PyTorch 2.13, float32, one core, (1280, 256) @ (256, 256):
MKL 88 GFLOP/s, oneDNN 190; two cores, six members batched: 107 against 370. So float32 calls the operator that TorchInductor uses for oneDNN there. Intel
Xeon (Sapphire Rapids): MKL 121 against oneDNN's 114 on one core at (256, 256) @ (256, 256), and 222 against 155 on two at (1280, 256): there, and on what
was not measured, PyTorch's own product is taken. bfloat16 goes to oneDNN by itself; its operator is called for the ReLU that it takes along.

A product with few columns or of few of them (a critic's head, a first layer's part of an action) is no work for either library: (256, 256) @ (256, 1)
takes 20 us by oneDNN and 5 by PyTorch, and (1280, 2) @ (2, 256) in bfloat16 as long as two products of 256 columns. Compiled, they are loops that fuse with
what stands around them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 16
"""below this many rows (acting in a few environments) the operator's own overhead is the larger part"""
FEW_COLUMNS = 8
"""up to this many columns a compiled product is unrolled"""


def _amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


_OPERATOR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN = _OPERATOR and _amd()
"""whether float32 products on the CPU go to oneDNN"""


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """x @ weight^T + bias, then ReLU if asked: (rows, in), (out, in), (out,) -> (rows, out). Not differentiable."""
    compiling = torch.compiler.is_compiling()
    float32 = ONEDNN and x.dtype == torch.float32 and 1 not in weight.shape
    bfloat16 = _OPERATOR and x.dtype == torch.bfloat16 and not compiling  # compiled, the ReLU fuses with what follows
    if (float32 or bfloat16) and x.device.type == "cpu" and len(x) >= FEW_ROWS:
        return _opaque(x, weight, bias, relu) if compiling else _onednn(x, weight, bias, relu)
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "relu" if relu else "none", [], "")


# TorchInductor has a lowering of its own for this operator, made for constant weights, which fails here: it gets an operator it does not know.
_opaque = torch.library.custom_op("saddlepoint::affine", _onednn, mutates_args=())
_opaque.register_fake(lambda x, weight, bias, relu: x.new_empty(x.shape[0], weight.shape[0]))


def _dense(matrix: Tensor) -> Tensor:
    """The matrix or, where its rows have gaps, a copy: a slice of columns takes oneDNN's reference path, a thousand times slower."""
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """x @ weight + bias, then ReLU if asked: for one member, (rows, in), (in, out), (out,), or for all, (members, in, out) and (members, 1, out)
    with x of either rank.

    Differentiable, but then without oneDNN. Compiled, the bias is taken along by what follows: given to the product it is first copied to every row of the
    result, and as a subtraction the compiler does not give it back.
    """
    if torch.compiler.is_compiling() and bias is not None and not (ONEDNN and x.dtype == torch.float32):
        y = torch.sub(x @ weight, -bias)
        return y.relu() if relu else y
    if weight.ndim == 2:
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            y = F.linear(x, weight.mT, bias)
            return y.relu() if relu else y
        return affine(x, weight.mT, bias, relu)
    x = x.expand(len(weight), -1, -1)
    y = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
    return y.relu() if relu else y


def narrow_out(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias for a weight of few columns: (..., rows, in), (..., in, few) -> (..., rows, few), as ``product``."""
    if not (torch.compiler.is_compiling() and weight.shape[-1] <= FEW_COLUMNS):
        return product(x, weight, bias)
    wide = torch.promote_types(x.dtype, torch.float32)  # sums of a bfloat16 product are kept in float32
    columns = [(x.to(wide) * column.to(wide).unsqueeze(-2)).sum(-1) for column in weight.unbind(-1)]
    y = torch.stack(columns, -1)
    return y if bias is None else y + bias


def narrow_in(base: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
    """base + x @ weight for x of few columns: (rows, out) or None for 0, (..., rows, few), (few, out) -> (..., rows, out)."""
    if not (torch.compiler.is_compiling() and len(weight) <= FEW_COLUMNS):
        if base is None:
            return x @ weight
        return torch.addmm(base, x, weight) if x.ndim == 2 else product(x.flatten(0, -2), weight).view(*x.shape[:-1], -1).add_(base)
    total: Tensor | float = 0.0 if base is None else base
    for column, row in zip(x.unbind(-1), weight):
        total = total + column.unsqueeze(-1) * row
    assert isinstance(total, Tensor)
    return total
