"""ALGD: off-policy safe RL with a diffusion policy guided by the augmented Lagrangian (arXiv 2602.02924)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.energy import Lagrangian, Penalty, energy_gradient, evaluate
from saddlepoint.algd.fused_formulas import formulas
from saddlepoint.algd.policy import ChainNoise, DiffusionPolicy, Level, Record
from saddlepoint.constrained.budget import CostBudget, cost_units, require_fitting, violation_ceiling
from saddlepoint.constrained.lagrangian import MultiplierUpdate
from saddlepoint.constrained.risk import ensemble_risk
from saddlepoint.diffusion.network import Conditioned
from saddlepoint.nn.critics import Ensemble, Fit, fit, trace
from saddlepoint.nn.finite import require_finite
from saddlepoint.nn.flat import Adam, Flat
from saddlepoint.nn.layers import ActionBox
from saddlepoint.nn.native import promises
from saddlepoint.nn.state import gather, restore
from saddlepoint.replay import Replay
from saddlepoint.types import ActMode, Batch, EnvShape, Metrics, UserError


class UpdateNoise(NamedTuple):
    """Every random draw of one update."""

    next: ChainNoise  # for a' ~ pi(s')
    policy: ChainNoise  # for a_0 ~ pi(s)
    tau: Tensor  # (batch,) the step at which the score is matched
    proposals: Tensor  # (proposals, batch, action)


class Chain(NamedTuple):
    """The policy's chains at a batch of states, and all that their backward pass needs."""

    at: Conditioned
    latents: Tensor  # (K + 1, batch, action)
    action: Tensor  # (batch, action)
    record: Record


class CriticStep(NamedTuple):
    """Losses and gradients of the reward and the cost critics, weights then biases."""

    reward_loss: Tensor
    cost_loss: Tensor
    reward_gradients: list[Tensor]
    cost_gradients: list[Tensor]


class PolicyStep(NamedTuple):
    """Losses and gradients of the policy, and what the metrics and lambda are made of."""

    loss: Tensor
    score_loss: Tensor
    entropy: Tensor  # mean over the batch
    energy: Tensor  # mean over the batch
    risk: Tensor  # (constraints,), mean over the batch
    effective_multiplier: Tensor  # (constraints,), mean over the batch
    gradients: dict[str, Tensor]


