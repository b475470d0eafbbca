"""Noise that goes from step to step of an episode: with it a policy that is sampled keeps to what it does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHARE = 20
"""noise is remembered for no more than this part of an episode: a policy that keeps to one draw for long learns little of others"""


def correlation(memory: float, horizon: int | None) -> float:
    """rho = 1 - 1/m, the correlation of noise that is remembered for m steps:  sum_k rho^k = m = max(1, min(memory, horizon / 20))."""
    steps = memory if horizon is None else min(memory, horizon / SHARE)
    return 1 - 1 / max(steps, 1.0)


def carried(drawn: Tensor, memory: Tensor, correlation: float) -> tuple[Tensor, Tensor]:
    """z_t = rho z_{t-1} + sqrt(1 - rho^2) xi, standard normal as xi is; and the memory of the next step.

    ``drawn`` xi (envs, n) is standard normal, ``memory`` (envs, n + 1) is z_{t-1} and 1, or zeros at the start of an episode, where z = xi.
    Returns (envs, n), and (envs, n + 1) in the memory's type. An autoregressive process of order 1.
    """
    before, begun = memory[:, :-1].to(drawn), memory[:, -1:].to(drawn)
    share = 1 - (1 - math.sqrt(1 - correlation**2)) * begun  # of xi: all of it at the start
    noise = torch.addcmul(correlation * before, share, drawn)
    return noise, torch.cat([noise, torch.ones_like(begun)], dim=1).to(memory)
