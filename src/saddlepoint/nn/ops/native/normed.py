"""``normed_mlp``, ``normed_chain`` and ``imagine`` by the native operations (normed.cpp, imagine.cpp)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saddlepoint.nn.ops import reference_normed as reference
from saddlepoint.nn.ops.native.ensemble import differentiable
from saddlepoint.nn.ops.native.support import WIDTHS, dense, ops, taken
from saddlepoint.nn.ops.types import ChainTable, Imagination, Imagined, NormedWeights
from saddlepoint.nn.products import linear


def takes(net: NormedWeights, parts: Sequence[Tensor], chosen: Sequence[int] | None, drop: Tensor | None) -> bool:
    """Whether the native operations serve this network at these inputs. A choice of members that learn is left to the
    reference."""
    if chosen is not None and torch.is_grad_enabled() and _learning(net):
        return False
    return _fits(net, (*parts, drop))


def _learning(net: NormedWeights) -> bool:
    return any(p.requires_grad for group in net.groups for p in group)


def _fits(net: NormedWeights, tensors: Sequence[Tensor | None]) -> bool:
    if net.packed is None or torch.compiler.is_compiling() or type(net.biases[0]) not in (Tensor, torch.nn.Parameter):
        return False
    if _key(net) in net.packed.forms:  # its parameters were looked at when that was made
        return taken(net.packed, net.dtype, tensors)
    parameters = [p for group in net.groups for p in group]
    multiples = all(gain.shape[-1] % WIDTHS == 0 for gain in net.gains)
    return multiples and taken(net.packed, net.dtype, (*parameters, *tensors)) and dense(parameters)


def _key(net: NormedWeights) -> tuple[object, ...]:
    return ("normed", net.dtype, *(p.data_ptr() for group in net.groups for p in group))


def native(net: NormedWeights) -> int:
    """The number of the network that C++ has, with its packed weights, kept until its owner says that the weights have changed."""
    assert net.packed is not None
    key = _key(net)
    found = net.packed.forms.get(key)
    if found is None:
        lead = [[p.detach() if net.members else p.detach().unsqueeze(0) for p in group] for group in net.groups]
        low = net.dtype == torch.bfloat16
        made = torch.classes.saddlepoint.Normed(lead, net.simplex, low)
        found = net.packed.forms[key] = (made, made.number())
    return found[1]


class Request(NamedTuple):
    """What one pass is given, laid out by rows."""

    parts: list[Tensor | None]
    """(rows, width) each; None where ``base`` has its product"""
    rows: int
    chosen: list[int]
    base: Tensor | None
    """(chosen, base rows, hidden): the first layer's bias and the products of the parts with fewer rows"""
    repeat: int
    """row r has row (r // repeat) % base rows of the base"""
    drop: Tensor | None
    """(chosen, rows, hidden), multiplied with the first layer's sums"""


def normed_mlp(
    net: NormedWeights, parts: Sequence[Tensor], chosen: Sequence[int] | None, drop: Tensor | None
) -> Tensor:
    """See ``api.normed_mlp``."""
    layout = spread(parts)
    if layout is None:
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        parts = [part.expand(*lead, -1) for part in parts]
        layout = spread(parts)
        assert layout is not None
    lead, whole, base_rows, repeat = layout
    rows, members = lead.numel(), list(range(max(net.members, 1)) if chosen is None else chosen)
    base = None
    if not all(whole):
        single = net.single()
        base = torch.stack([_base(single[m], parts, whole) for m in members]).reshape(len(members), base_rows, -1)
    flat = [part.reshape(rows, -1).contiguous() if full else None for part, full in zip(parts, whole)]
    request = Request(
        flat, rows, members, base, repeat, None if drop is None else drop.reshape(len(members), rows, -1).contiguous()
    )
    parameters = [p for group in net.groups for p in group]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*parts, *parameters)):
        if base is not None:  # it is the base that leads back to these
            first = [p.detach() if part is None else p for p, part in zip(net.first, flat)]
            net = net._replace(first=first, biases=[net.biases[0].detach(), *net.biases[1:]])
            parameters = [p for group in net.groups for p in group]
        values = _Pass.apply(net, request, base, *flat, *parameters)
    else:
        values = _forward(net, request, False)[0]
    values = values.view(len(members), *lead, values.shape[-1])
    return values if net.members else values[0]


def _base(net: NormedWeights, parts: Sequence[Tensor], whole: Sequence[bool]) -> Tensor:
    """The bias and the products of the parts that have fewer rows than there are: (..., hidden)."""
    low = net.dtype == torch.bfloat16
    few = [linear(part, weight, low=low) for part, weight, full in zip(parts, net.first, whole) if not full]
    return sum(few, start=net.biases[0])


def _arguments(net: NormedWeights, request: Request) -> tuple[Any, ...]:
    parts = [None if part is None else part.detach() for part in request.parts]
    base = None if request.base is None else request.base.detach()
    return native(net), parts, request.chosen, request.rows, base, request.repeat, request.drop


