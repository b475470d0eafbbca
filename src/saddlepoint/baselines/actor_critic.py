"""What the baselines share: networks, temperature, targets, and the learner's protocol. ``SAC`` and ``Constrained`` make an update of them."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from saddlepoint.baselines.config import ConstrainedConfig, SACConfig
from saddlepoint.baselines.losses import UpdateNoise, reward_loss, soft_loss
from saddlepoint.baselines.policy import GaussianPolicy
from saddlepoint.constrained.budget import CostBudget, require_fitting
from saddlepoint.constrained.units import ValueSize
from saddlepoint.nn.critics import Critic, make_critic
from saddlepoint.nn.encoding import make_encoder
from saddlepoint.nn.layers import ActionBox
from saddlepoint.nn.noise import carried, correlation
from saddlepoint.nn.ops import native_wins
from saddlepoint.nn.optim import Adam, Flat, Optimiser, tune_temperature
from saddlepoint.nn.state import load_learner, save_learner
from saddlepoint.replay import Ahead, Replay, sampled
from saddlepoint.types import ActMode, Batch, EnvShape, Metrics, UserError

C = TypeVar("C", bound=SACConfig)


class ActorCritic(ABC, Generic[C]):
    """A Gaussian policy, two reward critics with targets, and a temperature (SAC, arXiv 1812.05905)."""

    system: ClassVar[str]
    """the name on the command line and in config.json"""
    needs_cost: ClassVar[bool] = True

    def __init__(
        self, config: C, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, compile: bool = False,
    ):  # fmt: skip
        """``budgets`` has one entry for each of the environment's constraints. Raises ``UserError`` for an impossible configuration."""
        if isinstance(config, ConstrainedConfig) and not self.needs_cost:  # a subclass of SAC's, whose constraint would be left out
            raise UserError(f"{self.system} takes a config of class SACConfig, not {type(config).__name__}: give SACConfig().")
        config.validate()
        budgets = require_fitting(budgets, shape.constraints, config.cost_gamma)
        self.config, self.shape, self.budgets = config, shape, budgets
        self.device, self.dtype = torch.device(device), dtype
        self.noise_correlation = correlation(config.noise_memory, min((budget.steps for budget in budgets), default=None))
        self.initial = torch.Generator().manual_seed(seed)  # draws the first weights of every network
        low, high = (torch.tensor(bound, dtype=dtype) for bound in (shape.action_low, shape.action_high))
        self.encoder = make_encoder(config.encoding, shape.observation, shape.lidars).to(self.device, dtype)
        self.policy = GaussianPolicy(self.encoder.outputs, config.policy_hidden, ActionBox.from_bounds(low, high), self.initial)
        self.policy.place(self.device, dtype)
        self.log_beta = nn.Parameter(torch.tensor(math.log(config.beta), dtype=torch.float64))
        members: dict[str, tuple[int, Literal["relu", "silu"], float]] = {"reward_critic": (2, "relu", config.critic_learning_rate)}
        if isinstance(config, ConstrainedConfig):
            members["cost_critic"] = (shape.constraints * config.cost_members, "silu", config.cost_learning_rate)
        self.critics = {name: self._critic(count, activation) for name, (count, activation, _) in members.items()}
        self.targets = {name: copy.deepcopy(critic).requires_grad_(False) for name, critic in self.critics.items()}
        self.critic, self.critic_target = self.critics["reward_critic"], self.targets["reward_critic"]
        if compile and self.device.type == "cpu":
            for critic in (*self.critics.values(), *self.targets.values()):
                critic.accelerate()
        self.policy_optimiser = Optimiser({"policy": (self.policy, config.policy_learning_rate)})
        self.critic_optimiser = Optimiser({name: (critic, members[name][2]) for name, critic in self.critics.items()})
        self.beta_optimiser = Adam([self.log_beta], lr=config.temperature_rate)
        self.flat_targets = {name: Flat(target) for name, target in self.targets.items()}
        on_accelerator = compile and self.device.type != "cpu"  # the one compile site; on a CPU the critics have native kernels
        self.compile = functools.partial(torch.compile, dynamic=False) if on_accelerator else lambda function: function
        self.reward_loss, self.soft_loss = self.compile(reward_loss), self.compile(soft_loss)
        self.generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.updates = 0
        self.reward_unit = 1.0  # of the rewards that ``update_batch`` is given
        self.value_size = ValueSize(config.reward_unit == "value")

    def _critic(self, members: int, activation: Literal["relu", "silu"]) -> Critic:
        cfg, sizes = self.config, (self.encoder.outputs, self.shape.action, self.config.critic_hidden)
        critic = make_critic(cfg.critic_network, cfg.critic_values, members, *sizes, activation, self.initial)
        return critic.to(self.device, self.dtype)

    @staticmethod
    def gains_by_compiling(config: SACConfig) -> bool:
        """Whether the critics have native kernels on this CPU."""
        return native_wins(*config.critic_hidden)

    @abstractmethod
    def update_batch(
        self, batch: Batch, noise: UpdateNoise, episode_cost: Tensor | None = None, ahead: Ahead | None = None
    ) -> Metrics:  # fmt: skip
        """One update of everything from a batch and given noise."""

    # ------------------------------------------------------------------------------------------------ parts of an update

    def encoded(self, batch: Batch) -> Batch:
        """The batch as the networks see it."""
        return batch._replace(observation=self.encoder(batch.observation), next_observation=self.encoder(batch.next_observation))

    @property
    def beta(self) -> Tensor:
        """The temperature, 0-d, SAC's alpha, in the units of the critics' values."""
        return self.log_beta.detach().exp().to(self.device, self.dtype) * self.value_size.value

    def tune_temperature(self, entropy: Tensor) -> None:
        """One Adam step on log beta towards target_entropy * dim(A), where it is tuned."""
        if self.config.entropy == "tuned":
            tune_temperature(self.log_beta, self.beta_optimiser, entropy, self.config.target_entropy * self.shape.action)

    def follow(self) -> None:
        """The targets' Polyak step, every ``target_every`` updates, and the count of updates."""
        if self.updates % self.config.target_every == 0:
            for name, target in self.flat_targets.items():
                share = self.config.cost_polyak if name == "cost_critic" and isinstance(self.config, ConstrainedConfig) else None
                target.follow(self.critic_optimiser.flats[name], share or self.config.polyak)
        self.updates += 1

    # ------------------------------------------------------------------------------------------------ the learner's protocol

    def draw(self, batch: int) -> UpdateNoise:
        """The noise of one update, from the learner's own generator."""
        shape = (2, batch, self.shape.action)
        return UpdateNoise(*torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype))

    def update(self, replay: Replay, updates: int) -> Metrics:
        """``updates`` updates on batches of ``replay``; the metrics are those of the last."""
        metrics: Metrics = {}
        if self.updates == 0 and self.config.reward_unit != "one":
            self.reward_unit = replay.reward_size()
        episode_cost = self.episode_cost(replay)
        for _ in range(updates):
            batch, ahead = sampled(self.config, replay, self.generator)
            batch = batch._replace(reward=batch.reward / self.reward_unit)
            metrics = self.update_batch(batch, self.draw(self.config.batch_size), episode_cost, ahead)
        return metrics | {"reward_unit": self.reward_unit}

    def episode_cost(self, replay: Replay) -> Tensor | None:
        """The measured cost of recent episodes, (constraints,) in the units of h, where it moves a multiplier."""
        return None

    def observe(self, observation: Tensor) -> None:
        """Count in new observations (envs, observation) for the encoding."""
        self.encoder.observe(observation.to(self.device, self.dtype))

    @property
    def memory_size(self) -> int:
        """Numbers that ``act_on`` hands on to its next call: the last noise, and 1 to say that there was one; none without correlation."""
        return self.shape.action + 1 if self.noise_correlation > 0 else 0

    @torch.inference_mode()
    def act_on(self, observation: Tensor, memory: Tensor, mode: ActMode, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(envs, observation), (envs, memory_size), zeros at an episode's start -> (envs, action) as ``act``, and the new memory.

        The noise of a sample follows that of the step before (``nn.noise.carried``).
        """
        state = self.encoder(observation.to(self.device, self.dtype))
        if mode == "deterministic":
            return self.policy.mean_action(state), memory
        noise = torch.randn(len(state), self.shape.action, generator=generator, device=self.device, dtype=self.dtype)
        if self.memory_size:
            noise, memory = carried(noise, memory, self.noise_correlation)
        return self.policy.sample(state, noise).action, memory

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        """(envs, observation) -> (envs, action) inside the bounds: the first action of an episode."""
        return self.act_on(observation, observation.new_zeros(len(observation), self.memory_size), mode, generator)[0]

    @torch.no_grad()
    def predict(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """What the critics expect to follow, in the environment's units: ``reward`` (batch,), discounted."""
        state, action = self.encoder(observation.to(self.device, self.dtype)), action.to(self.device, self.dtype)
        return {"reward": self.critic(state, action[None])[:, 0].amin(0) * self.reward_unit}

    def _networks(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "policy": self.policy, **self.critics, **{f"{name}_target": target for name, target in self.targets.items()}}

    def _optimisers(self) -> dict[str, torch.optim.Adam]:
        return {"policy": self.policy_optimiser.adam, "critics": self.critic_optimiser.adam, "beta": self.beta_optimiser}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, targets, Adam moments, temperature, counter and generator, as flat named tensors."""
        return save_learner(self, {"log_beta": self.log_beta} | self.value_size.state())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict``. Raises ``UserError`` where the state is of another configuration or environment."""
        extra = load_learner(self, state, ("log_beta", *self.value_size.names))
        self.value_size.load(extra)
        with torch.no_grad():
            self.log_beta.copy_(extra["log_beta"])
