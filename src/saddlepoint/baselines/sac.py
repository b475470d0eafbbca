"""Soft actor-critic (arXiv 1801.01290) with a tuned temperature (arXiv 1812.05905). It sees no cost: what safety is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from saddlepoint.baselines.actor_critic import ActorCritic
from saddlepoint.baselines.config import SACConfig
from saddlepoint.baselines.losses import UpdateNoise
from saddlepoint.nn.optim import frozen
from saddlepoint.replay import Ahead
from saddlepoint.types import Batch, Metrics


class SAC(ActorCritic[SACConfig]):
    """Two critics, then the policy, then the temperature, then the targets."""

    system = "sac"
    needs_cost = False

    def update_batch(
        self, batch: Batch, noise: UpdateNoise, episode_cost: Tensor | None = None, ahead: Ahead | None = None
    ) -> Metrics:  # fmt: skip
        """One update; ``episode_cost`` and ``ahead`` are not looked at. The policy sees the new critics as constants."""
        batch, beta = self.encoded(batch), self.beta
        with torch.no_grad():
            following = self.policy.sample(batch.next_observation, noise.next)
        critic_loss = self.reward_loss(self.config, self.critic, self.critic_target, batch, following, beta)
        self.critic_optimiser.step(critic_loss, self.updates, reward_critic_loss=critic_loss)
        with frozen(self.critic):
            policy_loss, sample, least = self.soft_loss(self.policy, self.critic, batch.observation, noise.policy, beta)
            self.policy_optimiser.step(policy_loss, self.updates, policy_loss=policy_loss)
        self.value_size.follow(least)
        entropy = -sample.log_prob.detach().mean()
        self.tune_temperature(entropy)
        self.follow()
        return {
            "reward_critic_loss": critic_loss.detach(), "policy_loss": policy_loss.detach(),
            "entropy": entropy / self.shape.action, "beta": beta,
        }  # fmt: skip
