"""A learner's networks and optimisers as flat named tensors, and back: what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from saddlepoint.nn.flat import Adam


def gather(modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer | Adam]) -> dict[str, Tensor]:
    """``<module>.<parameter>`` and ``adam.<optimiser>.<index>.<slot>``. The tensors are those in use: clone what must not change."""
    state = {f"{owner}.{name}": p for owner, module in modules.items() for name, p in module.state_dict().items()}
    for owner, optimiser in optimisers.items():
        for index, slots in optimiser.state_dict()["state"].items():
            state |= {f"adam.{owner}.{index}.{slot}": value for slot, value in slots.items()}
    return state


def restore(
    state: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer | Adam]
) -> None:
    """Undo ``gather``; other names in ``state`` are left alone. Raises ``RuntimeError``, ``KeyError`` or ``ValueError`` where it does not fit."""
    for owner, module in modules.items():
        module.load_state_dict({n.removeprefix(f"{owner}."): v for n, v in state.items() if n.startswith(f"{owner}.")})
    for owner, optimiser in optimisers.items():
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith(f"adam.{owner}."):
                _, _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = value.clone()  # Adam goes on in place
        optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
