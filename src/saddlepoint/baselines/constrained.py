"""SAC with a cost ensemble and a multiplier for each constraint: the update that SAC-Lag, SAC-PID-Lag and CAL have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from saddlepoint.baselines.actor_critic import ActorCritic
from saddlepoint.baselines.config import CALConfig, ConstrainedConfig, SACLagConfig, SACPIDConfig
from saddlepoint.baselines.losses import UpdateNoise, cost_loss, risks
from saddlepoint.constrained.budget import CostBudget, cost_units, violation_ceiling
from saddlepoint.constrained.lagrangian import effective_multiplier
from saddlepoint.nn.optim import frozen
from saddlepoint.nn.state import load_learner, save_learner
from saddlepoint.replay import Ahead, Replay
from saddlepoint.types import Batch, EnvShape, Metrics, per_constraint

K = TypeVar("K", bound=ConstrainedConfig)


class Constrained(ActorCritic[K]):
    """Its learners differ in ``weight`` and in what moves lambda (the config's ``multiplier_update``)."""

    def __init__(
        self, config: K, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, compile: bool = False,
    ):  # fmt: skip
        super().__init__(config, shape, budgets, seed, device, dtype, compile)
        self.cost_critic, self.cost_target = self.critics["cost_critic"], self.targets["cost_critic"]
        self.cost_loss = self.compile(cost_loss)
        self.budget = torch.tensor([b.critic for b in budgets], dtype=dtype, device=self.device)
        self.unit = cost_units(budgets, config.cost_unit).to(self.budget)
        self.ceiling = violation_ceiling(budgets, config.largest_violation).to(self.budget)
        self.multiplier_update = config.multiplier_update()
        self.multiplier_state = self.multiplier_update.start(config.multiplier, shape.constraints)

    @abstractmethod
    def weight(self, multiplier: Tensor, violation: Tensor) -> Tensor:
        """What the policy pays for a unit of cost, from lambda and the mean violation in such units: (constraints,) each. A constant to its gradient."""

    @property
    def multiplier(self) -> Tensor:
        """lambda, (constraints,) float64."""
        return self.multiplier_update.value(self.multiplier_state)

    def risk(self, state: Tensor, action: Tensor) -> Tensor:
        """R(s, a) = mean_m + k std_m of every constraint's ensemble: (constraints, batch)."""
        return self._risk(self.encoder(state), action)

    def _risk(self, state: Tensor, action: Tensor) -> Tensor:
        return risks(self.cost_critic, state, action, len(self.budgets), self.config.risk_std)

    def update_batch(
        self, batch: Batch, noise: UpdateNoise, episode_cost: Tensor | None = None, ahead: Ahead | None = None
    ) -> Metrics:  # fmt: skip
        """Critics; the policy on  mean[ beta log pi - min_j Q_j ] + sum_c weight_c (mean R_c - h_c)/unit_c;  temperature; lambda; targets.

        ``episode_cost`` (constraints,) in the units of h is the measured cost of recent episodes (``Replay.spent``); with ``multiplier_actions`` "recent" it
        moves lambda. ``ahead`` is what followed the transitions where the cost critics look further than one step.
        """
        assert (episode_cost is not None) == (self.config.multiplier_actions == "recent")
        batch, beta, multiplier = self.encoded(batch), self.beta, self.multiplier
        with torch.no_grad():
            following = self.policy.sample(batch.next_observation, noise.next)
        reward = self.reward_loss(self.config, self.critic, self.critic_target, batch, following, beta)
        if ahead is None:
            ahead = Ahead.of(batch, self.config.cost_gamma)
        else:
            ahead = ahead._replace(observation=self.encoder(ahead.observation))
            with torch.no_grad():
                following = self.policy.sample(ahead.observation, noise.next)
        cost = self.cost_loss(self.config, self.cost_critic, self.cost_target, batch, ahead, following)
        self.critic_optimiser.step(reward + cost, self.updates, reward_critic_loss=reward, cost_critic_loss=cost)

        with frozen(self.critic, self.cost_critic):
            soft, sample, least = self.soft_loss(self.policy, self.critic, batch.observation, noise.policy, beta)
            own = self._risk(batch.observation, sample.action).mean(-1)
            replayed = self.config.multiplier_actions == "replay"
            risk = self._risk(batch.observation, batch.action).mean(-1) if replayed else own.detach()
            violation = (risk if episode_cost is None else episode_cost) - self.config.budget_share * self.budget
            weight = self.weight(multiplier.to(self.budget), violation / self.unit) * self.value_size.value
            loss = soft + (weight * (own - self.budget) / self.unit).sum()
            self.policy_optimiser.step(loss, self.updates, policy_loss=loss)
        self.value_size.follow(least)

        entropy = -sample.log_prob.detach().mean()
        self.tune_temperature(entropy)
        self.multiplier_state = self.multiplier_update.step(self.multiplier_state, (violation.minimum(self.ceiling) / self.unit).cpu())
        self.follow()
        found = {"multiplier": multiplier, "effective_multiplier": weight / self.value_size.value, "risk": risk, "violation": violation}
        return {
            "reward_critic_loss": reward.detach(), "cost_critic_loss": cost.detach(), "policy_loss": loss.detach(),
            "entropy": entropy / self.shape.action, "beta": beta, **self.value_size.metrics(), **per_constraint(found),
        }  # fmt: skip

    def episode_cost(self, replay: Replay) -> Tensor | None:
        if self.config.multiplier_actions != "recent":
            return None
        return replay.spent(self.budgets, self.config.recent_steps).to(self.budget)

    @torch.no_grad()
    def predict(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """As ``ActorCritic``, and ``cost`` (batch, constraints): the members' mean, discounted."""
        state, action_ = self.encoder(observation.to(self.device, self.dtype)), action.to(self.device, self.dtype)
        cost = risks(self.cost_critic, state, action_, len(self.budgets), 0.0)
        return super().predict(observation, action) | {"cost": cost.T}

    def state_dict(self) -> dict[str, Tensor]:
        """As ``ActorCritic``, and the multiplier's state."""
        extra = {f"multiplier.{name}": value for name, value in self.multiplier_state.items()}
        return save_learner(self, extra | {"log_beta": self.log_beta} | self.value_size.state())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict``. Raises ``UserError`` where the state is of another configuration or environment."""
        extra = load_learner(self, state, (*(f"multiplier.{name}" for name in self.multiplier_state), "log_beta", *self.value_size.names))
        self.value_size.load(extra)
        self.multiplier_state = {name: extra[f"multiplier.{name}"] for name in self.multiplier_state}
        with torch.no_grad():
            self.log_beta.copy_(extra["log_beta"])


class SACLag(Constrained[SACLagConfig]):
    """SAC on the Lagrangian  -Q + lambda (R - h),  lambda by dual ascent (Ha et al., arXiv 2002.08550).

    The loss is not divided by 1 + lambda, as some programs do: rewards keep their scale beside the temperature.
    """

    system = "sac-lag"

    def weight(self, multiplier: Tensor, violation: Tensor) -> Tensor:
        return multiplier


class SACPID(Constrained[SACPIDConfig]):
    """SAC-Lag whose lambda answers the violation as a PID controller does (Stooke, Achiam, Abbeel, arXiv 2007.03964).

    The violation is measured on recent episodes, as in the paper, or is the cost critic's estimate (``multiplier_actions``), at every update.
    """

    system = "sac-pid"

    def weight(self, multiplier: Tensor, violation: Tensor) -> Tensor:
        return multiplier


class CAL(Constrained[CALConfig]):
    """CAL: conservative augmented Lagrangian (Wu et al., "Off-Policy Primal-Dual Safe Reinforcement Learning", ICLR 2024, arXiv 2401.14758).

    1. Cost is estimated from above,  Qc_UCB = mean_m Qc_m + k std_m Qc_m  over an ensemble (``risk_std``), for the policy and for lambda.
    2. The policy descends an augmented Lagrangian of weight c (``rho``). Its gradient is as in SAC-Lag with lambda rectified,
       lambda - min(lambda, c mean[h - Qc_UCB]) = [lambda + c (mean[Qc_UCB] - h)]_+,  one number a batch: the constraint is on the mean.

    ALGD's penalty has the same slope, but at each state and action by itself. The means are over the policy's actions, as ALGD's are; the released
    program takes replayed ones (``multiplier_actions``, preset ``released``), and 10 to 20 updates a step (the loop's --updates-per-step).
    """

    system = "cal"

    def weight(self, multiplier: Tensor, violation: Tensor) -> Tensor:
        return effective_multiplier(violation, multiplier, self.config.rho)
