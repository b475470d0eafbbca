"""Networks for the tests of nn/ops, and the one comparison that all of them use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from saddlepoint.nn import ops
from saddlepoint.nn.ops.native import chain, ensemble, normed, support

NATIVE = pytest.mark.skipif(not ops.native_supported(), reason="there are no native operations for this processor")
LOW = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not support.bfloat16_products(), reason="no products in bfloat16 on this processor"),
)
DTYPES = [torch.float32, LOW]
USERS = (chain, ensemble, normed)
"""the modules that call the registered operations"""


def require_equal(
    found: Sequence[Tensor], wanted: Sequence[Tensor], exact: Sequence[Tensor] | None = None, kinks: bool = False
) -> None:
    """In float32: equal to 1e-5 of the norm. With the ``exact`` results of float32 given: no further from these than
    1.5 times ``wanted``, products in
    bfloat16 by PyTorch, are. With ``kinks`` a ReLU near 0 goes either way, and gradients differ by a tenth."""
    assert len(found) == len(wanted)
    for i, (got, want) in enumerate(zip(found, wanted)):
        assert got.shape == want.shape, i
        if exact is None:
            assert float((got - want).detach().norm()) <= 1e-5 * float(want.detach().norm()) + 1e-7, i
            continue
        error, theirs, size = (float((x - exact[i]).detach().norm()) for x in (got, want, torch.zeros(())))
        assert error <= (0.15 if kinks else 0.01) * size + 1.5 * theirs, i


@contextmanager
def only(native: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within it every call of a registered operation is noted; on leaving, there must have been some, or none."""
    calls: list[str] = []
    behind = chain.ops  # which may be a corrupted one

    class Noted:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(behind(), name)

    with monkeypatch.context() as patch:
        for module in USERS:
            patch.setattr(module, "ops", Noted)
        yield calls
    assert bool(calls) == native


@contextmanager
def corrupted(operation: str, output: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it one number of one output of a registered operation is wrong."""

    def wrong(*arguments: Any) -> Any:
        found = getattr(torch.ops.saddlepoint, operation)(*arguments)
        outputs = list(found) if isinstance(found, tuple) else [found]
        target = outputs[output][0] if isinstance(outputs[output], list) else outputs[output]
        target.view(-1)[-1] += 0.01 * target.abs().max() * target.numel() ** 0.5 + 1e-3
        return found

    class Wrong:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return wrong if name == operation else getattr(torch.ops.saddlepoint, name)

    with monkeypatch.context() as patch:
        for module in USERS:
            patch.setattr(module, "ops", Wrong)
        yield


class Draw:
    """Random tensors, some of them leaves that need a gradient."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def leaf(self, *shape: int) -> Tensor:
        return (self(*shape) / shape[-1] ** 0.5).requires_grad_()

    def ensemble(
        self, members: int, inputs: int, hidden: Sequence[int], activation: Any, low: torch.dtype | None = None,
        norm: bool = False,
    ) -> ops.EnsembleWeights:  # fmt: skip
        sizes = [inputs, *hidden, 1]
        weights = [(self(members, i, o) / i**0.5).requires_grad_() for i, o in itertools.pairwise(sizes)]
        biases = [(0.3 * self(members, 1, o)).requires_grad_() for o in sizes[1:]]
        gains, shifts = (
            [(mean + 0.3 * self(members, 1, o)).requires_grad_() for o in hidden if norm] for mean in (1.0, 0.0)
        )
        return ops.EnsembleWeights(weights, biases, activation, ops.Packed(), low, gains, shifts)

    def chain(
        self, rows: int, steps: int, latent: int, hidden: Sequence[int], low: torch.dtype | None = None
    ) -> ops.ChainWeights:
        pairs = list(itertools.pairwise(hidden))
        return ops.ChainWeights(
            self.leaf(rows, hidden[0]),
            self.leaf(steps, hidden[0]),
            self.leaf(hidden[0], latent),
            [self.leaf(o, i) for i, o in pairs],
            [self.leaf(o) for _, o in pairs],
            self.leaf(latent, hidden[-1]),
            self.leaf(latent),
            ops.Packed(),
            low,
        )


def parameters(net: ops.EnsembleWeights | ops.ChainWeights) -> list[Tensor]:
    if isinstance(net, ops.EnsembleWeights):
        return net.parameters()
    return [net.common, net.times, net.columns, *net.weights, *net.biases, net.head_weight, net.head_bias]


def frozen(net: ops.EnsembleWeights) -> ops.EnsembleWeights:
    return net.with_groups([[p.detach() for p in group] for group in net.groups])


def table(steps: int) -> ops.ReverseTable:
    return ops.ReverseTable((0.9,) * steps, tuple(0.1 + 0.1 * k for k in range(steps)), (0.2,) * steps)
