"""The matrix products of the critics and the score network, where nearly all of an update's time goes.

In float32 PyTorch's CPU products go to MKL, which on AMD processors runs at about half of what oneDNN reaches on the same data. Measured on one core of an
AMD EPYC (Zen 5), PyTorch 2.13, (1280, 256) @ (256, 256): MKL 88 GFLOP/s, oneDNN 190; two cores, six members batched: 107 against 370. bfloat16 goes to
oneDNN by itself. So float32 on the CPU calls the operator that TorchInductor uses for the same purpose; where it is missing PyTorch's own product is taken,
and so it is for a matrix and a vector (a critic's head): forward, input's and weight's gradient of (256, 256) @ (256, 1) take 20, 18 and 50 us by oneDNN on
two cores, and 5, 4 and 4 so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 16
"""below this many rows (acting in a few environments) the operator's own overhead is the larger part"""
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """x @ weight^T + bias, then ReLU if asked: (rows, in), (out, in), (out,) -> (rows, out). Not differentiable."""
    vector = x.dtype == torch.float32 and 1 in weight.shape
    if ONEDNN and x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu" and len(x) >= FEW_ROWS and not vector:
        return _opaque(x, weight, bias, relu) if torch.compiler.is_compiling() else _onednn(x, weight, bias, relu)
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

    Differentiable, but then without oneDNN.
    """
    if weight.ndim == 2:
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            y = F.linear(x, weight.mT, bias)
            return y.relu() if relu else y
        return affine(x, weight.mT, bias, relu)
    x = x.expand(len(weight), -1, -1)
    y = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
    return y.relu() if relu else y
