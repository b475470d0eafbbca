"""ALGD's losses as pure functions of values and given noise, under ordinary autograd (arXiv 2602.02924)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.energy import Constraint, Energy, per_value
from saddlepoint.algd.policy import ChainNoise, DiffusionPolicy
from saddlepoint.constrained.risk import cautious
from saddlepoint.diffusion.energy_score import energy_score
from saddlepoint.nn.critics import Critic
from saddlepoint.replay import Ahead
from saddlepoint.types import Batch


class UpdateNoise(NamedTuple):
    """Every random draw of one update."""

    next: ChainNoise
    """for a' ~ pi(s')"""
    policy: ChainNoise
    """for a_0 ~ pi(s)"""
    tau: Tensor
    """(batch,) the step at which the score is matched"""
    proposals: Tensor
    """(proposals, batch, action)"""


class CriticLosses(NamedTuple):
    reward: Tensor
    """squared Bellman errors, summed over the heads, mean over the batch"""
    cost: Tensor
    """the same, mean over each constraint's members and the batch, summed over the constraints"""


class PolicyLoss(NamedTuple):
    """0-d losses, and what the metrics and lambda are made of."""

    total: Tensor
    score: Tensor
    entropy: Tensor
    """mean over the batch"""
    energy: Tensor
    """mean over the batch"""
    risk: Tensor
    """(constraints,), mean over the batch"""
    reward: Tensor
    """(heads, 1, batch), Q_j at the policy's actions"""
    cost: Tensor
    """(constraints * members, 1, batch), Qc_m there"""


def bellman_targets(config: ALGDConfig, batch: Batch, ahead: Ahead, reward: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """r + gamma (1 - terminated) min_j Q'_j(s', a'), (batch,), and  sum_{k<m} gamma_c^k c_k + gamma_c^m (1 - terminated) Qc'_m(s_m, a_m).

    The second is (constraints * members, batch), m steps ahead (``cost_steps``). ``reward`` (heads, batch) are the target critics' values at
    a' ~ pi(s'), ``cost`` (constraints * members, batch) those at a_m ~ pi(s_m).
    """
    constraints = batch.cost.shape[-1]
    members = cost.unflatten(0, (constraints, -1))
    if config.cost_bootstrap != "own":
        members = cautious(members, config.cost_bootstrap == "pair").unsqueeze(1).expand_as(members)
    members = members.clamp(min=0) if config.nonnegative_costs else members
    goes_on = ahead.discount if config.cost_through_termination else ahead.discount * (1 - ahead.terminated)
    cost_target = ahead.cost.T.unsqueeze(1) + goes_on * members
    return batch.reward + config.gamma * (1 - batch.terminated) * reward.amin(0), cost_target.flatten(0, 1)


def critic_losses(
    config: ALGDConfig, critic: Critic, cost_critic: Critic, batch: Batch, reward_target: Tensor, cost_target: Tensor
) -> CriticLosses:
    """Squared Bellman errors of the critics at the replayed actions."""
    rows = len(batch.reward)
    reward = critic.loss(batch.observation, batch.action, reward_target, 1 / rows)
    cost = cost_critic.loss(batch.observation, batch.action, cost_target, 1 / (rows * config.cost_members))
    return CriticLosses(reward, cost)


def score_target(
    config: ALGDConfig, policy: DiffusionPolicy, critics: tuple[Critic, Critic], energy: Energy, constraint: Constraint,
    state: Tensor, point: Tensor, tau: Tensor, noise: Tensor, beta: Tensor,
) -> Tensor:  # fmt: skip
    """phi*, the Monte-Carlo score of exp(-E/beta) at the noised ``point`` (batch, action): (batch, action), without a gradient.

    In the latent space the density of x is exp(-E(squash(x))/beta) |da/dx|. In the action space (released) proposals are Gaussian around the
    action with the latent's width, and not divided by alpha [9].
    """
    box, at = policy.box, policy.at_steps(tau)

    def of_action(action: Tensor) -> Tensor:
        return energy(critics[0](state, action), critics[1](state, action), constraint)

    if config.score_space == "latent":
        def of_latent(x: Tensor) -> Tensor:
            return of_action(box.squash(x)) - beta * box.log_jacobian(x)

        return energy_score(of_latent, point, at.alpha, at.sigma, noise, beta, config.score_form)
    sigma = at.sigma if config.prediction != "guided" else (at.sigma.square() + 1e-8).sqrt()
    bounds = (box.low, box.high) if config.clip_proposals else (None, None)
    return energy_score(of_action, box.squash(point), 1.0, sigma, noise, beta, config.score_form, *bounds)


def policy_loss(
    config: ALGDConfig, policy: DiffusionPolicy, critics: tuple[Critic, Critic], energy: Energy, constraint: Constraint,
    state: Tensor, noise: UpdateNoise, beta: Tensor,
) -> PolicyLoss:  # fmt: skip
    """mean E(s, a_0) + score_weight * mean w |phi(s, x_tau, tau) - phi*|^2 - beta * mean H, with gradients through the chain that draws a_0.

    w = beta sigma_tau^2 puts the score loss in the units of the energy (``score_loss_scale``). Critics, lambda and beta are constants.
    """
    latents = policy.path(state, noise.policy)
    action = policy.box.squash(latents[0])
    reward, cost = critics[0](state, action[None]), critics[1](state, action[None])
    values = energy(reward, cost, constraint)

    row = noise.tau + 1 if config.score_pairing == "before" else noise.tau
    point = latents.gather(0, row.view(1, -1, 1).expand(1, -1, latents.shape[-1]))[0]
    point = point.detach() if config.detach_point else point
    wanted = score_target(config, policy, critics, energy, constraint, state, point, noise.tau, noise.proposals, beta)
    error = (policy.score(state, point, noise.tau) - wanted).square()
    if config.score_loss_scale == "energy":
        error = beta * policy.at_steps(noise.tau).sigma.square() * error
    score, mean = error.mean(), values.mean()  # over the batch and the action, and over the batch
    total = mean + config.score_weight * score

    entropy = total.new_zeros(())
    if config.entropy != "none":
        entropy = policy.path_entropy(latents, noise.policy).mean()
        total = total - beta * entropy
    return PolicyLoss(
        total, score.detach(), entropy.detach(), mean.detach(), constraint.risk(cost.detach()).mean((1, 2)), reward.detach(),
        cost.detach(),
    )  # fmt: skip


def effective_multiplier(energy: Energy, reward: Tensor, cost: Tensor, constraint: Constraint) -> Tensor:
    """unit_c * mean dE/dR_c over the batch: (constraints,). The slopes of the members in the risk sum to 1, so their slopes in E sum to dE/dR."""
    with torch.enable_grad():
        cost = cost.detach().requires_grad_()
        value = energy(reward, cost, constraint).sum()
        slope = torch.autograd.grad(value, cost, allow_unused=True)[0] if value.requires_grad else None
    if slope is None:
        return constraint.unit.new_zeros(len(constraint.unit))
    slope = slope.unflatten(0, (len(constraint.unit), -1)).sum(1)
    return (per_value(constraint.unit, slope) * slope).flatten(1).mean(1)
