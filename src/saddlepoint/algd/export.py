"""ALGD's policy as one function of tensors: the denoising chain unrolled, the squash into the action box inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.policy import ChainNoise
from saddlepoint.nn.exportable import Exportable, ExportMode

EXAMPLES = 3
"""rows of the example inputs: not 1, which would be taken for a constant"""


class StochasticChain(nn.Module):
    """(batch, observation), noise (batch, K + 1, action) -> a sample of the policy: ``DiffusionPolicy.sample``."""

    def __init__(self, agent: ALGD) -> None:
        super().__init__()
        self.encoder, self.policy = agent.encoder, agent.policy

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        drawn = noise.transpose(0, 1)
        return self.policy.sample(self.encoder(observation), ChainNoise(drawn[0], drawn[1:]))


class NoiseFreeChain(nn.Module):
    """(batch, observation) -> the chain at its means from latent 0: ``DiffusionPolicy.mean_action``."""

    def __init__(self, agent: ALGD) -> None:
        super().__init__()
        self.encoder, self.policy = agent.encoder, agent.policy

    def forward(self, observation: Tensor) -> Tensor:
        return self.policy.mean_action(self.encoder(observation))


class BestOfN(nn.Module):
    """(batch, observation), noise (batch, N, K + 1, action) -> of N samples the one of least energy, as in ``ALGD.act``."""

    def __init__(self, agent: ALGD) -> None:
        super().__init__()
        self.chain, self.encoder = StochasticChain(agent), agent.encoder
        self.critic, self.cost_critic = agent.critic, agent.cost_critic
        self.energy, self.constraint, self.samples = agent.energy, agent.constraint, agent.config.evaluation_samples

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        n = self.samples
        rows = observation.unsqueeze(1).expand(-1, n, -1).flatten(0, 1)  # (batch * N, observation)
        actions = self.chain(rows, noise.flatten(0, 1))
        state = self.encoder(rows)
        reward, cost = self.critic(state, actions[None]), self.cost_critic(state, actions[None])
        energy = self.energy(reward, cost, self.constraint(rows))[0]
        best = energy.unflatten(0, (-1, n)).argmin(1)
        actions = actions.unflatten(0, (-1, n))
        return actions.gather(1, best.view(-1, 1, 1).expand(-1, 1, actions.shape[-1]))[:, 0]


def export_module(learner: ALGD, mode: ExportMode) -> Exportable:
    """The policy that acts in ``mode``. Its noise comes in from outside, also that of a deterministic ``best_of_n``."""
    cfg, shape = learner.config, learner.shape
    observation = torch.zeros(EXAMPLES, shape.observation)
    draws = "row 0 the start of the chain, row 1 + k the noise of step k"
    if mode == "stochastic":
        inputs = {"observation": observation, "noise": torch.zeros(EXAMPLES, cfg.steps + 1, shape.action)}
        return Exportable(StochasticChain(learner), inputs, f"(batch, {cfg.steps + 1}, action): {draws}")
    if cfg.evaluation == "zero":
        return Exportable(NoiseFreeChain(learner), {"observation": observation}, "")
    n = cfg.evaluation_samples
    inputs = {"observation": observation, "noise": torch.zeros(EXAMPLES, n, cfg.steps + 1, shape.action)}
    return Exportable(BestOfN(learner), inputs, f"(batch, {n}, {cfg.steps + 1}, action): for each of {n} samples, {draws}")
