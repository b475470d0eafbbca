"""The baselines' Gaussian policy as one function of tensors, the squash into the action box inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saddlepoint.baselines.actor_critic import ActorCritic
from saddlepoint.nn.exportable import Exportable, ExportMode

EXAMPLES = 3
"""rows of the example inputs: not 1, which would be taken for a constant"""


class GaussianAction(nn.Module):
    """(batch, observation) and, for a sample, noise (batch, action) -> squash(mean), or squash(mean + std * noise)."""

    def __init__(self, agent: ActorCritic[Any]) -> None:
        super().__init__()
        self.encoder, self.policy = agent.encoder, agent.policy

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, log_std = self.policy(self.encoder(observation))
        return self.policy.box.squash(mean if noise is None else mean + log_std.exp() * noise)


def export_module(learner: ActorCritic[Any], mode: ExportMode) -> Exportable:
    """The policy that acts in ``mode``; a sample's noise comes in from outside."""
    inputs = {"observation": torch.zeros(EXAMPLES, learner.shape.observation)}
    if mode == "stochastic":
        inputs["noise"] = torch.zeros(EXAMPLES, learner.shape.action)
    return Exportable(GaussianAction(learner), inputs, "(batch, action)" if mode == "stochastic" else "")
