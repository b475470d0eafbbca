"""A network's parameters as one tensor, and Adam on such: an update then makes one call where it would make one for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Flat:
    """The parameters of a module, one after another in ``whole``, and their gradients in ``gradient``: both (numbers,).

    From now on each parameter and its ``grad`` are views of these: new numbers must be written into them. Gradients are 0 until then.
    """

    def __init__(self, module: nn.Module):
        self.names, parameters = zip(*module.named_parameters())
        self.parameters: list[nn.Parameter] = list(parameters)
        self.whole = torch.cat([p.detach().flatten() for p in self.parameters])
        self.gradient = torch.zeros_like(self.whole)
        self.gradients = self.split(self.gradient)
        for parameter, part, gradient in zip(self.parameters, self.split(self.whole), self.gradients):
            parameter.data, parameter.grad = part, gradient

    def written(self) -> None:
        """Count what was written into ``whole`` as a change of the parameters, which C++ passes look out for (nn/native.py)."""
        torch.autograd.graph.increment_version(self.parameters)

    def split(self, whole: Tensor) -> list[Tensor]:
        """Views of ``whole`` (numbers,), shaped as the parameters."""
        parts = whole.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters)]


class Adam:
    """``torch.optim.Adam(fused=True)`` with its defaults (arXiv 1412.6980) on whole networks, without its bookkeeping, which takes as long as a small step.

    It saves and loads what that does: the step and the moments of each parameter.
    """

    def __init__(self, groups: Sequence[tuple[Flat, float]]):
        """``groups``: networks and their rates."""
        self.groups, self.slots = groups, list[dict[str, Tensor]]()
        self.states = [(w.new_zeros((), dtype=torch.float32), torch.zeros_like(w), torch.zeros_like(w)) for w in (flat.whole for flat, _ in groups)]
        for (flat, _), (step, first, second) in zip(groups, self.states):
            moments = zip(flat.split(first), flat.split(second))
            self.slots += [{"step": step, "exp_avg": of_first, "exp_avg_sq": of_second} for of_first, of_second in moments]

    @torch.no_grad()
    def step(self) -> None:
        for (flat, rate), (step, first, second) in zip(self.groups, self.states):
            step.add_(1)
            torch._fused_adam_(
                [flat.whole], [flat.gradient], [first], [second], [], [step],
                lr=rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
            flat.written()

    def state_dict(self) -> dict[str, Any]:
        """In ``torch.optim.Adam``'s form: nothing of networks that never stepped."""
        return {"state": {index: slots for index, slots in enumerate(self.slots) if slots["step"] > 0}, "param_groups": []}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``. Raises ``KeyError`` or ``RuntimeError`` where it does not fit."""
        for index, slots in enumerate(self.slots):
            saved = state["state"].get(index)
            for name, slot in slots.items():
                slot.copy_(saved[name]) if saved else slot.zero_()
