"""Initialisers and the map from a latent to a bounded action."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


def xavier_uniform(shape: tuple[int, ...], fan_in: int, fan_out: int, generator: torch.Generator) -> Tensor:
    """U(-b, b) with b = sqrt(6 / (fan_in + fan_out))  (Glorot and Bengio 2010)."""
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def truncated_normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """N(0, std^2) truncated at two standard deviations (the release means to truncate and does not: deviations.md, ALGD 22)."""
    return torch.nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std, generator=generator)


def fan_in_uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """U(-b, b) with b = 1 / sqrt(fan_in): the default of a linear layer in PyTorch."""
    bound = 1.0 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def listed(group: nn.ParameterList) -> list[Tensor]:
    """The parameters of a group. Its own iterator takes a microsecond an entry, in every pass of every network."""
    return [p for p in group._parameters.values() if p is not None]


def log_tanh_slope(x: Tensor) -> Tensor:
    """log(1 - tanh^2 x) = 2 (log 2 - x - softplus(-2 x)), which is stable, summed over the last axis: (..., action) -> (...)."""
    return 2 * (x.shape[-1] * math.log(2.0) - (x + torch.nn.functional.softplus(-2 * x)).sum(-1))


class ActionBox(NamedTuple):
    """Action bounds and the squashing  a = tanh(x) * scale + bias  between them. Fields (action,); bounds may be asymmetric."""

    scale: Tensor
    bias: Tensor

    @classmethod
    def from_bounds(cls, low: Tensor, high: Tensor) -> ActionBox:
        return cls((high - low) / 2, (high + low) / 2)

    @property
    def low(self) -> Tensor:
        return self.bias - self.scale

    @property
    def high(self) -> Tensor:
        return self.bias + self.scale

    def squash(self, latent: Tensor) -> Tensor:
        """(..., action) -> (..., action), inside the bounds."""
        return torch.tanh(latent) * self.scale + self.bias

    def slope(self, action: Tensor) -> Tensor:
        """da/dx of ``squash`` at the action that it gave: scale (1 - tanh^2 x) = (a - low)(high - a)/scale. Shape as ``action``."""
        return (action - self.low) * (self.high - action) / self.scale

    def log_jacobian(self, latent: Tensor) -> Tensor:
        """log |da/dx| of ``squash`` summed over the action: log scale + log(1 - tanh^2 x). (..., action) -> (...)."""
        return self.scale.log().sum() + log_tanh_slope(latent)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ActionBox:
        return ActionBox(self.scale.to(device, dtype), self.bias.to(device, dtype))
