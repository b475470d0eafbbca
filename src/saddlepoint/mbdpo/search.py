"""The agent's search: the planner of the config, on a world model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.diffusion.schedule import Schedule, linear_betas, prior_reaching_betas, vp_schedule
from saddlepoint.mbdpo.config import MBDPOConfig
from saddlepoint.mbdpo.imagine import Constraint, Prospects, policy_rollouts, prospects, roll
from saddlepoint.mbdpo.planner import X, denoise, denoising_step, mppi, plan_score, propose, score_of_mean, visited
from saddlepoint.mbdpo.shield import Imagined, Left, checked
from saddlepoint.mbdpo.world_model import WorldModel
from saddlepoint.nn import ops
from saddlepoint.nn.products import linear


class PlanNoise(NamedTuple):
    """Every random draw of one plan. ``rounds`` are the visited levels from the noisiest on, or MPPI's iterations; normal where nothing else is said."""

    proposals: Tensor  # (rounds, batch, proposals, horizon, action)
    rollouts: Tensor  # (rounds, or 1 for once a plan, horizon, batch, rollouts, action)
    terminal: Tensor  # (rounds, batch, proposals, action): the prior's noise at the end of each proposal
    critics: Tensor  # (rounds, 2) int64: the two critics that are averaged
    action: Tensor  # (batch, action): exploration
    choice: Tensor  # (batch,) uniform on [0, 1): which elite MPPI executes
    start: Tensor  # (batch, horizon, action): where the reverse process starts; no rows when it starts at the last plan

    @classmethod
    def draw(cls, config: MBDPOConfig, batch: int, action: int, like: Tensor, generator: torch.Generator, levels: int | None = None) -> PlanNoise:
        """Noise for ``batch`` plans, in the type and on the device of ``like``; denoising may visit fewer ``levels``, as ``Search`` does."""
        c = config
        rounds = {"denoise": len(visited(c.steps, levels)), "mppi": c.mppi_iterations}.get(c.planner, 0)
        own = rounds if c.planner == "denoise" and c.rollouts == "each" else min(rounds, 1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

        return cls(
            normal(rounds, batch, c.proposals, c.horizon, action),
            normal(own, c.horizon, batch, c.policy_rollouts, action),
            normal(rounds, batch, c.proposals, action),
            draw_critics(c.critics, rounds, generator),
            normal(batch, action),
            torch.rand(batch, generator=generator, dtype=like.dtype, device=like.device),
            normal(batch if c.reverse_start == "noise" else 0, c.horizon, action),
        )


def draw_critics(critics: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Two different critics for each of ``rounds``: (rounds, 2) int64."""
    return torch.rand(rounds, critics, generator=generator, device=generator.device).argsort(-1)[:, :2]


def noise_levels(config: MBDPOConfig) -> Schedule:
    """The schedule that ``config.levels`` names. Its proposals spread sigma/alpha about a plan."""
    c = config
    if c.levels == "betas":
        return vp_schedule(linear_betas(c.steps, c.beta_first, c.beta_last))
    least, most = (spread / (1 + spread**2) ** 0.5 for spread in (c.spread_first, c.spread_last))
    return vp_schedule(prior_reaching_betas(c.steps, least, most))


def runs_native(config: MBDPOConfig, device: torch.device, compile: bool) -> bool:
    """Whether the networks' passes are native operations."""
    return compile and device.type == "cpu" and ops.native_wins(config.width, config.latent, config.encoder_width)


def low_products(config: MBDPOConfig, asked: ops.Precision, device: torch.device, compile: bool) -> bool:
    """Whether a precision that was ``asked`` for comes to products in bfloat16: auto does where native operations were measured to be faster so."""
    return ops.resolve_precision(asked, device) == torch.bfloat16 and (asked != "auto" or runs_native(config, device, compile))


def _lower(model: WorldModel, native: bool) -> WorldModel:
    """A copy of the model whose products are in bfloat16: by native operations, or else with all its weights so.

    Its discounts and running statistics are the model's own.
    """
    low = copy.deepcopy(model).requires_grad_(False)
    if native:
        low.lower()
        low.accelerate()
    else:
        low.to(torch.bfloat16)
    low.gamma, low.energy_mean, low.energy_std = model.gamma, model.energy_mean, model.energy_std
    return low


class Search:
    """Plans from latents, and the amortised plan of the score network. It reads the model and never writes to it."""

    def __init__(self, config: MBDPOConfig, model: WorldModel, compile: bool, acts: bool = True, levels: int | None = None) -> None:
        """Without ``acts`` it serves learning alone, whose plans are imagined in the model's own precision. ``levels``: of denoising, where not all."""
        self.config, self.model = config, model
        self.levels = visited(config.steps, levels)
        self.schedule = noise_levels(config)
        self.alpha_bar: list[float] = self.schedule.alpha_bar.tolist()
        # The one compile site. On a CPU the networks' passes are native operations; elsewhere PyTorch compiles the imagined steps, which are nearly
        # all of a plan's work.
        device = model.energy_mean.device
        low = acts and not model.low and low_products(config, config.precision, device, compile)
        self._low = _lower(model, runs_native(config, device, compile)) if low else None
        if compile and device.type == "cpu":
            model.accelerate()
        self.roll: Callable[..., ops.Imagined] = torch.compile(roll, dynamic=False) if compile and device.type != "cpu" else roll

    def refresh(self) -> None:
        """Take over the model's weights where planning works on a copy of lower precision."""
        if self._low is not None:
            with torch.no_grad():
                torch._foreach_copy_(list(self._low.parameters()), list(self.model.parameters()))
            self._low.changed()

    def values(
        self, z: Tensor, plans: Tensor, noise: Tensor, critics: Tensor, task: Tensor | None, episodic: bool, constraint: Constraint | None,
        exact: bool = False,
    ) -> Tensor:  # fmt: skip
        """G of ``plans`` (batch, proposals, horizon, action) from ``z`` (batch, 1, latent), less the penalty: (batch, proposals), in the latents' precision.

        ``exact`` imagines in the model's own precision even where planning is to use a lower one.
        """
        found = self.prospects(z, plans, noise, critics, task, episodic, constraint is not None, exact)
        return found.value(constraint).to(z.dtype)

    def prospects(
        self, z: Tensor, plans: Tensor, noise: Tensor, critics: Tensor, task: Tensor | None, episodic: bool, costly: bool, exact: bool = False
    ) -> Prospects:
        """Returns and costs of ``plans``, as ``values`` takes them."""
        model = self.model if exact or self._low is None else self._low
        kind = next(model.parameters()).dtype
        rolled = self.roll(model, z.to(kind), plans.to(kind), task, episodic, costly)
        return prospects(model, rolled, plans.shape[-2], noise.to(kind), critics.tolist(), task)

    def plan(
        self, z: Tensor, start: Tensor, noise: PlanNoise, task: Tensor | None, episodic: bool, constraint: Constraint | None, explore: bool,
        left: Left | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Plans (batch, horizon, action) from ``z`` (batch, latent), and the actions (batch, action) to execute. ``task`` is None or (batch,).

        ``start`` is the last plan moved on by a step, zeros at the start of an episode. Where it is said what is ``left`` of the budget, the plan is held to
        it: all that were imagined on the way stand in for one that is too costly (``shield.checked``).
        """
        c, model = self.config, self.model
        if explore and c.reverse_start == "noise" and c.planner in ("denoise", "score"):
            start = start + ((1 - self.alpha_bar[-1]) / self.alpha_bar[-1]) ** 0.5 * noise.start  # ``denoise`` shrinks it by sqrt(alpha_bar)
            if c.planner == "score":
                start = start.clamp(-1, 1)  # the network is trained at such points alone
        start = model.masked(start, None if task is None else task[:, None])
        if c.planner == "policy":
            sample = model.policy(z, noise.action, task)
            return start, sample.action if explore else sample.mean
        if c.planner == "score":
            return self._executed(self.amortised(z, start, task), noise, task, explore)
        states, tasks = z.unsqueeze(1), None if task is None else task[:, None]
        ours = policy_rollouts(model, states, noise.rollouts[0], tasks)

        def complete(plans: Tensor, i: int) -> Tensor:
            rollouts = ours if i == 0 or len(noise.rollouts) == 1 else policy_rollouts(model, states, noise.rollouts[i], tasks)
            plans = model.masked(plans, None if task is None else task[:, None, None])
            return torch.cat([rollouts, plans[:, rollouts.shape[1] :]], dim=1)

        seen: list[Imagined] = []

        def value(plans: Tensor, i: int) -> Tensor:
            terminal = noise.terminal[i][:, : plans.shape[1]]
            found = self.prospects(states, plans, terminal, noise.critics[i], tasks, episodic, constraint is not None)
            if left is not None and constraint is not None:
                risk = constraint.risk(found.cost_within(left.tail))
                seen.append(Imagined(plans, found.gain.to(z.dtype), risk.to(z.dtype)))
            return found.value(constraint).to(z.dtype)

        def held(plan: Tensor) -> tuple[Tensor, Tensor | None]:
            """The plan that is within what is left, and where it is another one."""
            if left is None:
                return plan, None
            value(plan.unsqueeze(1), -1)
            return checked(seen[-1], seen[:-1], left)

        if c.planner == "mppi":
            choice = torch.cat([noise.choice[:, None], noise.action], dim=1) if explore else None
            mean, action = mppi(start, noise.proposals, complete, value, c.temperature, c.elites, (c.mppi_min_std, c.mppi_max_std), choice)
            mean, other = held(mean)
            if other is not None:
                action = torch.where(other[:, None], mean[:, 0], action)
            return mean, model.masked(action, task)

        def score(x: Tensor, tau: int) -> Tensor:
            i = self.levels.index(tau)
            plans = complete(propose(x, self.alpha_bar[tau], noise.proposals[i]), i)
            return plan_score(x, plans, value(plans, i), self.alpha_bar[tau], c.temperature, c.elites)

        return self._executed(held(denoise(start, self.schedule, self.levels, score))[0], noise, task, explore)

    def _executed(self, plan: Tensor, noise: PlanNoise, task: Tensor | None, explore: bool) -> tuple[Tensor, Tensor]:
        action = plan[:, 0] + self.config.action_noise * noise.action if explore else plan[:, 0]
        return plan, self.model.masked(action, task).clamp(-1, 1)

    def amortised(self, z: Tensor, start: Tensor, task: Tensor | None, levels: int | None = None) -> Tensor:
        """The plans (batch, horizon, action) that the score network denoises from ``z`` (batch, latent), over all levels or ``levels`` of them."""
        model, net = self.model, self.model.score_head
        parts = (z,) if task is None else (z, model.embedding(task))
        # All that does not change from level to level: the state's and the levels' parts of the first layer.
        whole = net.whole(frozen=True)
        fixed = sum((linear(part, weight) for part, weight in zip(parts, whole.first)), start=whole.biases[0])
        mask, visits = None if task is None else task[:, None], visited(self.config.steps, levels)
        times = linear(model.times, whole.first[-1])[visits]
        start = model.masked(start, mask)
        held = None if task is None else model.masked(torch.ones_like(start), mask).flatten(1)
        x = ops.normed_chain(whole, len(parts), fixed, times, self.alpha_bar[-1] ** 0.5 * start.flatten(1), self._steps(visits), held)
        return x.clamp(-1, 1).view_as(start)

    def _steps(self, levels: Sequence[int]) -> ops.ChainTable:
        """Coefficients: a denoising step from each of ``levels`` is x <- keep x + drift output. Both are linear in either."""

        def step(x: float, output: float, tau: int, after: int) -> float:
            alpha_bar = self.alpha_bar[tau]
            return denoising_step(x, self.score_from_output(x, output, alpha_bar), alpha_bar, self.alpha_bar[after])

        pairs = list(pairwise([*levels, 0]))
        return ops.ChainTable(tuple(step(1.0, 0.0, *pair) for pair in pairs), tuple(step(0.0, 1.0, *pair) for pair in pairs))

    def score_from_output(self, x: X, output: X, alpha_bar: float) -> X:
        """The score that the network's output means: itself (released), or that of the mean plan which it predicts."""
        return output if self.config.score_training == "released" else score_of_mean(x, output, alpha_bar)
