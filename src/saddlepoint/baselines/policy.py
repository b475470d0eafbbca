"""The squashed-Gaussian policy of soft actor-critic."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.nn.layers import ActionBox, fan_in_uniform
from saddlepoint.nn.products import linear

LOG_STD = (-5.0, 2.0)
"""bounds of log std, reached smoothly: a clip would stop the gradient there"""


class Sample(NamedTuple):
    """Reparameterised actions."""

    action: Tensor
    """(batch, action), in the environment's own units"""
    log_prob: Tensor
    """(batch,), of the action scaled to [-1, 1]"""


class GaussianPolicy(nn.Module):
    """pi(a|s): x ~ N(mean(s), std(s)^2), a = squash(x): an MLP with ReLU and one output for the mean and log std of each action."""

    def __init__(self, state: int, hidden: tuple[int, ...], box: ActionBox, generator: torch.Generator):
        """``state`` numbers an observation; weights are drawn from ``generator``."""
        super().__init__()
        pairs = list(pairwise((state, *hidden, 2 * len(box.scale))))
        self.weights = nn.ParameterList([fan_in_uniform((o, i), i, generator) for i, o in pairs])
        self.biases = nn.ParameterList([fan_in_uniform((o,), i, generator) for i, o in pairs])
        self.box = box

    def place(self, device: torch.device, dtype: torch.dtype) -> GaussianPolicy:
        """Move everything, the action box included, to ``device`` and ``dtype``."""
        self.box = self.box.to(device, dtype)
        return self.to(device, dtype)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, state) -> mean and log std of the latent, (batch, action) each."""
        h = state
        *hidden, (weight, bias) = zip(self.weights, self.biases)
        for of_layer in hidden:
            h = F.relu(linear(h, *of_layer))
        mean, raw = linear(h, weight, bias).chunk(2, -1)
        return mean, bounded_log_std(raw)

    def sample(self, state: Tensor, noise: Tensor) -> Sample:
        """(batch, state) and standard normal (batch, action) -> actions and their log-probability."""
        mean, log_std = self(state)
        latent = mean + log_std.exp() * noise
        return Sample(self.box.squash(latent), log_prob(latent, mean, log_std, self.box))

    def mean_action(self, state: Tensor) -> Tensor:
        """The noise-free action (batch, action)."""
        return self.box.squash(self(state)[0])


def bounded_log_std(raw: Tensor) -> Tensor:
    """low + (high - low) * (tanh(raw) + 1) / 2, elementwise."""
    low, high = LOG_STD
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1)


def log_prob(latent: Tensor, mean: Tensor, log_std: Tensor, box: ActionBox) -> Tensor:
    """log pi of the squashed action, scaled to [-1, 1]: log N(x; mean, std^2) - log(1 - tanh^2 x), summed over the action. (batch,).

    SAC, arXiv 1801.01290, Appendix C, in the stable form of ``ActionBox.log_jacobian``. In the environment's units it is less by sum log scale.
    """
    standard = (latent - mean) * (-log_std).exp()
    gaussian = (-0.5 * standard.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    return gaussian - (box.log_jacobian(latent) - box.scale.log().sum())
