"""DiffusionNFT (Zheng et al. 2025): a policy gradient by regression on noised clean pictures, without
log-probabilities. Pure functions of tensors.

Constrained, the weights come from the group's advantages under the augmented Lagrangian of reward and cost, as those of
GRPO do.
"""

from __future__ import annotations

from torch import Tensor


def optimality(advantages: Tensor, clip: float) -> Tensor:
    """r = (1 + A / clip) / 2, in [0, 1], of advantages within +-clip: 1 for the best pictures of a group, 0 for the
    worst. Any shape."""
    return 0.5 + 0.5 * (advantages / clip).clamp(-1, 1)


def nft_loss(answer: Tensor, old: Tensor, target: Tensor, weight: Tensor, beta: float) -> Tensor:
    """r |v+ - target|^2 + (1 - r) |v- - target|^2, v+ = (1 - b) v_old + b v, v- = (1 + b) v_old - b v; mean over
    elements, mean over the batch.

    ``answer`` (v) and ``old`` (v_old) are what the network and the one that sampled say of the noised pictures,
    ``target`` what it was trained to say there, all (batch, ...); ``weight`` (r) is (batch,). With r = 1/2 the gradient
    at v = v_old is 0; above, it draws v to the target, below, away.
    """
    step = beta * (answer - old)
    away, towards = ((old + sign * step - target).square().flatten(1).mean(1) for sign in (-1, 1))
    return (weight * towards + (1 - weight) * away).mean()
