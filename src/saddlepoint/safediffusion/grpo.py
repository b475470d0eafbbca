"""Group-relative policy optimisation of denoising steps: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from saddlepoint.constrained.lagrangian import effective_multiplier
from saddlepoint.diffusion.kernel import Gaussian
from saddlepoint.safediffusion.config import LogProbReduction

STD_EPSILON = 1e-8
EQUAL_WITHIN = 4
"""rewards of a group that differ by no more than this many units in the last place of the largest are equal"""


def group_advantages(rewards: Tensor, clip: float, deviation: Tensor | None = None) -> Tensor:
    """(r - mean) / (std + 1e-8) within each group, unbiased std, clipped to +-clip. (..., group) -> (..., group), the
    dtype of ``rewards``.

    SafeDiffusion-R1. A group whose rewards are all equal has advantage exactly 0: in float32 its mean is off by a
    rounding error, which the release divides by 1e-8. ``deviation`` (0-d) takes the place of the groups' own.
    """
    exact = rewards.double()
    std = exact.std(-1, unbiased=True, keepdim=True) if deviation is None else deviation.double()
    advantages = ((exact - exact.mean(-1, keepdim=True)) / (std + STD_EPSILON)).clamp(-clip, clip)
    return torch.where(equal_groups(rewards)[..., None], 0.0, advantages).to(rewards.dtype)


def common_deviation(rewards: Tensor) -> Tensor:
    """Root mean square of the groups' deviations: (..., group) -> 0-d float64.

    Divided by it, a term that is equal within a group, such as the cost of pictures that are all unsafe, does not make
    what is left of its objective as large as that of a group where it differs.
    """
    return rewards.double().var(-1, unbiased=True).mean().sqrt()


def equal_groups(rewards: Tensor) -> Tensor:
    """Which groups have nothing to tell: all rewards equal up to rounding. (..., group) -> (...) bool."""
    spread = rewards.amax(-1) - rewards.amin(-1)
    return spread <= EQUAL_WITHIN * torch.finfo(rewards.dtype).eps * rewards.abs().amax(-1)


def grpo_loss(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """mean of max(-A ratio, -A clip(ratio, 1 - c, 1 + c)), ratio = exp(log_prob - old_log_prob). (batch,) each -> 0-d.

    PPO's clipped surrogate (Schulman et al. 2017, Eq. 7) of one denoising step, as in SafeDiffusion-R1; ``advantages``
    come clipped.
    """
    ratio = (log_prob - old_log_prob).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()


def step_log_prob(step: Gaussian, point: Tensor, reduction: LogProbReduction) -> Tensor:
    """log p(point) of one denoising step, summed or averaged over a latent's elements. (batch, ...) -> (batch,).

    The mean is the log of the geometric mean of the elements' densities, so its ratio lies as much closer to 1 as a
    latent has elements.
    """
    elements = step.log_prob(point).flatten(1)
    return elements.mean(1) if reduction == "mean" else elements.sum(1)


def centred_log_prob(log_prob: Tensor, step: Gaussian, old_mean: Tensor, reduction: LogProbReduction) -> Tensor:
    """log_prob + |mean - old_mean|^2 / (2 std^2), reduced alike: minus the old log_prob it has mean 0 over the old
    step's noise. (batch,).

    The plain log-ratio has mean -KL, which in a mean over thousands of elements is as large as the clip range
    (GRPO-Guard, Wang et al. 2025).
    """
    return log_prob + step_kl(step, Gaussian(old_mean, step.std), reduction)


def step_kl(step: Gaussian, start: Gaussian, reduction: LogProbReduction) -> Tensor:
    """KL(step || start) of two steps with the same std: |mean - mean_0|^2 / (2 std^2), reduced as log-probabilities
    are. (batch,)."""
    elements = ((step.mean - start.mean).square() / (2 * step.std.square())).flatten(1)
    return elements.mean(1) if reduction == "mean" else elements.sum(1)


def approximate_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """0.5 mean((log_prob - old_log_prob)^2). (batch,) -> 0-d."""
    return 0.5 * (log_prob - old_log_prob).square().mean()


def clipped_share(log_prob: Tensor, old_log_prob: Tensor, clip_range: float) -> Tensor:
    """mean(|ratio - 1| > clip_range). (batch,) -> 0-d."""
    return (((log_prob - old_log_prob).exp() - 1).abs() > clip_range).to(log_prob.dtype).mean()


def clipped_above(log_prob: Tensor, old_log_prob: Tensor, clip_range: float) -> Tensor:
    """mean(ratio > 1 + clip_range). (batch,) -> 0-d."""
    return ((log_prob - old_log_prob).exp() > 1 + clip_range).to(log_prob.dtype).mean()


def reward_scale(rewards: Tensor) -> Tensor:
    """Root mean square over the groups of the std within them, 1 where all groups are equal. (groups, group) -> 0-d.

    The unit in which rewards are weighed against costs, so that one multiplier serves a cosine that varies by 0.01 and
    a score out of ten.
    """
    scale = rewards.double().var(-1, unbiased=True).mean().sqrt().to(rewards.dtype)
    return torch.where(equal_groups(rewards).all(), torch.ones_like(scale), scale)


def combined_rewards(rewards: Tensor, second: Tensor, weight: float) -> Tensor:
    """r / scale(r) + weight * s / scale(s): two rewards, each in deviations within its groups. (groups, group) twice ->
    the same."""
    return rewards / reward_scale(rewards) + weight * second / reward_scale(second)


def lagrangian_rewards(rewards: Tensor, costs: Tensor, budget: float, multiplier: Tensor, rho: float) -> Tensor:
    """r / scale - [lambda + rho (mean c - budget)]_+ c: each image's share in the augmented Lagrangian of  max E r
    subject to  E c <= budget.

    The penalty ([lambda + rho v]_+^2 - lambda^2) / (2 rho) of v = mean c - budget has this slope in every cost; the
    mean is over all images. (groups, group) twice and a 0-d multiplier -> (groups, group).
    """
    slope = effective_multiplier(costs.double().mean() - budget, multiplier, rho)
    return rewards / reward_scale(rewards) - slope.to(rewards.dtype) * costs
