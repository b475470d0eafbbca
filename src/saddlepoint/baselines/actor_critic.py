"""What the baselines share: soft actor-critic's parts, and the learner's protocol. ``SAC`` and ``Constrained`` make an update of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from saddlepoint.baselines.config import SACConfig
from saddlepoint.baselines.critic import Critic, Fit
from saddlepoint.baselines.policy import GaussianPolicy, Sample
from saddlepoint.constrained.budget import CostBudget, require_fitting
from saddlepoint.nn.critics import Activation
from saddlepoint.nn.finite import require_finite
from saddlepoint.nn.layers import ActionBox
from saddlepoint.nn.native import promises
from saddlepoint.nn.state import gather, restore
from saddlepoint.replay import Replay
from saddlepoint.types import ActMode, Batch, EnvShape, Metrics, UserError

C = TypeVar("C", bound=SACConfig)
F = TypeVar("F", bound=Callable[..., Any])


class UpdateNoise(NamedTuple):
    """Every random draw of one update: standard normal, (batch, action) each."""

    next: Tensor  # for a' ~ pi(s')
    policy: Tensor  # for a ~ pi(s)


class ActorCritic(ABC, Generic[C]):
    """A Gaussian policy, two reward critics with targets, and a temperature (SAC, arXiv 1812.05905)."""

    system: ClassVar[str]
    needs_cost: ClassVar[bool] = True
    """the name on the command line and in config.json"""

    def __init__(
        self, config: C, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, compile: bool = False,
    ):  # fmt: skip
        """``budgets`` has one entry for each of the environment's constraints. Raises ``UserError`` for an impossible configuration."""
        config.validate()
        require_fitting(budgets, shape.constraints, config.cost_gamma)
        self.config, self.shape, self.budgets = config, shape, budgets
        self.device, self.dtype, self.compiled = torch.device(device), dtype, compile
        self.initial = torch.Generator().manual_seed(seed)  # draws the first weights of every network
        low, high = (torch.tensor(bound, dtype=dtype) for bound in (shape.action_low, shape.action_high))
        box = ActionBox.from_bounds(low, high)
        self.policy = GaussianPolicy(shape.observation, config.policy_hidden, box, self.initial)
        self.policy.place(self.device, dtype)
        self.critic = self._make_critic(2, "relu", config.critic_learning_rate)
        self.critics = {"reward_critic": self.critic}
        self.log_beta = nn.Parameter(torch.tensor(math.log(config.beta), dtype=torch.float64))
        self.policy_optimiser = torch.optim.Adam(self.policy.parameters(), lr=config.policy_learning_rate, fused=True)
        self.beta_optimiser = torch.optim.Adam([self.log_beta], lr=config.temperature_rate)
        self.generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.updates = 0
        self.reward_unit = 1.0  # of the rewards that ``update_batch`` is given

    def _make_critic(self, members: int, activation: Activation, rate: float) -> Critic:
        sizes = (self.shape.observation, self.shape.action, self.config.critic_hidden)
        critic = Critic(members, *sizes, activation, rate, self.initial, self.device, self.dtype)
        if self.compiled and self.device.type == "cpu":
            critic.fuse()
        return critic

    def _compile(self, function: F) -> F:
        """The pure, heavy functions of an update, compiled where they are not C++ anyway (``_make_critic``)."""
        compiled: Any = torch.compile(function, dynamic=False) if self.compiled and self.device.type != "cpu" else function
        return compiled

    @staticmethod
    def gains_by_compiling(config: SACConfig) -> bool:
        """Whether the critics have the C++ passes on a CPU."""
        return promises(*config.critic_hidden)

    @abstractmethod
    def update_batch(self, batch: Batch, noise: UpdateNoise, episode_cost: Tensor | None = None) -> Metrics:
        """One update of everything from a batch and given noise."""

    # ------------------------------------------------------------------------------------------------ parts of an update

    @property
    def beta(self) -> Tensor:
        """The temperature, 0-d, SAC's alpha."""
        return self.log_beta.detach().exp().to(self.device, self.dtype)

    def fit_reward(self, batch: Batch, following: Sample, beta: Tensor) -> Fit:
        """Both heads to  r + gamma (1 - terminated) (min_j Q'_j(s', a') - beta log pi(a'|s')),  squared errors summed over heads, mean over batch."""
        value = self.critic.target_values(batch.next_observation, following.action).amin(0) - beta * following.log_prob
        wanted = batch.reward + self.config.gamma * (1 - batch.terminated) * value
        return self.critic.fit(batch.observation, batch.action, wanted.expand(2, -1), 1 / len(wanted))

    def reward_slope(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """min_j Q_j(s, a) and its slope in the action: (batch,), (batch, action)."""
        saved = self.critic.values(state, action)
        least, head = saved.values[:, 0].min(0, keepdim=True)
        return least[0], self.critic.slope(saved, torch.zeros_like(saved.values[:, 0]).scatter_(0, head, 1.0))

    def descend(self, optimisers: dict[str, torch.optim.Adam], fits: dict[str, Fit]) -> None:
        """One Adam step on each fit. Raises ``NonFiniteError``, before any step, naming the first loss or gradient that is not finite."""
        modules = self._modules()
        for owner, (loss, gradients) in fits.items():
            names = (f"{owner}.{name}" for name, _ in modules[owner].named_parameters())
            total = torch.stack(torch._foreach_norm(gradients)).sum()
            require_finite(self.updates, {f"{owner}_loss": loss}, total, zip(names, gradients))
        for owner, (_, gradients) in fits.items():
            for parameter, gradient in zip(modules[owner].parameters(), gradients):
                parameter.grad = gradient
            optimisers[owner].step()

    def tune_temperature(self, entropy: Tensor) -> None:
        """One Adam step on log beta along  entropy - target_entropy * dim(A): too much entropy lowers the temperature."""
        if self.config.entropy == "tuned":
            excess = entropy - self.config.target_entropy * self.shape.action
            self.log_beta.grad = excess.to("cpu", torch.float64)
            self.beta_optimiser.step()

    def follow(self) -> None:
        """The targets' Polyak step, every ``target_every`` updates, and the count of updates."""
        if self.updates % self.config.target_every == 0:
            for critic in self.critics.values():
                critic.follow(self.config.polyak)
        self.updates += 1

    # ------------------------------------------------------------------------------------------------ the learner's protocol

    def draw(self, batch: int) -> UpdateNoise:
        """The noise of one update, from the learner's own generator."""
        shape = (2, batch, self.shape.action)
        return UpdateNoise(*torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype))

    def update(self, replay: Replay, updates: int) -> Metrics:
        """``updates`` updates on batches of ``replay``; the metrics are those of the last."""
        metrics: Metrics = {}
        if self.updates == 0 and self.config.reward_unit == "random":
            self.reward_unit = replay.reward_size()
        episode_cost = self.episode_cost(replay)
        for _ in range(updates):
            batch = replay.sample(self.config.batch_size, self.generator)
            batch = batch._replace(reward=batch.reward / self.reward_unit)
            metrics = self.update_batch(batch, self.draw(self.config.batch_size), episode_cost)
        return metrics | {"reward_unit": self.reward_unit}

    def episode_cost(self, replay: Replay) -> Tensor | None:
        """What an episode of late cost, (constraints,) in the units of h, where it moves a multiplier."""
        return None

    def observe(self, observation: Tensor) -> None:
        """The baselines keep no running statistics of observations."""

    @torch.inference_mode()
    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        """(envs, observation) -> (envs, action) inside the bounds."""
        state = observation.to(self.device, self.dtype)
        if mode == "deterministic":
            return self.policy.mean_action(state)
        noise = torch.randn(len(state), self.shape.action, generator=generator, device=self.device, dtype=self.dtype)
        return self.policy.sample(state, noise).action

    def _modules(self) -> dict[str, nn.Module]:
        online: dict[str, nn.Module] = {name: critic.online for name, critic in self.critics.items()}
        return {"policy": self.policy} | online | {f"{n}_target": critic.target for n, critic in self.critics.items()}

    def _optimisers(self) -> dict[str, torch.optim.Adam]:
        own = {"policy": self.policy_optimiser, "beta": self.beta_optimiser}
        return own | {name: critic.optimiser for name, critic in self.critics.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, targets, Adam moments, temperature, counter and generator, as flat named tensors."""
        state = gather(self._modules(), self._optimisers()) | {"log_beta": self.log_beta}
        state |= {"updates": torch.tensor(self.updates), "generator": self.generator.get_state()}
        state["reward_unit"] = torch.tensor(self.reward_unit, dtype=torch.float64)
        return {name: value.detach().clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict``. Raises ``UserError`` where the state is of another configuration or environment."""
        try:
            restore(state, self._modules(), self._optimisers())
            with torch.no_grad():
                self.log_beta.copy_(state["log_beta"])
            self.updates, self.reward_unit = int(state["updates"]), float(state.get("reward_unit", 1.0))
            self.generator.set_state(state["generator"].cpu())
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(
                f"the saved learner does not fit this configuration or environment ({str(error).splitlines()[0]})."
            ) from error
