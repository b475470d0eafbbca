"""What a picture needs of an ALGD agent: how far its risk is over the budget. Nothing here changes the agent."""

from __future__ import annotations

import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD


@torch.no_grad()
def excess(agent: ALGD, state: Tensor, action: Tensor) -> Tensor:
    """max_c R_c(s, a) - h_c, by how much the risk is over its budget: (batch, observation), (batch, action) -> (batch,)."""
    risk = agent.risk(state, action)
    budget = agent.constraint(state).budget
    return (risk - budget.to(risk).view(len(budget), -1)).amax(0)
