"""A learner's networks and optimisers as flat named tensors, and back: what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from saddlepoint.types import UserError


def gather(modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """``<module>.<parameter>`` and ``adam.<optimiser>.<index>.<slot>``. The tensors are those in use: clone what must not change."""
    state = {f"{owner}.{name}": p for owner, module in modules.items() for name, p in module.state_dict().items()}
    for owner, optimiser in optimisers.items():
        for index, slots in optimiser.state_dict()["state"].items():
            state |= {f"adam.{owner}.{index}.{slot}": value for slot, value in slots.items()}
    return state


def restore(
    state: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
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


class Stateful(Protocol):
    """A learner that counts its updates, draws from a generator, and counts rewards in a unit."""

    updates: int
    reward_unit: float
    generator: torch.Generator

    def _networks(self) -> dict[str, nn.Module]: ...

    def _optimisers(self) -> dict[str, torch.optim.Adam]: ...


def save_learner(learner: Stateful, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of everything that the next update depends on, with ``extra`` tensors of the learner's own."""
    state = gather(learner._networks(), learner._optimisers()) | dict(extra)
    state |= {"updates": torch.tensor(learner.updates), "generator": learner.generator.get_state()}
    state["reward_unit"] = torch.tensor(learner.reward_unit, dtype=torch.float64)
    return {name: value.detach().clone() for name, value in state.items()}


def load_learner(learner: Stateful, state: Mapping[str, Tensor], extra: Sequence[str]) -> dict[str, Tensor]:
    """Undo ``save_learner`` and return copies of the tensors named in ``extra``. Raises ``UserError`` where the state does not fit the learner."""
    try:
        found = {name: state[name].clone() for name in extra}
        restore(state, learner._networks(), learner._optimisers())
        learner.updates, learner.reward_unit = int(state["updates"]), float(state["reward_unit"])
        learner.generator.set_state(state["generator"].cpu())
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the saved learner does not fit this configuration or environment ({reason}).") from error
    return found
