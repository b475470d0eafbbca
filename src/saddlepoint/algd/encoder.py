"""What ALGD's networks see of an observation, with the budget where it ends with one."""

from __future__ import annotations

import torch
from torch import Tensor

from saddlepoint.constrained.dial import Dial, hats
from saddlepoint.nn.encoding import Encoder, Encoding, make_encoder
from saddlepoint.types import EnvShape

FEATURES = 9
"""hat functions by which a network sees the budget"""


class DialEncoder(Encoder):
    """``inner`` of an observation without its last entry, the budget, and ``FEATURES`` hats of that budget."""

    def __init__(self, inner: Encoder, dial: Dial) -> None:
        super().__init__()
        self.inner, self.dial = inner, dial
        self.outputs = inner.outputs + FEATURES

    def forward(self, observation: Tensor) -> Tensor:
        return torch.cat([self.inner(observation[..., :-1]), hats(self.dial.place(observation[..., -1]), FEATURES)], -1)

    def observe(self, rows: Tensor) -> None:
        self.inner.observe(rows[..., :-1])


def encoder_of(encoding: Encoding, shape: EnvShape, dial: Dial | None) -> Encoder:
    """What the networks of a learner see, with the budget where observations end with one."""
    if dial is None:
        return make_encoder(encoding, shape.observation, shape.lidars)
    return DialEncoder(make_encoder(encoding, shape.observation - 1, shape.lidars), dial)
