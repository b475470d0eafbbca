"""An ensemble with its target copy and its optimiser: what fits values and what the policy climbs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from saddlepoint.nn.critics import Activation, Ensemble, Fit, Trace, action_gradient, fit, trace
from saddlepoint.nn.native import tell_of_steps


class Critic:
    """Q_m(s, a) for ``members`` members, and slowly following targets Q'_m."""

    def __init__(
        self, members: int, state: int, action: int, hidden: tuple[int, ...], activation: Activation, rate: float,
        generator: torch.Generator, device: torch.device, dtype: torch.dtype,
    ):  # fmt: skip
        self.online = Ensemble(members, state, action, hidden, activation, generator).to(device, dtype)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.online.parameters(), lr=rate, fused=True)
        tell_of_steps(self.optimiser)

    def fuse(self) -> None:
        """Have the C++ passes from now on (``Ensemble.fuse``)."""
        self.online.fuse()
        self.target.fuse()

    def values(self, state: Tensor, action: Tensor) -> Trace:
        """Q at (batch, state), (batch, action): ``values`` (members, 1, batch), and what ``slope`` needs."""
        return trace(self.online.layers(), state, action[None], self.online.activation)

    def target_values(self, state: Tensor, action: Tensor) -> Tensor:
        """Q' at (batch, state), (batch, action): (members, batch)."""
        return trace(self.target.layers(), state, action[None], self.target.activation, "nothing").values[:, 0]

    def slope(self, saved: Trace, upstream: Tensor) -> Tensor:
        """sum_m upstream_m * dQ_m/da, with ``upstream`` (members, batch): (batch, action)."""
        online = self.online
        return action_gradient(online.layers(), saved, upstream[:, None], online.activation, online.state)[0]

    def fit(self, state: Tensor, action: Tensor, wanted: Tensor, scale: float) -> Fit:
        """scale * sum over members and batch of (Q_m - wanted_m)^2, with ``wanted`` (members, batch)."""
        return fit(self.online.layers(), state, action, wanted, scale, self.online.activation)

    def follow(self, share: float) -> None:
        """Q' <- Q' + share * (Q - Q'), parameter by parameter."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), share)
