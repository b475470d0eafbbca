"""The loop over reverse steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from saddlepoint.diffusion.kernel import ReverseProcess

ScoreFunction = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
"""(latent (batch, dim), step k) -> (score, noise prediction or None), both (batch, dim)."""


def sample_chain(score: ScoreFunction, process: ReverseProcess, start: Tensor, noise: Tensor | None) -> Tensor:
    """Run the reverse process from ``start`` (batch, dim). Returns all latents (steps + 1, batch, dim).

    Row ``steps`` is the start; row k is the latent after the step with index k, so row 0 is the sample. ``noise`` (steps, batch, dim) is
    standard normal, row k for step k; None runs the chain at its means. Gradients flow through every step.
    """
    x, latents = start, [start]
    draws = None if noise is None else noise.unbind()
    for k in reversed(range(process.steps)):
        estimate, eps_hat = score(x, k)
        x = process.mean(k, x, estimate, eps_hat)
        if draws is not None:
            x = torch.add(x, draws[k], alpha=process.std[k])
        latents.append(x)
    return torch.stack(latents[::-1])
