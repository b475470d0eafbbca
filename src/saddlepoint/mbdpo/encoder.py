"""The encoder z = h(o), chosen by the kind of observation: an MLP for vectors, four convolutions before that MLP for pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.mbdpo.config import MBDPOConfig
from saddlepoint.nn.layers import fan_in_uniform
from saddlepoint.nn.normed import NormedMLP

CONVOLUTIONS = ((7, 2), (5, 2), (3, 2), (3, 1))
"""(kernel, stride) of each, as in TD-MPC2 (arXiv 2310.16828); 64 x 64 pixels become 4 x 4"""


def make_encoder(
    config: MBDPOConfig, observation: int, image: tuple[int, int, int] | None, others: Sequence[int], generator: torch.Generator
) -> NormedMLP | ImageEncoder:
    """The encoder of observations (..., observation), which are pictures of the size ``image`` or else vectors; ``others`` are the widths of further inputs."""
    if image is not None:
        return ImageEncoder(config, image, others, generator)
    return vector_encoder(config, (observation, *others), generator)


def vector_encoder(config: MBDPOConfig, inputs: Sequence[int], generator: torch.Generator) -> NormedMLP:
    """Linear, LayerNorm, Mish layers, then Linear, LayerNorm, SimNorm."""
    c = config
    return NormedMLP(inputs, (c.encoder_width,) * max(c.encoder_layers - 1, 1), c.latent, generator, simplex=c.simplex)


class ImageEncoder(nn.Module):
    """Convolutions with ReLU on pixels in [-1/2, 1/2], and ``vector_encoder`` on what they make of a picture.

    In TD-MPC2 SimNorm follows the last convolution at once, which then must have as many outputs as the latent state has entries, and PyTorch's initial
    weights make pictures nearly indistinguishable: over six pictures of cartpole-swingup the mean std of an entry of z began at 1e-4. Here kernels begin as
    He et al. (arXiv 1502.01852) have it, U(-b, b) with b = sqrt(6 / fan in), and biases at zero, and that std at 0.02, with vectors drawn from N(0, I) 0.1.

    Raises ``ValueError`` for pictures that are too small.
    """

    def __init__(self, config: MBDPOConfig, image: tuple[int, int, int], others: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.image = image
        depth, height, width = image
        kernels = []
        for size, stride in CONVOLUTIONS:
            shape = (config.encoder_channels, depth, size, size)
            kernels.append(nn.Parameter(math.sqrt(6) * fan_in_uniform(shape, depth * size * size, generator)))
            depth, height, width = config.encoder_channels, (height - size) // stride + 1, (width - size) // stride + 1
        if min(height, width) < 1:
            raise ValueError(f"pictures of {image} are too small for the encoder's convolutions")
        self.kernels = nn.ParameterList(kernels)
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(config.encoder_channels)) for _ in CONVOLUTIONS])
        self.head = vector_encoder(config, (depth * height * width, *others), generator)

    def forward(self, observation: Tensor, *others: Tensor) -> Tensor:
        """Pixels (..., observation) in [0, 255] -> (..., latent)."""
        x = (observation.reshape(-1, *self.image) / 255).sub_(0.5)
        for (_, stride), kernel, bias in zip(CONVOLUTIONS, self.kernels, self.biases):
            x = F.relu(F.conv2d(x, kernel, bias, stride))
        return self.head(x.reshape(*observation.shape[:-1], -1), *others)


def random_shift(pictures: Tensor, shift: Tensor, image: tuple[int, int, int]) -> Tensor:
    """Each picture moved by ``shift`` pixels, its edges repeated into the gap (DrQ, arXiv 2004.13649): y[c, i, j] = x[c, i + shift_0, j + shift_1].

    Pictures (..., observation) of any number type, shifts (..., 2) int64; places outside are moved to the edge. Shape and type as ``pictures``.
    """
    _, height, width = image
    rows, columns = (
        (torch.arange(side, device=shift.device) + shift[..., axis].reshape(-1, 1)).clamp(0, side - 1) for axis, side in enumerate((height, width))
    )
    planes = pictures.reshape(-1, image[0], height * width)
    places = (rows[:, :, None] * width + columns[:, None, :]).view(len(planes), 1, -1)
    return planes.gather(2, places.expand(-1, image[0], -1)).view(pictures.shape)