def _forward(
    net: NormedWeights, request: Request, keep: bool
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    return ops().normed_forward(*_arguments(net, request), keep)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: NormedWeights, request: Request, *tensors: Tensor | None) -> Tensor:
        values, *trail = _forward(net, request, True)
        ctx.net, ctx.request, ctx.trail = net, request, trail
        ctx.save_for_backward(values, *tensors)
        return values

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Any, ...]:
        net: NormedWeights = ctx.net
        request: Request = ctx.request
        values, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # for a second derivative
            return None, None, *differentiable(_again(net, request, tensors), tensors, needed, upstreams[0])
        of_base, count = needed[0], len(net.first)
        parts, parameters = needed[1 : 1 + count], needed[1 + count :]
        front, found_parts, found = ops().normed_backward(
            *_arguments(net, request), *ctx.trail, values, upstreams[0].contiguous(), list(parts), any(parameters)
        )
        base = None
        if of_base:
            assert request.base is not None
            base = front.view(len(request.chosen), -1, request.base.shape[1], request.repeat, front.shape[-1]).sum(
                (1, 3)
            )
        found = [g if net.members else g[0] for g in found] or [None] * len(parameters)
        return (
            None,
            None,
            base,
            *(g if wanted else None for g, wanted in zip(found_parts, parts)),
            *(g if wanted else None for g, wanted in zip(found, parameters, strict=True)),
        )


def _again(net: NormedWeights, request: Request, tensors: Sequence[Tensor | None]) -> Tensor:
    """The pass of ``request`` by the reference's layers, from its base, parts and parameters: (chosen, rows,
    outputs)."""
    base, *rest = tensors
    parts, left = rest[: len(net.first)], rest[len(net.first) :]
    groups: list[list[Tensor]] = []
    for group in net.groups:
        groups.append([p for p in left[: len(group)] if p is not None])
        left = left[len(group) :]
    single, low, values = net.with_groups(groups).single(), net.dtype == torch.bfloat16, []
    for i, member in enumerate(request.chosen):
        layers = single[member]
        rows = torch.arange(request.rows)
        pre = layers.biases[0] if base is None else base[i][rows // request.repeat % base.shape[1]]
        for part, weight in zip(parts, layers.first):
            pre = pre if part is None else pre + linear(part, weight, low=low)
        values.append(reference.after_first(layers, pre if request.drop is None else pre * request.drop[i]))
    return torch.stack(values)


def takes_chain(
    net: NormedWeights, part: int, common: Tensor, times: Tensor, start: Tensor, mask: Tensor | None
) -> bool:
    tensors = (common, times, start, mask)
    learning = torch.is_grad_enabled() and (_learning(net) or any(t is not None and t.requires_grad for t in tensors))
    plain = net.members == 0 and not net.simplex and net.biases[-1].shape[-1] == net.first[part].shape[-1]
    return plain and not learning and start.ndim == 2 and common.ndim == 2 and _fits(net, tensors)


def normed_chain(
    net: NormedWeights, part: int, common: Tensor, times: Tensor, start: Tensor, table: ChainTable, mask: Tensor | None
) -> Tensor:
    """See ``api.normed_chain``."""
    mask = None if mask is None else mask.expand_as(start).contiguous()
    return ops().normed_chain(
        native(net), part, common.contiguous(), times.contiguous(), start.contiguous(), mask, *table
    )


def takes_imagine(model: Imagination, z: Tensor, task: Tensor | None, actions: Tensor) -> bool:
    nets = _nets(model)
    same = len({(net.dtype, net.packed is None) for net in nets}) == 1
    singles = all(net.members == 0 for net in nets if net is not model.cost)
    gamma = model.gamma.dtype == torch.float32
    return (
        not torch.is_grad_enabled()
        and same
        and singles
        and gamma
        and actions.ndim == 4
        and all(_fits(net, (z, task, actions)) for net in nets)
    )


def _nets(model: Imagination) -> list[NormedWeights]:
    return [net for net in (model.dynamics, model.reward, model.energy, model.cost, model.end) if net is not None]


def imagine(model: Imagination, z: Tensor, task: Tensor | None, actions: Tensor) -> Imagined:
    """See ``api.imagine``."""
    horizon, steps = actions.shape[-2], torch.arange(actions.shape[-2])
    places = torch.linspace(-model.limit, model.limit, model.bins)
    factors = (model.gamma.unsqueeze(1) ** steps).contiguous()
    scaling = (model.energy_weight, float(model.energy_mean), 1 / float(model.energy_std), model.energy_clip)
    energy, cost, end = (None if net is None else native(net) for net in (model.energy, model.cost, model.end))
    task = None if task is None else task.contiguous()
    gain, paid, alive, after = ops().imagine(
        z.contiguous(),
        task,
        actions.contiguous(),
        native(model.dynamics),
        native(model.reward),
        energy,
        cost,
        end,
        places,
        factors,
        [model.cost_gamma**h for h in range(horizon)],
        scaling,
    )
    return Imagined(gain, None if cost is None else paid, None if end is None else alive, after)


def spread(parts: Sequence[Tensor]) -> tuple[torch.Size, list[bool], int, int] | None:
    """How parts (..., width) whose leading axes broadcast are laid out: the joint leading axes, which parts have all
    rows, and of the others together
    the rows and how often each is repeated, as ``Request`` has it. None where they fit no such layout."""
    return _spread(tuple(p.shape[:-1] for p in parts))


@functools.lru_cache(1024)  # few shapes come again and again, and this takes longer than a small network's pass
def _spread(shapes: tuple[torch.Size, ...]) -> tuple[torch.Size, list[bool], int, int] | None:
    lead = torch.broadcast_shapes(*shapes)
    whole = [shape.numel() == lead.numel() for shape in shapes]
    if all(whole):
        return lead, whole, 1, 1
    others = torch.broadcast_shapes(*(shape for shape, full in zip(shapes, whole) if not full))
    others = (1,) * (len(lead) - len(others)) + tuple(others)
    own = [axis for axis, (size, most) in enumerate(zip(others, lead)) if size == most > 1]
    start, end = (own[0], own[-1] + 1) if own else (0, 0)
    if not any(whole) or any(others[axis] != lead[axis] for axis in range(start, end)):
        return None
    return lead, whole, math.prod(lead[start:end]), math.prod(lead[end:])
