"""SAC with a cost ensemble and a multiplier for each constraint: the update that SAC-Lag, SAC-PID-Lag and CAL have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from saddlepoint.baselines.actor_critic import ActorCritic, UpdateNoise
from saddlepoint.baselines.config import ConstrainedConfig
from saddlepoint.baselines.critic import Fit
from saddlepoint.baselines.policy import Sample
from saddlepoint.constrained.budget import CostBudget, cost_units
from saddlepoint.constrained.risk import ensemble_risk, ensemble_risk_gradient
from saddlepoint.replay import Replay
from saddlepoint.types import Batch, EnvShape, Metrics, UserError

K = TypeVar("K", bound=ConstrainedConfig)


class PolicyStep(NamedTuple):
    """The policy's loss and gradients, and what they say of entropy and constraints."""

    fit: Fit
    entropy: Tensor  # 0-d, of the actions scaled to [-1, 1]
    risk: Tensor  # (constraints,) mean risk
    violation: Tensor  # (constraints,) discounted cost - h, which moves the multiplier
    weight: Tensor  # (constraints,) the price of a unit of cost (``cost_unit``) that the policy paid


class Constrained(ActorCritic[K]):
    """Its learners differ in ``weight`` and in what moves lambda (the config's ``multiplier_update``)."""

    def __init__(
        self, config: K, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, compile: bool = False,
    ):  # fmt: skip
        super().__init__(config, shape, budgets, seed, device, dtype, compile)
        self.cost_critic = self._make_critic(shape.constraints * config.cost_members, "silu", config.cost_learning_rate)
        self.critics["cost_critic"] = self.cost_critic
        self.budget = torch.tensor([b.critic for b in budgets], dtype=dtype, device=self.device)
        self.unit = cost_units(budgets, config.cost_unit).to(self.budget)
        self.multiplier_update = config.multiplier_update()
        self.multiplier_state = self.multiplier_update.start(config.multiplier, shape.constraints)
        self.critic_step = self._compile(self._critic_step)
        self.policy_step = self._compile(self._policy_step)

    @abstractmethod
    def weight(self, multiplier: Tensor, violation: Tensor) -> Tensor:
        """What the policy pays for a unit of cost, from lambda and the mean violation in such units: (constraints,) each. A constant to its gradient."""

    @property
    def multiplier(self) -> Tensor:
        """lambda, (constraints,) float64."""
        return self.multiplier_update.value(self.multiplier_state)

    @torch.no_grad()
    def _critic_step(self, batch: Batch, noise: Tensor, beta: Tensor) -> dict[str, Fit]:
        """Reward heads as SAC's; each cost member m to  c + gamma_c (1 - terminated) Qc'_m(s', a'),  mean over members and batch."""
        cfg = self.config
        following = self.policy.sample(batch.next_observation, noise)
        value = self.cost_critic.target_values(batch.next_observation, following.action)
        value = value.clamp(min=0) if cfg.nonnegative_costs else value
        alive = 1.0 if cfg.cost_through_termination else 1 - batch.terminated
        wanted = batch.cost.T.repeat_interleave(cfg.cost_members, 0) + cfg.cost_gamma * alive * value
        scale = 1 / (len(batch.reward) * cfg.cost_members)
        cost = self.cost_critic.fit(batch.observation, batch.action, wanted, scale)
        return {"reward_critic": self.fit_reward(batch, following, beta), "cost_critic": cost}

    @torch.no_grad()
    def _policy_step(
        self, batch: Batch, noise: Tensor, beta: Tensor, multiplier: Tensor, episode_cost: Tensor | None = None
    ) -> PolicyStep:
        """Loss  mean[ beta log pi(a|s) - min_j Q_j(s, a) ] + sum_c weight_c (mean R_c(s, a) - h_c)  and its gradients, a ~ pi(s)."""
        cfg = self.config
        sample: Sample = self.policy.sample(batch.observation, noise)
        least, slope = self.reward_slope(batch.observation, sample.action)
        saved = self.cost_critic.values(batch.observation, sample.action)
        risk, risk_slope = ensemble_risk_gradient(self._by_constraint(saved.values[:, 0]), cfg.risk_std)
        own = risk.mean(-1) - self.budget
        replayed = cfg.multiplier_actions == "replay"
        mean = self.risk(batch.observation, batch.action).mean(-1) if replayed else risk.mean(-1)
        violation = (mean if episode_cost is None else episode_cost) - self.budget
        weight = self.weight(multiplier, violation / self.unit)
        upstream = (risk_slope * (weight / self.unit).unsqueeze(-1)).transpose(0, 1).flatten(0, 1)
        gradients = self.policy.gradients(
            batch.observation, sample, self.cost_critic.slope(saved, upstream) - slope, beta
        )
        entropy = -sample.log_prob.mean()
        loss = (weight * own / self.unit).sum() - beta * entropy - least.mean()
        return PolicyStep(Fit(loss, gradients), entropy, mean, violation, weight)

    def update_batch(self, batch: Batch, noise: UpdateNoise, episode_cost: Tensor | None = None) -> Metrics:
        """Critics, then the policy with the new critics as constants, then the temperature, then lambda, then the targets.

        ``episode_cost`` (constraints,) in the units of h, what an episode of late cost (``Replay.spent``), moves lambda with ``multiplier_actions`` "recent".
        """
        assert (episode_cost is not None) == (self.config.multiplier_actions == "recent")
        optimisers, beta, multiplier = self._optimisers(), self.beta, self.multiplier
        fits = self.critic_step(batch, noise.next, beta)
        self.descend(optimisers, fits)
        step = self.policy_step(batch, noise.policy, beta, multiplier.to(self.device, self.dtype), episode_cost)
        self.descend(optimisers, {"policy": step.fit})
        self.tune_temperature(step.entropy)
        self.multiplier_state = self.multiplier_update.step(self.multiplier_state, (step.violation / self.unit).cpu())
        self.follow()
        metrics: Metrics = {
            "reward_critic_loss": fits["reward_critic"].loss, "cost_critic_loss": fits["cost_critic"].loss,
            "policy_loss": step.fit.loss, "entropy": step.entropy / self.shape.action, "beta": beta,
        }  # fmt: skip
        for c in range(len(self.budgets)):
            end = "" if len(self.budgets) == 1 else f"_{c}"
            metrics |= {f"multiplier{end}": multiplier[c], f"effective_multiplier{end}": step.weight[c],
                        f"risk{end}": step.risk[c], f"violation{end}": step.violation[c]}  # fmt: skip
        return metrics

    def episode_cost(self, replay: Replay) -> Tensor | None:
        if self.config.multiplier_actions != "recent":
            return None
        return replay.spent(self.budgets, self.config.recent_steps).to(self.budget)

    @torch.no_grad()
    def risk(self, state: Tensor, action: Tensor) -> Tensor:
        """R(s, a) = mean_m + k std_m of every constraint's ensemble: (constraints, batch)."""
        return ensemble_risk(
            self._by_constraint(self.cost_critic.values(state, action).values[:, 0]), self.config.risk_std
        )

    def _by_constraint(self, values: Tensor) -> Tensor:
        """(constraints * members, batch) -> (members, constraints, batch)."""
        return values.unflatten(0, (len(self.budgets), -1)).transpose(0, 1)

    def state_dict(self) -> dict[str, Tensor]:
        """That of ``ActorCritic``, and the multiplier's state."""
        kept = {f"multiplier.{name}": value.clone() for name, value in self.multiplier_state.items()}
        return super().state_dict() | kept

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict``. Raises ``UserError`` where the state is of another configuration or environment."""
        if missing := [name for name in self.multiplier_state if f"multiplier.{name}" not in state]:
            raise UserError(
                f"the saved learner does not fit this configuration or environment (multiplier.{missing[0]} is missing)."
            )
        super().load_state_dict(state)
        self.multiplier_state = {name: state[f"multiplier.{name}"].clone() for name in self.multiplier_state}
