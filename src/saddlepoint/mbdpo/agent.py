"""MBDPO: world-model RL whose planner is a denoising process (arXiv 2605.26282), and Safe MBDPO where the environment has a cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saddlepoint.constrained.budget import CostBudget, require_fitting
from saddlepoint.mbdpo.average import Average
from saddlepoint.mbdpo.config import MBDPOConfig
from saddlepoint.mbdpo.control import CostControl
from saddlepoint.mbdpo.encoder import random_shift
from saddlepoint.mbdpo.imagine import Constraint
from saddlepoint.mbdpo.losses import (
    Sequences,
    UpdateNoise,
    by_time,
    contrastive_loss,
    policy_loss,
    released_score_loss,
    running_energy,
    running_scale,
    score_loss,
)  # fmt: skip
from saddlepoint.mbdpo.peers import Alone, Peers
from saddlepoint.mbdpo.search import PlanNoise, Search, low_products
from saddlepoint.mbdpo.shield import budget_left, pay
from saddlepoint.mbdpo.targets import TargetMaker, Targets
from saddlepoint.mbdpo.world_model import Tasks, WorldModel
from saddlepoint.nn.layers import ActionBox
from saddlepoint.nn.ops import native_wins
from saddlepoint.nn.optim import Adam
from saddlepoint.nn.state import gather, restore
from saddlepoint.replay import Replay
from saddlepoint.types import ActMode, Batch, EnvShape, Metrics, NonFiniteError, UserError


class MBDPO:
    """One agent for every planner, with and without costs; see ``MBDPOConfig`` for the choices and ``update_sequences`` for the algorithm.

    Without costs (``shape.constraints`` 0, no budgets) nothing of the constrained part exists. With several ``tasks`` actions are padded to
    ``shape.action`` and every call takes task numbers.
    """

    system = "mbdpo"
    needs_cost = False
    sees_pixels = True

    def __init__(
        self, config: MBDPOConfig, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, compile: bool = False, tasks: Tasks | None = None,
    ):  # fmt: skip
        """``budgets`` has one entry for each of the environment's constraints. Raises ``UserError`` for an impossible configuration."""
        config.validate()
        if shape.image is None:
            config.refuse_pixel_options()
        budgets = require_fitting(budgets, shape.constraints, config.cost_gamma)
        if config.shield and not budgets:
            raise UserError("--shield does nothing here: it holds plans to a cost budget, and there is none. Leave it out, or take an environment with a cost.")
        self.config, self.shape, self.budgets = config, shape, budgets
        self.device, self.dtype, self.compiled = torch.device(device), dtype, compile
        init = torch.Generator().manual_seed(seed)
        bounds = (torch.tensor(edge, dtype=dtype, device=self.device) for edge in (shape.action_low, shape.action_high))
        self.box = ActionBox.from_bounds(*bounds)
        self.model = WorldModel(config, shape, tasks, init).to(self.device, dtype)
        if low_products(config, config.precision_of_learning, self.device, compile):
            self.model.lower()
        self.average = Average(self.model, config.acting_average) if config.acting_average else None
        self.search = Search(config, self.model, compile, acts=self.average is None or config.average_acts != "always")
        self.averaged_search = None if self.average is None else Search(config, self.average.model, compile)
        self.targets = TargetMaker(self.search, compile)
        self.episodic = config.episodic == "on"
        self.control = CostControl(config, budgets)
        ours = list(self.model.policy_head.parameters())
        encoder = list(self.model.encoder.parameters())
        apart = {id(p) for p in (*ours, *encoder)}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in apart]
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": config.learning_rate * config.encoder_rate},
            {"params": others, "lr": config.learning_rate},
        ]
        self.model_parameters = [*encoder, *others]
        self.model_optimiser = Adam(groups, fused=True)
        self.policy_optimiser = Adam(ours, lr=config.learning_rate, eps=1e-5, fused=True)
        self.generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.peers: Peers = Alone()  # those that share an update: pretraining in several processes
        self.updates = 0

    @staticmethod
    def gains_by_compiling(config: MBDPOConfig) -> bool:
        """Whether compiled updates and plans were measured to be faster on a CPU (benchmarks/results/mbdpo_*.json)."""
        return native_wins(config.width, config.latent, config.encoder_width)

    # ------------------------------------------------------------------------------------------------ losses

    @property
    def memory_size(self) -> int:
        """Numbers that ``act_on`` hands on to its next call: the plan, which the next one starts from, and with a shield the costs and the age of the
        episode."""
        return self.config.horizon * self.shape.action + (self.shape.constraints + 1 if self.config.shield else 0)

    @property
    def counts_cost(self) -> bool:
        """Whether acting depends on what the episode has cost so far, which ``paid`` is to be told after each step."""
        return self.config.shield

    @property
    def multiplier(self) -> Tensor:
        """lambda, (constraints,) float64."""
        return self.control.multiplier

    def constraint(self) -> Constraint | None:
        """What imagined costs are held to now; None where there are none."""
        return self.control.constraint(self.device)

    def _model_losses(self, data: Sequences, targets: Targets, noise: UpdateNoise, constraint: Constraint | None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's losses by name, and the latents z_0 .. z_H (horizon + 1, batch, latent) of the rollout. Moves the energy's running statistics."""
        c, model, task = self.config, self.model, data.task
        path = [model.encode(data.observation[0], task)]
        for action in data.action:
            path.append(model.next(path[-1], action, task))
        zs = torch.stack(path)
        before, rows = zs[:-1], data.reward.numel()
        error = (zs[1:] - targets.next_z).square().mean(-1)
        reward = model.code_loss(model.reward_logits(before, data.action, task), data.reward)
        # The critics' rows are flat, so that a mask of dropped units fits them.
        flat = None if task is None else task.repeat(c.horizon)
        logits = model.value_logits(before.flatten(0, 1), data.action.flatten(0, 1), flat, drop=noise.drop)
        value = model.code_loss(logits, targets.value.reshape(rows)).mean(0).view_as(reward)  # mean over members
        losses = {name: by_time(loss, c.temporal_decay) for name, loss in (("consistency", error), ("reward", reward), ("value", value))}
        if c.energy_weight:
            losses["contrastive"], energy_logits = contrastive_loss(model, before, data.action, noise, task)
            mean, std = running_energy(model.energy_mean, model.energy_std, self.peers.pool(energy_logits), c.energy_momentum)
            model.energy_mean.copy_(mean)
            model.energy_std.copy_(std)
        if self.episodic:
            ends = nn.functional.binary_cross_entropy_with_logits(model.termination_logit(zs[1:], task), data.terminated)
            losses["termination"] = ends
        if noise.score is not None:
            if c.score_training == "planner":
                losses["score"] = score_loss(self.search, zs[0], data.action, noise.score, task, self.episodic, constraint)
            else:
                losses["score"] = released_score_loss(self.search, zs[0], noise.score, task, self.episodic, constraint)
        if targets.cost is not None:
            paid = model.code_loss(model.cost_logits(before, data.action, task), data.cost).sum(0)  # sum over constraints
            losses["cost"] = by_time(paid, c.temporal_decay)
            future = model.code_loss(model.cost_value_logits(before, data.action, task), targets.cost).mean(0)  # over constraints and members
            losses["cost_value"] = by_time(future, c.temporal_decay)
        return losses, zs.detach()

    def _policy_step(self, zs: Tensor, noise: UpdateNoise, constraint: Constraint | None, task: Tensor | None) -> Metrics:
        """The prior towards high Q - penalty on the rollout's latents, with the critics constant."""
        c, model = self.config, self.model
        sample = model.policy(zs, noise.policy, task)
        value = model.values(zs, sample.action, task, noise.policy_critics.tolist(), frozen=True).mean(0)
        penalty = None
        if constraint is not None:
            penalty, _ = constraint.penalty(model.decode_cost(model.cost_value_logits(zs, sample.action, task, frozen=True)))
        self.control.value_size.follow(value[0].detach())
        model.value_scale.copy_(running_scale(model.value_scale, self.peers.pool(value[0].detach()), c.polyak))
        loss = policy_loss(model, zs, sample, value, model.value_scale, penalty)
        self.policy_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if model.multitask and not c.leak_task_gradient:
            model.task_table.grad = None
        norm = self._clip("policy", list(model.policy_head.parameters()), {"policy": loss})
        self.policy_optimiser.step()
        model.policy_head.changed()
        entropies = {"policy_entropy": sample.entropy.detach().mean(), "policy_scaled_entropy": sample.scaled_entropy.detach().mean()}
        return {"policy_loss": loss.detach(), "policy_grad_norm": norm, "value_scale": model.value_scale.clone(), **entropies}

    # ------------------------------------------------------------------------------------------------ one update

    def update_sequences(self, data: Sequences, noise: UpdateNoise, episode_cost: Tensor | None = None) -> Metrics:
        """Model and heads in one step, then the policy prior, then the multiplier, then the targets, in the order of the release.

        0. each picture, where observations are pictures, is moved at random by a few pixels
        1. the weighted sum of the losses of prediction, reward, value, energy, and where they exist termination, score, cost and cost value
        2. the prior on  -(Q - penalty)/scale - entropy  at the latents of 1, with the critics of 1
        3. lambda by its rule
        4. target critics by Polyak averaging

        ``episode_cost`` (constraints,) in the units of h, the measured cost of recent episodes (``Replay.spent``),
        moves lambda with ``multiplier_actions`` "recent".
        """
        c, model, constraint = self.config, self.model, self.constraint()
        if c.episodic == "auto" and not self.episodic:
            self.episodic = bool(self.peers.pool(data.terminated).any())
        if noise.shift is not None and model.image is not None:
            data = data._replace(observation=random_shift(data.observation, noise.shift, model.image))
        targets = self.targets.make(data, noise, self.episodic, constraint)
        losses, zs = self._model_losses(data, targets, noise, constraint)
        weights = {
            "consistency": c.consistency_weight, "reward": c.reward_weight, "value": c.value_weight, "contrastive": c.contrastive_weight,
            "termination": c.termination_weight, "score": c.score_weight, "cost": c.cost_weight, "cost_value": c.cost_weight,
        }  # fmt: skip
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        total.backward()
        norm = self._clip("model", self.model_parameters, losses)
        self.model_optimiser.step()
        model.changed()
        self.model_optimiser.zero_grad(set_to_none=True)
        policy = self._policy_step(zs, noise, constraint, data.task)
        control = self.control.move(targets.risk, episode_cost)
        self._polyak()
        if self.average is not None:
            self.average.follow(self.updates)
        self.refresh()
        self.updates += 1
        metrics: Metrics = {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        metrics |= {"total_loss": total.detach(), "grad_norm": norm, **policy}
        metrics |= {"energy_mean": model.energy_mean.clone(), "energy_std": model.energy_std.clone()}
        return metrics | control

    @torch.no_grad()
    def _polyak(self) -> None:
        c, model = self.config, self.model
        pairs = [(model.target_critics, model.critics, c.polyak)]
        if self.budgets:
            pairs.append((model.target_cost_critics, model.cost_critics, c.polyak if c.cost_polyak is None else c.cost_polyak))
        for target, online, rate in pairs:
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
            target.changed()

    def refresh(self) -> None:
        """Have all that plans take over the weights."""
        for search in (self.search, self.averaged_search):
            if search is not None:
                search.refresh()

    def acting(self, mode: ActMode) -> Search:
        """What plans in ``mode``: on the averaged weights, or on those of the last update."""
        use = self.config.average_acts
        averaged = use == "always" or (use == "evaluation" and mode != "explore")
        return self.averaged_search if averaged and self.averaged_search is not None else self.search

    def _clip(self, owner: str, parameters: list[nn.Parameter], losses: dict[str, Tensor]) -> Tensor:
        """Clip the peers' mean gradient and return its norm before. Raises ``NonFiniteError`` naming the loss or gradient that is not finite."""
        self.peers.average(parameters)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if bool(torch.isfinite(norm)):
            if bool(norm > self.config.clip):
                nn.utils.clip_grads_with_norm_(parameters, self.config.clip, norm)
            return norm
        odd = [f"the {name} loss" for name, loss in losses.items() if not bool(torch.isfinite(loss))]
        odd += [f"the gradient of {n}" for n, p in self.model.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        what = odd[0] if odd else f"the norm of the {owner}'s gradient"
        raise NonFiniteError(f"{what} is not finite at update {self.updates}: lower the learning rate, or look at the environment's rewards and costs.")

    # ------------------------------------------------------------------------------------------------ the learner's protocol

    def sequences(self, batch: Batch) -> Sequences:
        """Sub-sequences of the replay, (batch, time, ...), as the losses take them."""
        last = batch.next_observation[:, -1:]
        observation = torch.cat([batch.observation, last], dim=1).transpose(0, 1)  # in the replay's own type: pictures are four times larger as floats
        action = (batch.action.transpose(0, 1).to(self.dtype) - self.box.bias) / self.box.scale
        cost = batch.cost.permute(2, 1, 0).to(self.dtype)
        return Sequences(observation, action.clamp(-1, 1), batch.reward.T.to(self.dtype), cost, batch.terminated.T.to(self.dtype), None)

    def update(self, replay: Replay, updates: int) -> Metrics:
        """``updates`` updates on sub-sequences of ``replay``; the metrics are those of the last."""
        c = self.config
        metrics: Metrics = {}
        late = bool(self.budgets) and c.multiplier_actions == "recent"
        recent = replay.spent(self.budgets, c.recent_steps) if late else None
        for _ in range(updates):
            data = self.sequences(replay.sample_sequences(c.batch_size, c.horizon, self.generator))
            metrics = self.update_sequences(data, UpdateNoise.draw(self.model, c.batch_size, self.generator), recent)
        return metrics

    def observe(self, observation: Tensor) -> None:
        """MBDPO keeps no running statistics of observations."""

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        """(envs, observation) -> (envs, action) inside the bounds, as at an episode's first step: there is no last plan."""
        return self.act_on(observation, observation.new_zeros(len(observation), self.memory_size), mode, generator)[0]

    @torch.no_grad()
    def predict(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """What the critics of the weights that are evaluated expect to follow: ``reward`` (batch,), the least of them, and ``cost`` (batch, constraints),
        discounted."""
        model = self.acting("deterministic").model
        z, inside = model.encode(observation.to(self.device, self.dtype)), (action.to(self.device, self.dtype) - self.box.bias) / self.box.scale
        found = {"reward": model.values(z, inside).amin(0)}
        if self.budgets:
            found["cost"] = model.decode_cost(model.cost_value_logits(z, inside)).unflatten(0, (len(self.budgets), -1)).mean(1).T
        return found

    def paid(self, memory: Tensor, cost: Tensor) -> Tensor:
        """The memory after a step that cost (envs, constraints): with a shield, what the episode has cost and its age go on."""
        if not self.config.shield:
            return memory
        plan, spent, age = self._remembered(memory)
        return torch.cat([plan, pay(self.budgets, spent, age, cost), age[:, None] + 1], dim=1)

    def _remembered(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of a memory with a shield: plans (envs, horizon * action), costs (envs, constraints), ages (envs,)."""
        plan, spent, age = memory.split([self.config.horizon * self.shape.action, self.shape.constraints, 1], dim=1)
        return plan, spent, age[:, 0]

    @torch.no_grad()
    def act_on(
        self, observation: Tensor, memory: Tensor, mode: ActMode, generator: torch.Generator, task: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(envs, observation) and the last plans (envs, memory_size), zeros at an episode's start -> (envs, action) in bounds, and the new plans.

        Planning draws from ``generator`` in every mode; ``deterministic`` only leaves out the noise on the action and that of ``reverse_start``.
        """
        c, search = self.config, self.acting(mode)
        state, last = observation.to(self.device, self.dtype), memory.to(self.device, self.dtype)
        left, counted = None, last[:, :0]
        if c.shield:
            last, spent, age = self._remembered(last)
            left, counted = budget_left(self.budgets, spent, age, c.horizon), torch.cat([spent, age[:, None]], dim=1)
        last = last.view(len(state), c.horizon, self.shape.action)
        start = torch.cat([last[:, 1:], torch.zeros_like(last[:, :1])], dim=1)
        noise = PlanNoise.draw(c, len(state), self.shape.action, state, generator)
        z = search.model.encode(state, task)
        plan, action = search.plan(z, start, noise, task, self.episodic, self.constraint(), mode != "deterministic", left)
        return action * self.box.scale + self.box.bias, torch.cat([plan.flatten(1), counted], dim=1)

    def _models(self) -> dict[str, nn.Module]:
        return {"model": self.model} if self.average is None else {"model": self.model, "average": self.average.model}

    def _optimisers(self) -> dict[str, torch.optim.Adam]:
        return {"model": self.model_optimiser, "policy": self.policy_optimiser}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, targets, running statistics, Adam moments, multiplier, counters and generator, as flat named tensors."""
        state = gather(self._models(), self._optimisers())
        state |= self.control.state_dict()
        if self.model.multitask and self.model.task_table.grad is not None and self.config.leak_task_gradient:
            state["leaked"] = self.model.task_table.grad
        state["episodic"] = torch.tensor(self.episodic)
        state["updates"] = torch.tensor(self.updates)
        state["generator"] = self.generator.get_state()
        return {name: value.detach().clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict``. Raises ``UserError`` where the state is of another configuration or environment."""
        try:
            restore(state, self._models(), self._optimisers())
            self.control.load(state)
            if self.model.multitask:
                self.model.task_table.grad = state["leaked"].to(self.model.task_table, copy=True) if "leaked" in state else None
            self.episodic = bool(state["episodic"])
            self.updates = int(state["updates"])
            self.generator.set_state(state["generator"].cpu())
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"the saved learner does not fit this configuration or environment ({str(error).splitlines()[0]}).") from error
        self.refresh()
