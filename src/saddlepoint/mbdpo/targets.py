"""What MBDPO's heads are fitted to: latents of what came next, and TD targets there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.mbdpo.imagine import Constraint
from saddlepoint.mbdpo.losses import Sequences, UpdateNoise, plans_taken, td_target
from saddlepoint.mbdpo.search import Search


class Targets(NamedTuple):
    """Constants, made before any weight moves."""

    next_z: Tensor  # (horizon, batch, latent)
    value: Tensor  # (horizon, batch)
    cost: Tensor | None  # (constraints * members, horizon, batch)
    risk: Tensor  # (constraints,) float64: mean risk of the target's actions


class TargetMaker:
    """r + gamma (1 - terminated) min of two Q'(z', a'), and c + gamma_c (1 - terminated) Qc'_m(z', a'), with a' as ``td_action`` says."""

    def __init__(self, search: Search, compile: bool) -> None:
        self.search, self.model, self.config = search, search.model, search.config
        c = self.config
        self.planner = Search(c.td_search(), self.model, compile, acts=False, levels=c.td_levels) if c.td_action == "plan" else None

    @torch.no_grad()
    def make(self, data: Sequences, noise: UpdateNoise, episodic: bool, constraint: Constraint | None) -> Targets:
        """The targets of an update."""
        c, model = self.config, self.model
        next_z = model.encode(data.observation[1:], data.task)
        if c.td_action == "prior":
            action = model.policy(next_z, noise.target, data.task).action
        else:
            plan = self.plans(next_z.flatten(0, 1), data, noise, episodic, constraint)[:, 0].view_as(noise.target)
            action = model.masked((plan + c.action_noise * noise.target).clamp(-1, 1), data.task)
        value = td_target(model, next_z, data.reward, data.terminated, action, noise.target_critics.tolist(), data.task)
        if constraint is None:
            return Targets(next_z, value, None, torch.zeros(0, dtype=torch.float64))
        future = model.decode_cost(model.cost_value_logits(next_z, action, data.task, target=True))
        cost = data.cost.repeat_interleave(c.cost_members, 0) + c.cost_gamma * (1 - data.terminated) * future
        return Targets(next_z, value, cost, constraint.risk(future).flatten(1).mean(1).to("cpu", torch.float64))

    def plans(self, z: Tensor, data: Sequences, noise: UpdateNoise, episodic: bool, constraint: Constraint | None) -> Tensor:
        """Plans (horizon * batch, horizon, action) from the next states ``z`` (horizon * batch, latent)."""
        c, task = self.config, None if data.task is None else data.task.repeat(self.config.horizon)
        start = z.new_zeros(len(z), c.horizon, self.model.action) if c.td_action == "search" else plans_taken(data.action)
        if self.planner is not None and noise.plan is not None:
            return self.planner.plan(z, start, noise.plan, task, episodic, constraint, explore=False)[0]
        return self.search.amortised(z, start, task, c.td_levels)
