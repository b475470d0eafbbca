"""Pessimism about cost: an upper bound from an ensemble."""

from __future__ import annotations

import torch
from torch import Tensor


def ensemble_risk(values: Tensor, k: float = 1.0) -> Tensor:
    """R = mean_m + k * std_m over the members, unbiased std (0 for one member). (members, batch) -> (batch,).

    Off-policy cost critics underestimate; the deviation makes up for it (CAL, arXiv 2401.14758; ALGD, Eq. for R).
    """
    mean = values.mean(0)
    if len(values) == 1 or k == 0:  # a deviation and its gradient take as long as ten small operations
        return mean
    return mean + k * values.std(0, unbiased=True)


def cautious(members: Tensor, pair: bool) -> Tensor:
    """The largest estimate, or with ``pair`` the mean over all pairs of the pair's larger one. (constraints, members, batch) -> (constraints, batch)."""
    count = members.shape[1]
    if not pair or count == 1:
        return members.amax(1)
    # Of count estimates in rising order the k-th, from 0, is the larger one of k pairs.
    share = torch.arange(count, dtype=members.dtype, device=members.device) / (count * (count - 1) / 2)
    return (members.sort(1).values * share.view(-1, 1)).sum(1)
