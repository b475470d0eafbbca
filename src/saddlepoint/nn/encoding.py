"""What networks see of an observation, before their first layer: a fixed function of it and of the range seen so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

Encoding = Literal["raw", "zoom"]


class Encoder(nn.Module, ABC):
    """(..., observation) -> (..., outputs). Statistics are buffers, which a checkpoint keeps and an export holds."""

    outputs: int

    @abstractmethod
    def forward(self, observation: Tensor) -> Tensor: ...

    @abstractmethod
    def observe(self, rows: Tensor) -> None:
        """Count in new observations (rows, observation)."""


class Raw(Encoder):
    """The observation itself."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.outputs = size

    def forward(self, observation: Tensor) -> Tensor:
        return observation

    def observe(self, rows: Tensor) -> None:
        pass


class Zoom(Encoder):
    """x, and the outer tenth of its range at either end, tenfold:  clip((u - 0.9)/0.1, 0, 1) and clip((0.1 - u)/0.1, 0, 1),  u = (x - low)/(high - low).

    Sensors such as a lidar saturate near what matters most: inside a hazard of PointGoal1 a reading is 0.933 to 1, just outside 0.917. An MLP
    resolves that on its own layouts only; with this encoding it does on new ones (docs/budget-lab.md has the numbers). ``low`` and ``high`` are the
    range seen so far.
    """

    SHARE = 0.1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.outputs = 3 * size
        self.register_buffer("low", torch.full((size,), torch.inf))
        self.register_buffer("high", torch.full((size,), -torch.inf))

    low: Tensor
    high: Tensor

    def observe(self, rows: Tensor) -> None:
        self.low.copy_(torch.minimum(self.low, rows.amin(0)))
        self.high.copy_(torch.maximum(self.high, rows.amax(0)))

    def forward(self, observation: Tensor) -> Tensor:
        span = self.high - self.low
        place = torch.where(span > 0, (observation - self.low) / span, 0.5)  # an entry that never moved has no ends
        ends = torch.cat([place - (1 - self.SHARE), self.SHARE - place], -1) / self.SHARE
        return torch.cat([observation, ends.clamp(0, 1)], -1)


ENCODERS: dict[str, type[Encoder]] = {"raw": Raw, "zoom": Zoom}
"""choices of ``--encoding``, made from the size of an observation"""
