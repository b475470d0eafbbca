"""``denoising_chain`` by the native operations (mlp.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saddlepoint.nn.ops import reference
from saddlepoint.nn.ops.native.ensemble import differentiable
from saddlepoint.nn.ops.native.support import WIDTHS, known, ops, taken
from saddlepoint.nn.ops.types import ChainWeights, ReverseTable


def takes(net: ChainWeights, start: Tensor, noise: Tensor | None, table: ReverseTable) -> bool:
    """Whether the native operations serve this network and chain."""
    if net.packed is None or torch.compiler.is_compiling():  # before the sizes are looked at: an export keeps its batch free
        return False
    widths = [net.columns.shape[0], *(weight.shape[0] for weight in net.weights)]
    latent = net.columns.shape[1]
    if not (
        all(width % WIDTHS == 0 for width in widths)
        and net.head_weight.shape[0] == latent == start.shape[-1]
        and start.ndim == 2
        and len(table.keep)
        and net.common.ndim == 2
        and net.common.shape[0] == start.shape[0]  # len() would fix the batch of an export
        and len(net.times) == len(table.keep)
        and not (start.requires_grad or (noise is not None and noise.requires_grad))
    ):
        return False
    rest = [*net.weights, *net.biases, net.head_weight, net.head_bias]
    inputs = (net.common, net.times, net.columns, start, noise)
    return known(net.packed, net.dtype, rest) and taken(net.packed, net.dtype, inputs)


def denoising_chain(net: ChainWeights, start: Tensor, noise: Tensor | None, table: ReverseTable) -> Tensor:
    """See ``api.denoising_chain``."""
    inputs = (net.common, net.times, net.columns, net.head_weight, net.head_bias, *net.weights, *net.biases)
    call = _Call(net, table)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _Chain.apply(call, start, noise, *inputs)
    return _forward(call, start, noise, False)[0]


class _Call:
    """A network as the operations take it, the table of the chain, and the packed forms. They are called where no gradients are recorded."""

    def __init__(self, net: ChainWeights, table: ReverseTable) -> None:
        self.net, self.table, self.low = net, table, net.dtype == torch.bfloat16
        self.common, self.times = net.common.detach().contiguous(), net.times.detach().contiguous()
        self.columns = net.columns.detach().mT.contiguous()
        self.rest = (net.weights, net.biases, net.head_weight, net.head_bias)

    def packed(self, backward: bool) -> list[Tensor]:
        """Those of the hidden layers, which all heads of a network share."""
        assert self.net.packed is not None
        kind = ("chain", self.low, backward)
        return self.net.packed.kept(kind, self.rest[0], lambda: ops().chain_pack(self.columns, *self.rest, self.low, backward))


def _forward(call: _Call, start: Tensor, noise: Tensor | None, record: bool) -> tuple[Tensor, list[Tensor]]:
    noise = None if noise is None else noise.detach().contiguous()
    weights, biases, head_weight, head_bias = call.rest
    return ops().chain_forward(
        call.common,
        call.times,
        call.columns,
        weights,
        biases,
        head_weight,
        head_bias,
        call.packed(False),
        start.detach().contiguous(),
        noise,
        *call.table,
        call.low,
        record,
    )


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, start: Tensor, noise: Tensor | None, *inputs: Tensor) -> Tensor:
        latents, kept = _forward(call, start, noise, True)
        ctx.call, ctx.kept = call, kept
        ctx.save_for_backward(start, noise, latents, *inputs)
        return latents

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        start, noise, latents, *inputs = ctx.saved_tensors
        needed, upstream = ctx.needs_input_grad[3:], upstreams[0]
        if torch.is_grad_enabled():  # for a second derivative
            common, times, columns, head_weight, head_bias, *rest = inputs
            half = len(rest) // 2
            net = call.net._replace(
                common=common,
                times=times,
                columns=columns,
                weights=rest[:half],
                biases=rest[half:],
                head_weight=head_weight,
                head_bias=head_bias,
            )
            return (
                None,
                None,
                None,
                *differentiable(reference.denoising_chain(net, start, noise, call.table), inputs, needed, upstream),
            )
        keep, drift, _ = call.table
        weights, biases, head_weight, head_bias = call.rest
        common, times, columns, d_weights, d_biases, d_head, d_head_bias = ops().chain_backward(
            call.columns,
            weights,
            biases,
            head_weight,
            head_bias,
            call.packed(True),
            latents,
            ctx.kept,
            upstream.contiguous(),
            keep,
            drift,
            call.low,
        )
        found = (common, times, columns, d_head, d_head_bias, *d_weights, *d_biases)
        return None, None, None, *(gradient if wanted else None for gradient, wanted in zip(found, needed))
