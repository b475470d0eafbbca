"""Packed weights: the layout that a native kernel reads, kept until the weights change."""

from __future__ import annotations

from typing import Any


class Packed:
    """The packed forms of one network's weights. The network owns it and calls ``invalidate`` after every change of its weights.

    A copy of the network gets an empty one: packed forms are never shared.
    """

    def __init__(self) -> None:
        self.forms: dict[Any, Any] = {}

    def invalidate(self) -> None:
        """Mark every packed form stale: an optimiser step, a load or a Polyak step has changed the weights."""
        self.forms.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return Packed()
