"""Averaged weights: the world model that acts while another one learns."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from saddlepoint.mbdpo.world_model import WorldModel

EARLY_SHARE = 0.1
"""early in a run the average looks back on this share of the updates made, so that it leaves the random weights of the start behind"""


class Average:
    """An exponential average of ``source``'s weights, w <- w + max(1/N, 10/(10 + n)) (online - w) after update n. Target critics, which never act, are left
    out; running statistics, which are averages already, are copied."""

    def __init__(self, source: WorldModel, updates: int) -> None:
        """``updates`` is N, the updates that the average looks back."""
        self.source, self.updates = source, updates
        self.model = copy.deepcopy(source).requires_grad_(False)
        del self.model.target_critics
        if self.model.constraints:
            del self.model.target_cost_critics
        online = dict(source.named_parameters())
        self._averaged: list[Tensor] = list(self.model.parameters())
        self._online: list[Tensor] = [online[name] for name, _ in self.model.named_parameters()]

    @torch.no_grad()
    def follow(self, made: int) -> None:
        """Take in the weights after update number ``made``, counted from 0."""
        self._move(max(1 / self.updates, 1 / (1 + EARLY_SHARE * made)))

    @torch.no_grad()
    def restart(self) -> None:
        """Forget earlier weights: be the source."""
        self._move(1.0)

    def _move(self, share: float) -> None:
        torch._foreach_lerp_(self._averaged, self._online, share)
        for name in ("energy_mean", "energy_std", "value_scale"):
            getattr(self.model, name).copy_(getattr(self.source, name))
        self.model.changed()
