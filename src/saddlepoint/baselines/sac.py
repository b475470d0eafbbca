"""Soft actor-critic, and its Lagrangian forms: SAC-Lag and SAC-PID-Lag."""

from __future__ import annotations

import torch
from torch import Tensor

from saddlepoint.baselines.actor_critic import ActorCritic, UpdateNoise
from saddlepoint.baselines.config import SACConfig, SACLagConfig, SACPIDConfig
from saddlepoint.baselines.constrained import Constrained
from saddlepoint.baselines.critic import Fit
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.types import Batch, EnvShape, Metrics


class SAC(ActorCritic[SACConfig]):
    """Soft actor-critic (arXiv 1801.01290) with a tuned temperature (arXiv 1812.05905). It sees no cost: what safety is measured against."""

    system = "sac"
    needs_cost = False

    def __init__(
        self, config: SACConfig, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, compile: bool = False,
    ):  # fmt: skip
        super().__init__(config, shape, budgets, seed, device, dtype, compile)
        self.critic_step = self._compile(self._critic_step)
        self.policy_step = self._compile(self._policy_step)

    @torch.no_grad()
    def _critic_step(self, batch: Batch, noise: Tensor, beta: Tensor) -> Fit:
        return self.fit_reward(batch, self.policy.sample(batch.next_observation, noise), beta)

    @torch.no_grad()
    def _policy_step(self, batch: Batch, noise: Tensor, beta: Tensor) -> tuple[Fit, Tensor]:
        """Loss  mean[ beta log pi(a|s) - min_j Q_j(s, a) ],  a ~ pi(s), its gradients, and the entropy."""
        sample = self.policy.sample(batch.observation, noise)
        least, slope = self.reward_slope(batch.observation, sample.action)
        entropy = -sample.log_prob.mean()
        gradients = self.policy.gradients(batch.observation, sample, -slope, beta)
        return Fit(-beta * entropy - least.mean(), gradients), entropy

    def update_batch(self, batch: Batch, noise: UpdateNoise, episode_cost: Tensor | None = None) -> Metrics:
        """Critics, then the policy with the new critics as constants, then the temperature, then the targets."""
        optimisers, beta = self._optimisers(), self.beta
        critic = self.critic_step(batch, noise.next, beta)
        self.descend(optimisers, {"reward_critic": critic})
        policy, entropy = self.policy_step(batch, noise.policy, beta)
        self.descend(optimisers, {"policy": policy})
        self.tune_temperature(entropy)
        self.follow()
        return {
            "reward_critic_loss": critic.loss, "policy_loss": policy.loss, "entropy": entropy / self.shape.action, "beta": beta,
        }  # fmt: skip


class SACLag(Constrained[SACLagConfig]):
    """SAC on the Lagrangian  -Q + lambda (R - h),  lambda by dual ascent (Ha et al., arXiv 2002.08550).

    The loss is not divided by 1 + lambda, as some programs do: rewards keep their scale beside the temperature.
    """

    system = "sac-lag"

    def weight(self, multiplier: Tensor, violation: Tensor) -> Tensor:
        return multiplier


class SACPID(Constrained[SACPIDConfig]):
    """SAC-Lag whose lambda answers the violation as a PID controller does (Stooke, Achiam, Abbeel, arXiv 2007.03964).

    The violation is what an episode of late cost, as in the paper, or the cost critic's estimate (``multiplier_actions``), at every update.
    """

    system = "sac-pid"

    def weight(self, multiplier: Tensor, violation: Tensor) -> Tensor:
        return multiplier
