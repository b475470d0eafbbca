"""The arithmetic of an update between the networks' passes, element by element. On a CPU C++ can do it (``fused_formulas.py``); what is here is what that is
held to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.energy import Lagrangian, Penalty, lagrangian
from saddlepoint.algd.policy import ChainNoise, DiffusionPolicy, Level
from saddlepoint.constrained.risk import cautious
from saddlepoint.diffusion.energy_score import energy_weights, propose, weighted_score
from saddlepoint.types import Batch


class Proposals(NamedTuple):
    """Where the clean sample of a noised latent may have been."""

    centre: Tensor  # (batch, action): what they were drawn around
    candidates: Tensor  # (proposals, batch, action), in the score's space
    actions: Tensor  # (1 + proposals, batch, action): the chain's actions, then those of the candidates
    log_jacobian: Tensor | None  # (proposals, batch): log |da/dx| of the candidates, where the score is the latent's
    alpha: Tensor  # (batch,)
    sigma: Tensor  # (batch,)


class Means(NamedTuple):
    """Over the batch, at the chain's actions."""

    energy: Tensor  # (1,)
    risk: Tensor  # (constraints,)
    effective_multiplier: Tensor  # (constraints,): the members' slopes in the risk sum to 1, so theirs in the energy to the penalty's


class Formulas:
    """What an update computes of the networks' outputs. ``policy`` is the one that is updated."""

    def __init__(self, config: ALGDConfig, policy: DiffusionPolicy, constraints: int):
        self.config, self.policy, self.constraints = config, policy, constraints
        self.latent = config.score_space == "latent"

    def bellman(self, batch: Batch, reward: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """What the critics are fitted to, (batch,) and (constraints * members, batch), from the targets' values at a' ~ pi(s'), (heads, batch) and so:
        r + gamma (1 - terminated) min_j Q'_j(s', a') and c + gamma_c (1 - terminated) Qc'_m(s', a')."""
        cfg, alive = self.config, 1 - batch.terminated
        if cfg.cost_bootstrap != "own":
            members = cost.unflatten(0, (self.constraints, -1))
            cost = cautious(members, cfg.cost_bootstrap == "pair").unsqueeze(1).expand_as(members).flatten(0, 1)
        cost = cost.clamp(min=0) if cfg.nonnegative_costs else cost
        paid = batch.cost.T.unsqueeze(1).expand(-1, cfg.cost_members, -1).flatten(0, 1)
        return (
            batch.reward + cfg.gamma * alive * reward.amin(0),
            paid + cfg.cost_gamma * (1.0 if cfg.cost_through_termination else alive) * cost,
        )

    def lagrangian(self, reward: Tensor, cost: Tensor, penalty: Penalty) -> Lagrangian:
        return lagrangian(reward, cost, penalty)

    def means(self, energy: Lagrangian) -> Means:
        effective = energy.cost_slope[:, 0].mean(-1).unflatten(0, (self.constraints, -1)).sum(-1)
        return Means(energy.value[:1].mean(-1), energy.risk[:, 0].mean(-1), effective)

    def propose(self, point: Tensor, action: Tensor, level: Level, noise: Tensor) -> Proposals:
        """Around the noised ``point`` (batch, action), from ``noise`` (proposals, batch, action)."""
        cfg, box = self.config, self.policy.box
        # The released proposals are Gaussian in action space with the latent's width, and not divided by alpha [9].
        alpha = level.alpha if self.latent else torch.ones_like(level.alpha)
        sigma = level.sigma if cfg.prediction != "guided" else (level.sigma.square() + 1e-8).sqrt()
        centre = point if self.latent else box.squash(point)
        candidates = propose(centre, alpha, sigma, noise)
        if cfg.clip_proposals and not self.latent:
            candidates = candidates.clamp(box.low, box.high)
        actions = torch.cat([action[None], box.squash(candidates) if self.latent else candidates])
        return Proposals(centre, candidates, actions, box.log_jacobian(candidates) if self.latent else None, alpha, sigma)

    def weigh(self, energy: Lagrangian, proposals: Proposals, beta: Tensor) -> tuple[Tensor, Lagrangian]:
        """The proposals' weights (proposals, batch), and the energy with slopes only where its gradient matters: at the chain's actions, and at proposals whose
        weight is not lost in rounding (of five trained agents' on four tasks 18 to 29 % were). The density of the latent is that of the action times
        |da/dx|."""
        values = energy.value[1:]
        if proposals.log_jacobian is not None:
            values = values - beta * proposals.log_jacobian
        weights = energy_weights(values, beta)
        matters = weights > (torch.finfo(weights.dtype).eps if self.config.score_form == "gradient" else 1)
        where = torch.cat([torch.ones_like(matters[:1]), matters])
        return weights, energy._replace(reward_slope=energy.reward_slope * where, cost_slope=energy.cost_slope * where)

    def target(self, proposals: Proposals, weights: Tensor, of_action: Tensor, beta: Tensor) -> Tensor:
        """The Monte-Carlo score phi* at the point, (batch, action), from dE/da at the proposals' actions, shaped as these."""
        at, slope = proposals, of_action[1:]
        if self.latent:
            slope = slope * self.policy.box.slope(at.actions[1:]) + 2 * beta * torch.tanh(at.candidates)
        return weighted_score(at.centre, at.candidates, weights, at.alpha, at.sigma, beta, slope if self.config.score_form == "gradient" else None)

    def match(self, output: Tensor, point: Tensor, level: Level, target: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """The score loss, 0-d, of the network's ``output`` at the point, and ``score_weight`` times its gradient at the score, (batch, action)."""
        error = level.gain.unsqueeze(-1) * output + level.shift.unsqueeze(-1) * point - target
        weight = (beta * level.sigma.square()).unsqueeze(-1) if self.config.score_loss_scale == "energy" else torch.ones_like(error)
        return (weight * error.square()).mean(), (2 * self.config.score_weight / error.numel()) * weight * error

    def upstream(self, latents: Tensor, noise: ChainNoise, action: Tensor, of_action: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean path entropy H, 0-d (0 without an entropy bonus), and the gradient of  mean E - beta H  at the latents, shaped as these, from dE/da at the
        chain's actions (batch, action)."""
        if self.config.entropy == "none":
            entropy, found = latents.new_zeros(()), torch.zeros_like(latents)
        else:
            entropies, of_entropy = self.policy.path_entropy(latents, noise)
            entropy, found = entropies.mean(), of_entropy * (-beta / len(action))
        found[0] += of_action * self.policy.box.slope(action) / len(action)
        return entropy, found
