"""What networks see of an observation, before their first layer: a fixed function of it and of the range seen so far."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Encoding = Literal["raw", "zoom", "objects"]


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


class Objects(Encoder):
    """``Zoom``, but of each ring of a lidar only its nearest objects: how near they are, and in which direction.

    A ring has ``bins`` readings in [0, 1], larger where an object is nearer, in equal sectors of the circle from the
    front to the left. A reading v no smaller than its two neighbours, u before it and w after it, stands for an object
    at the angle  (i + 1/2 + (w - u)/2v) 2 pi/bins, as a Safety-Gymnasium lidar shares an object's reading among three
    sectors. Networks see  n (1, cos, sin)  for n = 1 where v > 0, and for  n = clip((v - 1 + s)/s, 0, 1)  of the shares
    s of ``SHARES``, which resolve far objects by their direction and near ones by their distance.

    An MLP that is given the sectors has to learn anew for each of them what a hazard is (docs/budget-lab.md).
    """

    NEAREST = 2
    SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
    SEEN = 1e-6
    """from this reading on there is an object"""

    def __init__(self, size: int, lidars: Sequence[tuple[int, int]]) -> None:
        """``lidars``: the first entry and the number of readings of each ring, as in ``EnvShape.lidars``."""
        super().__init__()
        rings = [list(range(first, first + bins)) for first, bins in lidars]
        others = sorted(set(range(size)).difference(*rings))
        self.rest = Zoom(len(others))
        self.outputs = self.rest.outputs + 3 * self.NEAREST * (1 + len(self.SHARES)) * len(rings)
        self.register_buffer("others", torch.tensor(others, dtype=torch.int64), persistent=False)
        inverse = torch.tensor([1 / share for share in self.SHARES])
        # before the clip, n = start + slope v
        self.register_buffer("slope", torch.cat([torch.tensor([1 / self.SEEN]), inverse]), persistent=False)
        self.register_buffer("start", torch.cat([torch.zeros(1), 1 - inverse]), persistent=False)
        self.lengths = sorted({len(ring) for ring in rings})
        for bins in self.lengths:
            closed = [[ring[-1], *ring, ring[0]] for ring in rings if len(ring) == bins]  # each between its neighbours
            self.register_buffer(f"closed_{bins}", torch.tensor(closed).flatten(), persistent=False)
            # 1, cos and sin of a sector are the sines of phase + turn * sector
            turn = torch.tensor([0.0, 1.0, 1.0]) * (2 * math.pi / bins)
            phase = torch.tensor([0.5, 0.5, 0.0]) * math.pi + turn / 2
            self.register_buffer(f"turn_{bins}", turn, persistent=False)
            self.register_buffer(f"phase_{bins}", phase, persistent=False)

    others: Tensor
    slope: Tensor
    start: Tensor

    def observe(self, rows: Tensor) -> None:
        self.rest.observe(rows.index_select(-1, self.others))

    def forward(self, observation: Tensor) -> Tensor:
        seen = [self._nearest(observation, bins) for bins in self.lengths]
        return torch.cat([self.rest(observation.index_select(-1, self.others)), *seen], -1)

    def _nearest(self, observation: Tensor, bins: int) -> Tensor:
        """(..., observation) -> (..., features) of the rings with ``bins`` readings."""
        index, turn, phase = (getattr(self, f"{name}_{bins}") for name in ("closed", "turn", "phase"))
        closed = observation.index_select(-1, index).unflatten(-1, (-1, bins + 2))
        before, ring, after = closed[..., :-2], closed[..., 1:-1], closed[..., 2:]
        reading, sector = ring.masked_fill(ring < torch.maximum(before, after), 0.0).topk(self.NEAREST, -1)
        leans = (after - before).gather(-1, sector)
        place = torch.addcdiv(sector.to(ring.dtype), leans, reading.clamp(min=self.SEEN), value=0.5)
        towards = torch.addcmul(phase, place.unsqueeze(-1), turn).sin()
        near = torch.addcmul(self.start, reading.unsqueeze(-1), self.slope).clamp(0, 1)
        return (near.unsqueeze(-1) * towards.unsqueeze(-2)).flatten(-4)


def make_encoder(encoding: Encoding, size: int, lidars: Sequence[tuple[int, int]]) -> Encoder:
    """The choice of ``--encoding`` for observations of ``size`` entries; without ``lidars`` ``objects`` is ``zoom``."""
    if encoding == "objects" and lidars:
        return Objects(size, lidars)
    return Raw(size) if encoding == "raw" else Zoom(size)
