"""ALGD: off-policy safe RL with a diffusion policy guided by the augmented Lagrangian (arXiv 2602.02924)."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.encoder import encoder_of
from saddlepoint.algd.energy import ENERGIES, Constraint, make_energy
from saddlepoint.algd.losses import (
    CriticLosses,
    PolicyLoss,
    UpdateNoise,
    bellman_targets,
    critic_losses,
    effective_multiplier,
    policy_loss,
)
from saddlepoint.algd.policy import ChainNoise, DiffusionPolicy
from saddlepoint.constrained.budget import CostBudget, cost_units, require_fitting, violation_ceiling
from saddlepoint.constrained.dial import KNOTS, Dial
from saddlepoint.constrained.lagrangian import MultiplierUpdate
from saddlepoint.constrained.risk import ensemble_risk
from saddlepoint.constrained.units import ValueSize
from saddlepoint.nn.critics import Critic, make_critic
from saddlepoint.nn.layers import ActionBox
from saddlepoint.nn.noise import carried, correlation
from saddlepoint.nn.ops import native_wins, resolve_precision
from saddlepoint.nn.optim import Adam, Flat, Optimiser, frozen, tune_temperature
from saddlepoint.nn.state import load_learner, save_learner
from saddlepoint.replay import Ahead, Replay, sampled
from saddlepoint.types import ActMode, Batch, EnvShape, Later, Metrics, UserError, per_constraint


class ALGD:
    """One agent for the VE and the VP chain; see ``ALGDConfig`` for every choice, and ``update_batch`` for the algorithm."""

    system = "algd"
    needs_cost = True
    turns_budgets = True

    def __init__(
        self, config: ALGDConfig, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, compile: bool = False,
    ):  # fmt: skip
        """``budgets`` has one entry for each of the environment's constraints. Raises ``UserError`` for an impossible configuration."""
        config.validate()
        if shape.budget_range is not None and config.multiplier_actions != "recent":
            raise UserError("--budget-range moves lambda by the cost of recent episodes: leave --multiplier-actions at recent.")
        budgets = require_fitting(budgets, shape.constraints, config.cost_gamma)
        self.config, self.shape, self.budgets = config, shape, budgets
        self.device, self.dtype = torch.device(device), dtype
        self.noise_correlation = correlation(config.noise_memory, min(budget.steps for budget in budgets))

        init = torch.Generator().manual_seed(seed)
        low, high = (torch.tensor(bound, dtype=dtype) for bound in (shape.action_low, shape.action_high))
        self.dial = None if shape.budget_range is None else Dial.of(shape.budget_range, budgets)
        self.encoder = encoder_of(config.encoding, shape, self.dial).to(self.device, dtype)
        self.policy = DiffusionPolicy(config, self.encoder.outputs, ActionBox.from_bounds(low, high), init)
        self.policy.place(self.device, dtype)
        self.critic = self._critic(2, "relu", init)
        self.cost_critic = self._critic(shape.constraints * config.cost_members, "silu", init)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.cost_target = copy.deepcopy(self.cost_critic).requires_grad_(False)

        self.budget = torch.tensor([b.critic for b in budgets], dtype=torch.float64)
        self.unit = cost_units(budgets, config.cost_unit)
        self.ceiling = violation_ceiling(budgets, config.largest_violation)
        self.multiplier_update = MultiplierUpdate(
            config.multiplier_rule, config.multiplier_rate, config.rho, config.multiplier_interval, config.proportional,
            config.derivative, config.smoothing,
        )  # fmt: skip
        self.multiplier_state = self.multiplier_update.start(config.multiplier, KNOTS if self.dial else shape.constraints)
        self.log_beta = nn.Parameter(torch.tensor(math.log(config.beta), dtype=torch.float64))

        self._compile(compile)
        self.critic_optimiser = Optimiser(
            {"critic": (self.critic, config.critic_learning_rate), "cost_critic": (self.cost_critic, config.cost_learning_rate)}
        )
        self.policy_optimiser = Optimiser({"policy": (self.policy, config.policy_learning_rate)})
        self.beta_optimiser = Adam([self.log_beta], lr=config.temperature_rate)
        self.targets = {"critic": Flat(self.critic_target), "cost_critic": Flat(self.cost_target)}
        self.generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.updates = 0
        self.reward_unit = 1.0  # of the rewards that ``update_batch`` is given
        self.value_size = ValueSize(config.reward_unit == "value")
        self.energy = make_energy(config.energy, self.constraint(torch.ones(5, shape.observation)), config.cost_members)

    def _critic(self, members: int, activation: Literal["relu", "silu"], init: torch.Generator) -> Critic:
        cfg, sizes = self.config, (self.encoder.outputs, self.shape.action, self.config.critic_hidden)
        critic = make_critic(cfg.critic_network, cfg.critic_values, members, *sizes, activation, init)
        return critic.to(self.device, self.dtype)

    @staticmethod
    def gains_by_compiling(config: ALGDConfig) -> bool:
        """Whether a compiled update was measured to be faster on a CPU (benchmarks/results/algd_update_*.json)."""
        return native_wins(*config.critic_hidden)

    def _compile(self, enabled: bool) -> None:
        """The one compile site: native kernels on a CPU, elsewhere torch.compile on the losses, which are pure functions."""
        native = enabled and self.device.type == "cpu"
        asked = self.config.precision if native or self.config.precision != "auto" else "float32"
        for network in (self.policy.network, self.critic, self.cost_critic, self.critic_target, self.cost_target):
            network.dtype = resolve_precision(asked, self.device)
            if native:
                network.accelerate()
        wrap = torch.compile if enabled and self.device.type != "cpu" else (lambda f, **_: f)
        self.critic_losses = wrap(critic_losses, dynamic=False)
        self.policy_loss = wrap(policy_loss, dynamic=False)

    # ------------------------------------------------------------------------------------------------ one update

    def update_batch(
        self, batch: Batch, noise: UpdateNoise, episode_cost: Tensor | None = None, ahead: Ahead | None = None
    ) -> Metrics:  # fmt: skip
        """Critics, then the policy, then temperature and multiplier, then the targets, in the order of the release.

        ``episode_cost`` (constraints,) in the units of h is the measured cost of recent episodes (``Replay.spent``); with ``multiplier_actions`` "recent" it
        moves lambda. ``ahead`` is what followed the transitions where the cost critics look further than one step.
        Raises ``NonFiniteError`` naming the first loss or gradient that is not finite.
        """
        constraint, multiplier = self.constraint(batch.observation), self.multiplier
        batch = batch._replace(observation=self.encoder(batch.observation), next_observation=self.encoder(batch.next_observation))
        critics = self._fit_critics(batch, noise, ahead)
        policy = self._improve_policy(batch.observation, constraint, noise)
        if self.config.entropy == "tuned":
            tune_temperature(self.log_beta, self.beta_optimiser, policy.entropy, self.config.target_entropy * self.shape.action)
        risk, violation = self._move_multiplier(batch, policy, episode_cost)
        self._follow()
        self.updates += 1
        size, values = self.value_size.value, (policy.reward, policy.cost)
        slope = cache(lambda: effective_multiplier(self.energy, *values, constraint) / size)
        slopes = [Later(slope, c) for c in range(len(self.budget))]
        found: dict[str, Tensor | list[Later]] = {"multiplier": multiplier, "effective_multiplier": slopes, "risk": risk, "violation": violation}
        return {
            "reward_critic_loss": critics.reward, "cost_critic_loss": critics.cost, "energy": policy.energy,
            "score_loss": policy.score, "entropy": policy.entropy / self.shape.action, "beta": self.beta, **self.value_size.metrics(), **per_constraint(found),
        }  # fmt: skip

    def _fit_critics(self, batch: Batch, noise: UpdateNoise, ahead: Ahead | None) -> CriticLosses:
        with torch.no_grad():
            state, action = batch.next_observation, self.policy.sample(batch.next_observation, noise.next)[None]
            reward = self.critic_target(state, action)[:, 0]
            if ahead is not None:
                state = self.encoder(ahead.observation)
                action = self.policy.sample(state, noise.next)[None]
            cost = self.cost_target(state, action)[:, 0]
            wanted = bellman_targets(self.config, batch, ahead or Ahead.of(batch, self.config.cost_gamma), reward, cost)
        losses = self.critic_losses(self.config, self.critic, self.cost_critic, batch, *wanted)
        self.critic_optimiser.step(
            losses.reward + losses.cost, self.updates, reward_critic_loss=losses.reward, cost_critic_loss=losses.cost
        )
        return CriticLosses(losses.reward.detach(), losses.cost.detach())

    def _improve_policy(self, state: Tensor, constraint: Constraint, noise: UpdateNoise) -> PolicyLoss:
        beta, critics = torch.tensor(self.beta * self.value_size.value, dtype=self.dtype, device=self.device), (self.critic, self.cost_critic)
        with frozen(*critics):
            loss = self.policy_loss(self.config, self.policy, critics, self.energy, constraint, state, noise, beta)
            self.policy_optimiser.step(loss.total, self.updates, policy_loss=loss.total)
        self.value_size.follow(loss.reward.amin(0)[0])
        return loss

    @torch.no_grad()
    def _move_multiplier(self, batch: Batch, policy: PolicyLoss, episode_cost: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean risk, and by how much what moves lambda exceeds h: (constraints,) each."""
        assert (episode_cost is not None) == (self.config.multiplier_actions == "recent")
        replayed = self.config.multiplier_actions == "replay"
        risk = (self._risk(batch.observation, batch.action).mean(-1) if replayed else policy.risk).to("cpu", torch.float64)
        if self.dial is not None:
            assert episode_cost is not None
            largest = self.config.largest_violation
            self.multiplier_state = self.multiplier_update.step(self.multiplier_state, episode_cost.clamp(max=largest))
            return risk, self.dial.at(self.budgets[0].limit, episode_cost) * self.budget
        violation = (risk if episode_cost is None else episode_cost) - self.config.budget_share * self.budget
        self.multiplier_state = self.multiplier_update.step(self.multiplier_state, violation.minimum(self.ceiling) / self.unit)
        return risk, violation

    def _follow(self) -> None:
        cfg, online = self.config, self.critic_optimiser.flats
        if self.updates % cfg.target_every == 0:
            self.targets["critic"].follow(online["critic"], cfg.polyak)
            self.targets["cost_critic"].follow(online["cost_critic"], cfg.polyak if cfg.cost_polyak is None else cfg.cost_polyak)

    # ------------------------------------------------------------------------------------------------ what it knows

    @property
    def beta(self) -> float:
        """Temperature of the policy's target exp(-E / beta)."""
        return float(self.log_beta.detach().exp())

    @property
    def multiplier(self) -> Tensor:
        """lambda, (constraints,) float64: the price of a budget, or of one (``cost_unit``), in units of reward; of several, that of the stated limit."""
        found = self.multiplier_update.value(self.multiplier_state)
        return found if self.dial is None else self.dial.price(found, torch.tensor([self.budgets[0].limit]))

    def constraint(self, observation: Tensor | None = None) -> Constraint:
        """What the energy holds costs to, at the present multiplier; where observations end with a budget, at each (batch, observation)."""
        values = (self.multiplier, self.budget, self.unit)
        if self.dial is not None:
            assert observation is not None
            limit = observation[:, -1]
            budget = (limit * self.dial.critic)[None]
            unit = budget if self.config.cost_unit == "budget" else torch.ones_like(budget)
            values = (self.dial.price(self.multiplier_update.value(self.multiplier_state).to(limit.device), limit)[None], budget, unit)
        multiplier, budget, unit = (each.to(self.device, self.dtype) for each in values)
        rho = self.config.rho if self.config.energy == "relative" else self.config.rho * self.value_size.value
        return Constraint(multiplier * self.value_size.value, budget, unit, rho, self.config.risk_std)

    @torch.no_grad()
    def energies(self, state: Tensor, actions: Tensor, kind: str | None = None) -> Tensor:
        """E(s, a) at (batch, observation), (points, batch, action): (points, batch); of another ``kind`` than the agent's where one is named."""
        energy, constraint, state = self.energy if kind is None else ENERGIES[kind], self.constraint(state), self.encoder(state)
        return energy(self.critic(state, actions), self.cost_critic(state, actions), constraint)

    @torch.no_grad()
    def risk(self, state: Tensor, action: Tensor) -> Tensor:
        """R(s, a) of every constraint at (batch, observation), (batch, action): (constraints, batch)."""
        return self._risk(self.encoder(state), action)

    def _risk(self, state: Tensor, action: Tensor) -> Tensor:
        return ensemble_risk(self.cost_critic(state, action[None])[:, 0].unflatten(0, (len(self.budget), -1)).transpose(0, 1), self.config.risk_std)

    @torch.no_grad()
    def paths(self, state: Tensor, noise: ChainNoise) -> Tensor:
        """Every point of the denoising as an action, (K + 1, batch, action), from the squashed start in row K to row 0.

        Row 0 is what ``act`` returns in mode ``stochastic`` when it draws the same noise (``policy.draw``).
        """
        return self.policy.box.squash(self.policy.path(self.encoder(state), noise))

    @torch.no_grad()
    def predict(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """What the critics expect to follow, in the environment's units: ``reward`` (batch,), ``cost`` (batch, constraints), both discounted."""
        state, action = self.encoder(observation.to(self.device, self.dtype)), action.to(self.device, self.dtype)[None]
        cost = self.cost_critic(state, action)[:, 0].unflatten(0, (len(self.budget), -1))
        return {"reward": self.critic(state, action)[:, 0].amin(0) * self.reward_unit, "cost": cost.mean(1).T}

    # ------------------------------------------------------------------------------------------------ the learner's protocol

    def draw(self, batch: int) -> UpdateNoise:
        """The noise of one update, from the learner's own generator."""
        shape = (self.config.proposals, batch, self.shape.action)
        tau = torch.randint(self.config.steps, (batch,), generator=self.generator, device=self.device)
        proposals = torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)
        return UpdateNoise(self.policy.draw(batch, self.generator), self.policy.draw(batch, self.generator), tau, proposals)

    def update(self, replay: Replay, updates: int) -> Metrics:
        """``updates`` updates on batches of ``replay``; the metrics are those of the last."""
        metrics: Metrics = {}
        if self.updates == 0 and self.config.reward_unit != "one":
            self.reward_unit = replay.reward_size()
        cost = self._measured(replay)
        for _ in range(updates):
            batch, ahead = sampled(self.config, replay, self.generator)
            if self.dial is not None:
                batch, ahead = self.dial.relabelled(batch, ahead, self.generator)
            batch = batch._replace(reward=batch.reward / self.reward_unit)
            metrics = self.update_batch(batch, self.draw(self.config.batch_size), cost, ahead)
        return metrics | {"reward_unit": self.reward_unit}

    def _measured(self, replay: Replay) -> Tensor | None:
        """What moves lambda where recent episodes do: their cost (constraints,) in the units of h, or by how many budgets it is over, at each knot."""
        if self.config.multiplier_actions != "recent":
            return None
        if self.dial is None:
            return replay.spent(self.budgets, self.config.recent_steps)
        return self.dial.overspent(*replay.recent_under(KNOTS * self.config.recent_steps, self.dial.steps), self.config.budget_share).cpu()

    def observe(self, observation: Tensor) -> None:
        """Count in new observations (envs, observation) for the encoding."""
        self.encoder.observe(observation.to(self.device, self.dtype))

    @property
    def memory_size(self) -> int:
        """Numbers that ``act_on`` hands on to its next call: the noise of the last chain, and 1 to say that there was one; none without correlation."""
        return (self.config.steps + 1) * self.shape.action + 1 if self.noise_correlation > 0 else 0

    @torch.inference_mode()
    def act_on(self, observation: Tensor, memory: Tensor, mode: ActMode, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(envs, observation), (envs, memory_size), zeros at an episode's start -> (envs, action) as ``act``, and the new memory.

        The noise of a sample's chain follows that of the step before (``nn.noise.carried``).
        """
        raw = observation.to(self.device, self.dtype)
        state = self.encoder(raw)
        if mode == "deterministic":
            return self._without_noise(raw, state, generator), memory
        noise = self.policy.normal(len(state), generator)
        if self.memory_size:
            flat, memory = carried(noise.transpose(0, 1).flatten(1), memory, self.noise_correlation)
            noise = flat.unflatten(1, (-1, self.shape.action)).transpose(0, 1)
        return self.policy.sample(state, ChainNoise(noise[0], noise[1:])), memory

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        """(envs, observation) -> (envs, action) inside the bounds: the first action of an episode."""
        return self.act_on(observation, observation.new_zeros(len(observation), self.memory_size), mode, generator)[0]

    def _without_noise(self, raw: Tensor, state: Tensor, generator: torch.Generator) -> Tensor:
        """The deterministic action at observations ``raw``, encoded as ``state``."""
        if self.config.evaluation == "zero":
            return self.policy.mean_action(state)
        n = self.config.evaluation_samples
        actions = self.policy.sample(state.repeat(n, 1), self.policy.draw(n * len(state), generator)).view(n, len(state), -1)
        return actions[self.energies(raw, actions).argmin(0), torch.arange(len(state), device=self.device)]

    def _networks(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "policy": self.policy, "critic": self.critic, "cost_critic": self.cost_critic,
                "critic_target": self.critic_target, "cost_target": self.cost_target}  # fmt: skip

    def _optimisers(self) -> dict[str, torch.optim.Adam]:
        return {"critics": self.critic_optimiser.adam, "policy": self.policy_optimiser.adam, "beta": self.beta_optimiser}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, targets, Adam moments, multiplier, temperature, counter and generator, as flat named tensors."""
        extra = {f"multiplier.{name}": value for name, value in self.multiplier_state.items()} 
        extra |= {"log_beta": self.log_beta} | self.value_size.state()
        return save_learner(self, extra)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict``. Raises ``UserError`` where the state is of another configuration or environment."""
        extra = load_learner(self, state, (*(f"multiplier.{name}" for name in self.multiplier_state), "log_beta", *self.value_size.names))
        self.value_size.load(extra)
        self.multiplier_state = {name: extra[f"multiplier.{name}"] for name in self.multiplier_state}
        with torch.no_grad():
            self.log_beta.copy_(extra["log_beta"])
