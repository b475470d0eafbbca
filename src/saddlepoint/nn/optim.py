"""A network's parameters as one tensor, its optimiser, and its target copy: an update makes one call where it would make one for every layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from saddlepoint.nn.finite import require_finite
from saddlepoint.nn.ops import Packed

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def without_compiler(kind: type[Kind]) -> type[Kind]:
    """An optimiser of PyTorch's whose methods do not import ``torch.compile``'s tracer, which takes one to three seconds of a program's start.

    Each of these methods is wrapped in one that tells the tracer to pass it by. Optimisers are never inside of what is compiled here.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), bare | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


Adam, AdamW = without_compiler(torch.optim.Adam), without_compiler(torch.optim.AdamW)


class Flat:
    """The parameters of a module, one after another in ``whole``, and their gradients in ``whole.grad``: both (numbers,).

    From now on each parameter and its ``grad`` are views of these.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.names, self.parameters = map(list, zip(*module.named_parameters()))
        self.whole = torch.cat([p.detach().flatten() for p in self.parameters])
        self.whole.grad = torch.zeros_like(self.whole)
        self.packed = [packed for m in module.modules() if isinstance(packed := getattr(m, "packed", None), Packed)]
        for parameter, part, gradient in zip(self.parameters, self._split(self.whole), self._split(self.whole.grad)):
            parameter.data, parameter.grad = part, gradient

    def _split(self, whole: Tensor) -> list[Tensor]:
        parts = whole.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters)]

    def changed(self) -> None:
        """Mark packed weights stale after a change of ``whole``."""
        for packed in self.packed:
            packed.invalidate()

    @torch.no_grad()
    def follow(self, online: Flat, share: float) -> None:
        """Polyak averaging: this <- this + share * (online - this)."""
        self.whole.lerp_(online.whole, share)
        self.changed()


class Optimiser:
    """Adam (arXiv 1412.6980, PyTorch's fused form) on whole networks, which no number that is not finite ever enters."""

    def __init__(self, networks: dict[str, tuple[nn.Module, float]]):
        """``networks``: by name, the module and its learning rate."""
        self.flats = {name: Flat(module) for name, (module, _) in networks.items()}
        groups = [{"params": [self.flats[name].whole], "lr": rate} for name, (_, rate) in networks.items()]
        self.adam = Adam(groups, fused=True)

    def step(self, loss: Tensor, update: int, /, **losses: Tensor) -> None:
        """One step along the gradient of ``loss``. Raises ``NonFiniteError`` naming the first of ``losses``, or gradient, that is not finite at ``update``."""
        parameters = [p for flat in self.flats.values() for p in flat.parameters]
        found = iter(torch.autograd.grad(loss, parameters, materialize_grads=True))
        for flat in self.flats.values():  # in one copy, where ``backward`` adds each parameter's to zeros
            torch.cat([next(found).flatten() for _ in flat.parameters], out=flat.whole.grad)
        total = torch.stack([flat.whole.grad.sum() for flat in self.flats.values() if flat.whole.grad is not None]).sum()
        named = ((f"{owner}.{name}", p.grad) for owner, flat in self.flats.items() for name, p in zip(flat.names, flat.parameters))
        require_finite(update, {name: value.detach() for name, value in losses.items()}, total, named)
        self.adam.step()
        for flat in self.flats.values():
            flat.changed()


def tune_temperature(log_beta: Tensor, optimiser: torch.optim.Optimizer, entropy: Tensor, target: float) -> None:
    """One step of ``optimiser`` on  log beta * (entropy - target): too much entropy lowers the temperature (SAC, arXiv 1812.05905)."""
    optimiser.zero_grad(set_to_none=True)
    (log_beta * (entropy.detach().to(log_beta) - target)).backward()
    optimiser.step()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within it the modules' parameters are constants: a loss that is built here trains none of them."""
    parameters = [p for module in modules for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
