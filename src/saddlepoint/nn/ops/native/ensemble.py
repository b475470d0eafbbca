"""``ensemble_mlp`` and ``ensemble_mse`` by the native operations (mlp.cpp)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from saddlepoint.nn.ops import reference
from saddlepoint.nn.ops.native.support import WIDTHS, known, ops, taken
from saddlepoint.nn.ops.types import EnsembleWeights

Gradients = list[Tensor | None]


def takes(net: EnsembleWeights, state: Tensor, action: Tensor, *others: Tensor) -> bool:
    """Whether the native operations serve this network at these inputs."""
    weights = net.weights
    if not (
        len(weights) > 1
        and weights[-1].shape[-1] == 1
        and all(w.ndim == 3 and w.shape[-1] % WIDTHS == 0 for w in weights[:-1])
        and state.ndim == 2
        and not state.requires_grad
        and not any(other.requires_grad for other in others)
    ):
        return False
    return known(net.packed, net.dtype, net.parameters()) and taken(net.packed, net.dtype, (state, action, *others))


def ensemble_mlp(net: EnsembleWeights, state: Tensor, action: Tensor) -> Tensor:
    """See ``api.ensemble_mlp``."""
    if torch.is_grad_enabled() and (action.requires_grad or _learning(net)):
        return _Values.apply(_Call(net), state, action, *net.parameters())
    return _forward(_Call(net), state, action, False, False)[0]


def ensemble_mse(net: EnsembleWeights, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
    """See ``api.ensemble_mse``."""
    if torch.is_grad_enabled() and _learning(net):
        return _Fit.apply(_Call(net), state, action, target, scale, *net.parameters())
    return scale * (_forward(_Call(net), state, action[None], False, False)[0][:, 0] - target).square().sum()


def _learning(net: EnsembleWeights) -> bool:
    return any(parameter.requires_grad for parameter in net.parameters())


class _Call:
    """A network as the operations take it, and its packed forms. They are called where no gradients are recorded."""

    def __init__(self, net: EnsembleWeights) -> None:
        self.net, self.silu, self.low = net, net.activation == "silu", net.dtype == torch.bfloat16
        self.weights, self.biases, self.norms = net.weights, net.biases, [*net.gains, *net.shifts]

    def packed(self, wide: int, backward: bool) -> list[Tensor]:
        assert self.net.packed is not None
        kind = ("ensemble", wide, self.low, backward)
        return self.net.packed.kept(kind, self.weights, lambda: ops().ensemble_pack(self.weights, wide, self.low, backward))

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> EnsembleWeights:
        """The network with other parameters, for the reference."""
        left = iter(parameters)
        groups = [list(itertools.islice(left, len(group))) for group in self.net.groups]
        return self.net.with_groups(groups)


def _forward(
    call: _Call, state: Tensor, action: Tensor, outputs: bool, slopes: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    state, action = state.detach().contiguous(), action.detach().contiguous()
    packed = call.packed(state.shape[1], False)
    return ops().ensemble_forward(
        call.weights, call.biases, call.norms, packed, state, action, call.silu, call.low, outputs, slopes
    )


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, state: Tensor, action: Tensor, *parameters: Tensor) -> Tensor:
        learning = any(ctx.needs_input_grad[3:])
        apart = call.silu or bool(call.norms)  # what the way back multiplies with is not the outputs
        values, outputs, slopes = _forward(call, state, action, learning or not apart, apart)
        ctx.call, ctx.outputs, ctx.slopes = call, outputs, slopes or outputs
        ctx.save_for_backward(state, action, *parameters)
        return values

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        state, action, *parameters = ctx.saved_tensors
        _, _, of_action, *of_parameters = ctx.needs_input_grad
        if torch.is_grad_enabled():  # for a second derivative
            inputs = [action, *parameters]
            values = reference.ensemble_mlp(call.with_parameters(tuple(parameters)), state, action)
            return None, None, *differentiable(values, inputs, [of_action, *of_parameters], upstreams[0])
        upstream, wide = upstreams[0].contiguous(), state.shape[1]
        turned = call.packed(wide, True)
        below, found = None, list[Tensor | None]([None] * len(parameters))
        if of_action:
            below = ops().ensemble_action_gradient(
                call.weights, call.norms, turned, ctx.slopes, upstream, wide, call.silu, call.low
            )
        if any(of_parameters):
            groups = ops().ensemble_weight_gradients(
                call.weights,
                call.biases,
                call.norms,
                turned,
                state.contiguous(),
                action.detach().contiguous(),
                ctx.outputs,
                ctx.slopes,
                upstream,
                call.silu,
                call.low,
            )
            found = [g if wanted else None for g, wanted in zip(itertools.chain(*groups), of_parameters)]
        return None, None, below, *found


class _Fit(torch.autograd.Function):
    """Forward and back in one pass over the rows; the gradients wait for the factor that the loss is given."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, state: Tensor, action: Tensor, target: Tensor, scale: float, *parameters: Tensor
    ) -> Tensor:
        loss, gradients = _fit(call, state, action, target, scale)
        ctx.call, ctx.scale, ctx.gradients = call, scale, gradients
        ctx.save_for_backward(state, action, target, *parameters)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Any, ...]:
        state, action, target, *parameters = ctx.saved_tensors
        needed, upstream = ctx.needs_input_grad[5:], upstreams[0]
        if torch.is_grad_enabled():
            loss = reference.ensemble_mse(ctx.call.with_parameters(tuple(parameters)), state, action, target, ctx.scale)
            return (None,) * 5 + tuple(differentiable(loss, parameters, needed, upstream))
        gradients, ctx.gradients = ctx.gradients, None  # given away, so that autograd need not copy them
        if gradients is None:  # a second time through a retained graph
            gradients = _fit(ctx.call, state, action, target, ctx.scale)[1]
        found = [gradient if wanted else None for gradient, wanted in zip(gradients, needed)]
        if float(upstream) != 1.0:
            found = [None if gradient is None else gradient * upstream for gradient in found]
        return (None,) * 5 + tuple(found)


def _fit(call: _Call, state: Tensor, action: Tensor, target: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients at the parameters."""
    wide, given = state.shape[1], [t.detach().contiguous() for t in (state, action, target)]
    packed, turned = call.packed(wide, False), call.packed(wide, True)
    loss, *groups = ops().ensemble_fit(
        call.weights, call.biases, call.norms, packed, turned, *given, scale, call.silu, call.low
    )
    return loss, list(itertools.chain(*groups))


def differentiable(value: Tensor, inputs: list[Tensor], needed: Any, upstream: Tensor) -> Gradients:
    """The gradients of ``value`` at the ``inputs`` that need one, themselves differentiable."""
    wanted = [tensor for tensor, need in zip(inputs, needed) if need]
    found = iter(torch.autograd.grad(value, wanted, upstream, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]