class ALGD:
    """One agent for the VE and the VP chain; see ``ALGDConfig`` for every choice, and ``update_batch`` for the algorithm."""

    system = "algd"
    needs_cost = True

    def __init__(
        self, config: ALGDConfig, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, compile: bool = False,
    ):  # fmt: skip
        """``budgets`` has one entry for each of the environment's constraints. Raises ``UserError`` for an impossible configuration."""
        config.validate()
        require_fitting(budgets, shape.constraints, config.cost_gamma)
        self.config, self.shape, self.budgets = config, shape, budgets
        self.device, self.dtype = torch.device(device), dtype
        init = torch.Generator().manual_seed(seed)
        box = ActionBox.from_bounds(
            torch.tensor(shape.action_low, dtype=dtype), torch.tensor(shape.action_high, dtype=dtype)
        )
        self.policy = DiffusionPolicy(config, shape.observation, box, init).place(self.device, dtype)
        members = shape.constraints * config.cost_members
        self.critic = Ensemble(2, shape.observation, shape.action, config.critic_hidden, "relu", init).to(self.device, dtype)
        self.cost_critic = Ensemble(members, shape.observation, shape.action, config.critic_hidden, "silu", init).to(self.device, dtype)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.cost_target = copy.deepcopy(self.cost_critic).requires_grad_(False)
        self.log_beta = nn.Parameter(torch.tensor(math.log(config.beta), dtype=torch.float64))
        self.budget = torch.tensor([b.critic for b in budgets], dtype=torch.float64)
        self.unit = cost_units(budgets, config.cost_unit)
        self.limits = (self.budget.to(self.device, dtype), self.unit.to(self.device, dtype))
        self.ceiling = violation_ceiling(budgets, config.largest_violation)
        self.multiplier_update = MultiplierUpdate(
            config.multiplier_rule, config.multiplier_rate, config.rho, config.multiplier_interval, config.proportional,
            config.derivative, config.smoothing,
        )  # fmt: skip
        self.multiplier_state = self.multiplier_update.start(config.multiplier, shape.constraints)
        self.flat = {owner: Flat(module) for owner, module in (self._modules() | {"beta": nn.ParameterList([self.log_beta])}).items()}
        rates = {"critic": config.critic_learning_rate, "cost_critic": config.cost_learning_rate}
        self.critic_optimiser = Adam([(self.flat[owner], rate) for owner, rate in rates.items()])
        self.policy_optimiser = Adam([(self.flat["policy"], config.policy_learning_rate)])
        self.beta_optimiser = Adam([(self.flat["beta"], config.temperature_rate)])
        self.generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.updates = 0
        self.reward_unit = 1.0  # of the rewards that ``update_batch`` is given
        self.low_precision = torch.bfloat16 if config.precision == "bfloat16" else None
        self._compile(compile)

    @staticmethod
    def gains_by_compiling(config: ALGDConfig) -> bool:
        """Whether a compiled update was measured to be faster on a CPU (benchmarks/results/algd_update_*.json)."""
        return promises(*config.critic_hidden)

    def _compile(self, enabled: bool) -> None:
        """The one compile site. On a CPU the networks' passes (nn/fused.py) and what is between them are C++; elsewhere PyTorch compiles both halves,
        pure functions."""
        fused = enabled and self.device.type == "cpu"
        self.formulas = formulas(self.config, self.policy, len(self.budgets), fused and self.dtype == torch.float32)
        if fused:
            self.policy.network.fuse(self.low_precision or torch.float32)
            for critic in (self.critic, self.cost_critic, self.critic_target, self.cost_target):
                critic.fuse()
        wrap = torch.compile if enabled and not fused else (lambda f, **_: f)
        self.critic_step = wrap(self._critic_step, dynamic=False)
        self.policy_step = wrap(self._policy_step, dynamic=False)

    # ------------------------------------------------------------------------------------------------ losses

    @property
    def beta(self) -> float:
        """Temperature of the policy's target exp(-L_A / beta)."""
        return float(self.log_beta.detach().exp())

    @property
    def multiplier(self) -> Tensor:
        """lambda, (constraints,) float64: the price of a budget, or of one (``cost_unit``), in units of reward."""
        return self.multiplier_update.value(self.multiplier_state)

    def penalty(self, multiplier: Tensor | None = None) -> Penalty:
        """What the constraints add to the energy at the present multiplier, or at another."""
        cfg, multiplier = self.config, self.multiplier if multiplier is None else multiplier
        return Penalty(cfg.energy, multiplier, *self.limits, cfg.rho, cfg.risk_std)

    @torch.no_grad()
    def _critic_step(self, batch: Batch, noise: UpdateNoise) -> tuple[CriticStep, Chain]:
        """The critics' losses and gradients, and the chains at ``batch.observation``, which run in the same passes as those of a' ~ pi(s')."""
        state = torch.cat([batch.next_observation, batch.observation])
        rows = len(batch.reward)
        draws = ChainNoise(torch.cat([noise.next.start, noise.policy.start]), torch.cat([noise.next.steps, noise.policy.steps], 1))
        latents, at, record = self.policy.recorded(state, draws, rows)
        action = self.policy.box.squash(latents[0])
        return self._bellman(batch, action[:rows]), Chain(at, latents[:, rows:], action[rows:], record)

    def _bellman(self, batch: Batch, next_action: Tensor) -> CriticStep:
        """Squared Bellman errors: summed over reward heads, averaged over cost members; gradients by hand (no autograd graph)."""

        def following(critic: Ensemble) -> Tensor:
            layers = critic.layers(self.low_precision)
            return trace(layers, batch.next_observation, next_action[None], critic.activation, "nothing").values[:, 0]

        wanted, wanted_cost = self.formulas.bellman(batch, following(self.critic_target), following(self.cost_target))

        def fitted(critic: Ensemble, wanted: Tensor, scale: float) -> Fit:
            return fit(critic.layers(self.low_precision), batch.observation, batch.action, wanted, scale, critic.activation)

        rows = len(batch.reward)
        reward, cost = fitted(self.critic, wanted, 1 / rows), fitted(self.cost_critic, wanted_cost, 1 / (rows * self.config.cost_members))
        return CriticStep(reward.loss, cost.loss, reward.gradients, cost.gradients)

    @torch.no_grad()
    def _policy_step(
        self, state: Tensor, chain: Chain, tau: Tensor, proposals: Tensor, noise: ChainNoise, multiplier: Tensor, beta: Tensor
    ) -> PolicyStep:
        """mean[L_A(s, a_0)] + score_weight * mse(phi, phi*) - beta * mean[H] and its gradients, by hand: critics, lambda and beta are constants."""
        cfg, policy = self.config, self.policy
        latents, action, level = chain.latents, chain.action, policy.level(tau)
        row = tau + 1 if cfg.score_pairing == "before" else tau
        point = latents.gather(0, row.view(1, -1, 1).expand(1, -1, latents.shape[-1]))[0]
        matched = chain.at.evaluate(policy.point(point), tau, "score", [kept[-1:] for kept in chain.record.kept])
        energy, slope, target = self._guide(state, action, point, level, proposals, multiplier, beta)
        score_loss, of_score = self.formulas.match(matched.output, point, level, target, beta)
        entropy, upstream = self.formulas.upstream(latents, noise, action, slope, beta)
        gradients = policy.gradients(state, chain.at, latents, chain.record, upstream, matched, of_score, row, level)
        means = self.formulas.means(energy)
        loss = means.energy[0] + cfg.score_weight * score_loss - beta * entropy
        return PolicyStep(loss, score_loss, entropy, means.energy[0], means.risk, means.effective_multiplier, gradients)

    def _guide(
        self, state: Tensor, action: Tensor, point: Tensor, level: Level, noise: Tensor, multiplier: Tensor, beta: Tensor
    ) -> tuple[Lagrangian, Tensor, Tensor]:
        """Energy at the chain's actions, its action gradient there, and the Monte-Carlo score phi* at ``point``: one pass of the critics."""
        formulas, low, penalty = self.formulas, self.low_precision, self.penalty(multiplier)
        proposals = formulas.propose(point, action, level, noise)
        critics = self.critic, self.cost_critic, (self.critic.layers(low), self.cost_critic.layers(low))
        at = evaluate(*critics, state, proposals.actions, penalty, formulas.lagrangian)
        weights, energy = formulas.weigh(at.energy, proposals, beta)
        of_action = energy_gradient(*critics, at._replace(energy=energy), penalty)
        return energy, of_action[0], formulas.target(proposals, weights, of_action, beta)

    # ------------------------------------------------------------------------------------------------ one update

    @torch.inference_mode()  # a twentieth faster than no_grad
    def update_batch(self, batch: Batch, noise: UpdateNoise, episode_cost: Tensor | None = None) -> Metrics:
        """Critics, then the policy, then the multiplier, then the targets, in the order of the release.

        1. reward critics to r + gamma (1 - terminated) min_j Q'_j(s', a'), each cost member to c + gamma_c (1 - terminated) Qc'_m(s', a')
        2. policy on  mean[L_A(s, a_0)] - beta * H + score_weight * mse(phi, phi*)  with gradients through the chain; critics are constants
        3. beta to the target entropy, lambda by its rule
        4. targets by Polyak averaging, every ``target_every`` updates

        ``episode_cost`` (constraints,) in the units of h, what an episode of late cost (``Replay.spent``), moves lambda with ``multiplier_actions`` "recent".
        """
        cfg = self.config
        critics, chain = self.critic_step(batch, noise)
        self._set_gradients("critic", critics.reward_gradients)
        self._set_gradients("cost_critic", critics.cost_gradients)
        self._require_finite(("critic", "cost_critic"), reward_critic_loss=critics.reward_loss, cost_critic_loss=critics.cost_loss)
        self.critic_optimiser.step()

        multiplier, beta = self.multiplier, self.log_beta.detach().exp().to(self.device, self.dtype)
        policy = self.policy_step(
            batch.observation, chain, noise.tau, noise.proposals, noise.policy, multiplier.to(self.device, self.dtype), beta
        )
        self._set_gradients("policy", [policy.gradients.get(name) for name in self.flat["policy"].names])
        self._require_finite(("policy",), policy_loss=policy.loss)
        self.policy_optimiser.step()

        if cfg.entropy == "tuned":
            excess = policy.entropy - cfg.target_entropy * self.shape.action
            self.flat["beta"].gradient.copy_(excess)
            self.beta_optimiser.step()
        risk, violation = self._constraint(batch, policy, episode_cost)
        self.multiplier_state = self.multiplier_update.step(self.multiplier_state, violation.minimum(self.ceiling) / self.unit)

        if self.updates % cfg.target_every == 0:
            self._polyak()
        self.updates += 1
        return self._metrics(critics, policy, risk, violation, multiplier)

    def _set_gradients(self, owner: str, gradients: Sequence[Tensor | None]) -> None:
        pairs = zip(self.flat[owner].gradients, gradients, strict=True)
        found = [(room, gradient) for room, gradient in pairs if gradient is not None and gradient.data_ptr() != room.data_ptr()]  # C++ may have written there
        if found:
            torch._foreach_copy_([room for room, _ in found], [gradient for _, gradient in found])

    def _constraint(self, batch: Batch, policy: PolicyStep, episode_cost: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean risk, and by how much what moves lambda exceeds h: (constraints,) each."""
        replayed = self.config.multiplier_actions == "replay"
        mean = (self.risk(batch.observation, batch.action).mean(-1) if replayed else policy.risk).to("cpu", torch.float64)
        assert (episode_cost is not None) == (self.config.multiplier_actions == "recent")
        return mean, (mean if episode_cost is None else episode_cost) - self.budget

    @torch.no_grad()
    def risk(self, state: Tensor, action: Tensor) -> Tensor:
        """R(s, a) of every constraint: (constraints, batch)."""
        layers = self.cost_critic.layers(self.low_precision)
        values = trace(layers, state, action[None], "silu", "nothing").values[:, 0]
        return ensemble_risk(values.unflatten(0, (len(self.budget), -1)).transpose(0, 1), self.config.risk_std)

    @torch.no_grad()
    def _polyak(self) -> None:
        cfg = self.config
        rates = {"critic": ("critic_target", cfg.polyak), "cost_critic": ("cost_target", cfg.polyak if cfg.cost_polyak is None else cfg.cost_polyak)}
        for online, (target, rate) in rates.items():
            self.flat[target].whole.lerp_(self.flat[online].whole, rate)
            self.flat[target].written()

    def _metrics(self, critics: CriticStep, policy: PolicyStep, risk: Tensor, violation: Tensor, multiplier: Tensor) -> Metrics:
        """What this update used and found; one suffix per constraint where there are several."""
        effective = policy.effective_multiplier * self.limits[1]
        metrics: Metrics = {
            "reward_critic_loss": critics.reward_loss, "cost_critic_loss": critics.cost_loss, "energy": policy.energy,
            "score_loss": policy.score_loss, "entropy": policy.entropy / self.shape.action, "beta": self.beta,
        }  # fmt: skip
        for c in range(len(self.budget)):
            end = "" if len(self.budget) == 1 else f"_{c}"
            metrics |= {f"multiplier{end}": multiplier[c], f"effective_multiplier{end}": effective[c],
                        f"risk{end}": risk[c], f"violation{end}": violation[c]}  # fmt: skip
        return metrics

    def _require_finite(self, owners: tuple[str, ...], **losses: Tensor) -> None:
        named = ((f"{owner}.{name}", p.grad) for owner in owners for name, p in self._modules()[owner].named_parameters())
        total = torch.stack([self.flat[owner].gradient.sum() for owner in owners]).sum()
        require_finite(self.updates, losses, total, named)

    # ------------------------------------------------------------------------------------------------ the learner's protocol

    def draw(self, batch: int) -> UpdateNoise:
        """The noise of one update, from the learner's own generator."""
        shape = (self.config.proposals, batch, self.shape.action)
        tau = torch.randint(self.config.steps, (batch,), generator=self.generator, device=self.device)
        proposals = torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)
        return UpdateNoise(
            self.policy.draw(batch, self.generator), self.policy.draw(batch, self.generator), tau, proposals
        )

    def update(self, replay: Replay, updates: int) -> Metrics:
        """``updates`` updates on batches of ``replay``; the metrics are those of the last."""
        metrics: Metrics = {}
        if self.updates == 0 and self.config.reward_unit == "random":
            self.reward_unit = replay.reward_size()
        cost = replay.spent(self.budgets, self.config.recent_steps) if self.config.multiplier_actions == "recent" else None
        for _ in range(updates):
            batch = replay.sample(self.config.batch_size, self.generator)
            batch = batch._replace(reward=batch.reward / self.reward_unit)
            metrics = self.update_batch(batch, self.draw(self.config.batch_size), cost)
        return metrics | {"reward_unit": self.reward_unit}

    def observe(self, observation: Tensor) -> None:
        """ALGD keeps no running statistics of observations."""

    @torch.inference_mode()
    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        """(envs, observation) -> (envs, action) inside the bounds."""
        state = observation.to(self.device, self.dtype)
        if mode != "deterministic":
            return self.policy.sample(state, self.policy.draw(len(state), generator))
        if self.config.evaluation == "zero":
            return self.policy.mean_action(state)
        n = self.config.evaluation_samples
        actions = self.policy.sample(state.repeat(n, 1), self.policy.draw(n * len(state), generator)).view(n, len(state), -1)
        layers = (self.critic.layers(), self.cost_critic.layers())
        energy = evaluate(self.critic, self.cost_critic, layers, state, actions, self.penalty()).energy
        return actions[energy.value.argmin(0), torch.arange(len(state), device=self.device)]

    def _modules(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, "critic": self.critic, "cost_critic": self.cost_critic,
                "critic_target": self.critic_target, "cost_target": self.cost_target}  # fmt: skip

    def _optimisers(self) -> dict[str, Adam]:
        return {"critics": self.critic_optimiser, "policy": self.policy_optimiser, "beta": self.beta_optimiser}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, targets, Adam moments, multiplier, temperature, counter and generator, as flat named tensors."""
        state = gather(self._modules(), self._optimisers())
        state |= {f"multiplier.{name}": value for name, value in self.multiplier_state.items()}
        state["log_beta"] = self.log_beta
        state["updates"] = torch.tensor(self.updates)
        state["reward_unit"] = torch.tensor(self.reward_unit, dtype=torch.float64)
        state["generator"] = self.generator.get_state()
        return {name: value.detach().clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict``. Raises ``UserError`` where the state is of another configuration or environment."""
        try:
            restore(state, self._modules(), self._optimisers())
            self.multiplier_state = {name: state[f"multiplier.{name}"].clone() for name in self.multiplier_state}
            with torch.no_grad():
                self.log_beta.copy_(state["log_beta"])
            self.updates, self.reward_unit = int(state["updates"]), float(state.get("reward_unit", 1.0))
            self.generator.set_state(state["generator"].cpu())
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(
                f"the saved learner does not fit this configuration or environment ({str(error).splitlines()[0]})."
            ) from error
