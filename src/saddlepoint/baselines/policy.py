"""The squashed-Gaussian policy, with its backward pass written out as the critics' is."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saddlepoint.nn.layers import ActionBox, fan_in_uniform
from saddlepoint.nn.products import affine

LOG_STD = (-5.0, 2.0)
"""bounds of log std, reached smoothly: a clip would stop the gradient there"""


class Sample(NamedTuple):
    """Reparameterised actions and what their backward pass needs."""

    action: Tensor  # (batch, action), in the environment's own units
    log_prob: Tensor  # (batch,), of the action scaled to [-1, 1]
    latent: Tensor  # (batch, action), before the squash
    noise: Tensor  # (batch, action)
    layers: list[Tensor]  # activations of the hidden layers and, last, the output (batch, 2 * action)


class GaussianPolicy(nn.Module):
    """pi(a|s): x ~ N(mean(s), std(s)^2), a = squash(x): an MLP with ReLU and one output for the mean and log std of each action."""

    def __init__(self, state: int, hidden: tuple[int, ...], box: ActionBox, generator: torch.Generator):
        super().__init__()
        pairs = list(pairwise((state, *hidden, 2 * len(box.scale))))
        self.weights = nn.ParameterList([fan_in_uniform((o, i), i, generator) for i, o in pairs])
        self.biases = nn.ParameterList([fan_in_uniform((o,), i, generator) for i, o in pairs])
        self.box = box

    def place(self, device: torch.device, dtype: torch.dtype) -> GaussianPolicy:
        """Move everything, the action box included, to ``device`` and ``dtype``."""
        self.box = self.box.to(device, dtype)
        return self.to(device, dtype)

    def evaluate(self, state: Tensor) -> list[Tensor]:
        """(batch, state) -> the activations of the hidden layers and, last, the output. No gradient is recorded."""
        layers: list[Tensor] = []
        h, last = state, len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            h = affine(h, weight.detach(), bias.detach(), relu=index < last)
            layers.append(h)
        return layers

    def sample(self, state: Tensor, noise: Tensor) -> Sample:
        """(batch, state) and standard normal (batch, action) -> actions and their log-probability."""
        layers = self.evaluate(state)
        mean, raw = layers[-1].chunk(2, -1)
        log_std = bounded_log_std(raw)
        latent = mean + log_std.exp() * noise
        return Sample(self.box.squash(latent), log_prob(latent, mean, log_std, self.box), latent, noise, layers)

    def mean_action(self, state: Tensor) -> Tensor:
        """The noise-free action (batch, action)."""
        return self.box.squash(self.evaluate(state)[-1].chunk(2, -1)[0])

    def gradients(self, state: Tensor, sample: Sample, action_slope: Tensor, beta: Tensor) -> list[Tensor]:
        """Gradients of  mean_b[ a . action_slope + beta * log pi(a|s) ]  for weights and biases, in that order.

        ``action_slope`` (batch, action) is the loss's slope at each action and is held fixed. With x = mean + std * noise, t = tanh x and
        log pi = sum[ -noise^2/2 - log std - log(1 - t^2) ] + const:  d/dx = slope * scale * (1 - t^2) + 2 beta t  is the mean's gradient,
        and  d/dx * std * noise - beta  that of log std.
        """
        t = torch.tanh(sample.latent)
        d_mean = (action_slope * self.box.scale * (1 - t.square()) + 2 * beta * t) / len(state)
        raw = sample.layers[-1].chunk(2, -1)[1]
        d_log_std = d_mean * bounded_log_std(raw).exp() * sample.noise - beta / len(state)
        grad = torch.cat([d_mean, d_log_std * bounded_log_std_slope(raw)], -1)
        weights, biases = [], []
        for index in range(len(self.weights) - 1, -1, -1):
            before = sample.layers[index - 1] if index else state
            weights.append(affine(grad.mT, before.mT, None))
            biases.append(grad.sum(0))
            if index:
                grad = torch.ops.aten.threshold_backward(affine(grad, self.weights[index].detach().mT, None), before, 0)
        return weights[::-1] + biases[::-1]


def bounded_log_std(raw: Tensor) -> Tensor:
    """low + (high - low) * (tanh(raw) + 1) / 2, elementwise."""
    low, high = LOG_STD
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1)


def bounded_log_std_slope(raw: Tensor) -> Tensor:
    """d ``bounded_log_std`` / d raw, elementwise."""
    low, high = LOG_STD
    return 0.5 * (high - low) * (1 - torch.tanh(raw).square())


def log_prob(latent: Tensor, mean: Tensor, log_std: Tensor, box: ActionBox) -> Tensor:
    """log pi of the squashed action, scaled to [-1, 1]: log N(x; mean, std^2) - log(1 - tanh^2 x), summed over the action. (batch,).

    SAC, arXiv 1801.01290, Appendix C, in the stable form of ``ActionBox.log_jacobian``. In the environment's units it is less by sum log scale.
    """
    standard = (latent - mean) * (-log_std).exp()
    gaussian = (-0.5 * standard.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    return gaussian - (box.log_jacobian(latent) - box.scale.log().sum())
