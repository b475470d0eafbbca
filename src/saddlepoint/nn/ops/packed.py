"""Packed weights: the layout that a native kernel reads, kept until the weights change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Packed:
    """The packed forms of one network's weights. The network owns it and calls ``invalidate`` after every change of its weights.

    A copy of the network gets an empty one: packed forms are never shared.
    """

    def __init__(self) -> None:
        self.forms: dict[Any, Any] = {}

    def invalidate(self) -> None:
        """Mark every packed form stale: an optimiser step, a load or a Polyak step has changed the weights."""
        self.forms.clear()

    def kept(self, kind: Any, weights: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What ``make`` makes of ``weights``, from the last time unless they have changed.

        The weights are kept beside it, so that no other tensor can take their addresses, by which it is found.
        """
        key = (kind, *(weight.data_ptr() for weight in weights))
        found = self.forms.get(key)
        if found is None:
            with torch.no_grad():
                found = self.forms[key] = (make(), [weight.detach() for weight in weights])
        return found[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return Packed()
