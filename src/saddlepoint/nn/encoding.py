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
        for name in ("start", "slope", "shift"):  # of both ends: slope (x - start) + shift, from low and high
            self.register_buffer(name, torch.zeros(2 * size), persistent=False)
        self._measure()
        self.register_load_state_dict_post_hook(_loaded)

    low: Tensor
    high: Tensor
    start: Tensor
    slope: Tensor
    shift: Tensor

    def observe(self, rows: Tensor) -> None:
        self.low.copy_(torch.minimum(self.low, rows.amin(0)))
        self.high.copy_(torch.maximum(self.high, rows.amax(0)))
        self._measure()

    def _measure(self) -> None:
        slope = 1 / (self.SHARE * (self.high - self.low))
        moved = (slope > 0) & slope.isfinite()  # an entry that never moved, or by less than float32 can divide by, has no ends
        slope = torch.where(moved, slope, 0)
        self.start.copy_(torch.where(moved, self.low, 0).repeat(2))
        self.slope.copy_(torch.cat([slope, -slope]))
        self.shift.copy_(torch.cat([moved * (1 - 1 / self.SHARE), moved * 1.0]))

    def forward(self, observation: Tensor) -> Tensor:
        ends = torch.addcmul(self.shift, torch.cat([observation, observation], -1) - self.start, self.slope)
        return torch.cat([observation, ends.clamp(0, 1)], -1)


def _loaded(module: Zoom, keys: object) -> None:
    module._measure()


ENCODERS: dict[str, type[Encoder]] = {"raw": Raw, "zoom": Zoom}
"""choices of ``--encoding``, made from the size of an observation"""
