"""What a picture needs of an ALGD agent: how far its risk is over the budget, and the way that the denoising takes. Nothing here changes the agent."""

from __future__ import annotations

import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.policy import ChainNoise


@torch.no_grad()
def excess(agent: ALGD, state: Tensor, action: Tensor) -> Tensor:
    """max_c R_c(s, a) - h_c, by how much the risk is over its budget: (batch, observation), (batch, action) -> (batch,)."""
    risk = agent.risk(state, action)
    return (risk - agent.budget.to(risk).view(-1, 1)).amax(0)


@torch.no_grad()
def paths(agent: ALGD, state: Tensor, noise: ChainNoise) -> Tensor:
    """Every point of the denoising as an action, (K + 1, batch, action), from the squashed start in row K to row 0.

    Row 0 is what ``act`` returns in mode ``stochastic`` when it draws the same noise (``policy.draw``).
    """
    return agent.policy.box.squash(agent.policy.path(state, noise))
