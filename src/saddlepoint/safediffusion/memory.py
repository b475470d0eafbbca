"""How much memory a run's models take, from the headers of their files: said before anything is loaded."""

from __future__ import annotations

import torch

from saddlepoint.safediffusion.config import SafeDiffusionConfig
from saddlepoint.safediffusion.pipeline import Source
from saddlepoint.safediffusion.weights import Stored, stored_weights
from saddlepoint.types import UserError

GIB = 2**30
TRAINED_BYTES = 16
"""of a trained number: itself, its gradient and AdamW's two moments, in float32"""


def adapter_parameters(stored: Stored, layers: tuple[str, ...], rank: int) -> int:
    """Numbers of the adapters of ``layers``: rank (inputs + outputs) of each of their matrices."""
    ends = tuple(f"{layer}.weight" for layer in layers)
    adapted = (shape for name, shape in stored.shapes.items() if name.endswith(ends) and len(shape) == 2)
    return sum(rank * (shape[0] + shape[1]) for shape in adapted)


def estimate(source: Source, config: SafeDiffusionConfig, low_precision: torch.dtype | None) -> str:
    """One line on the memory of weights and optimiser; activations, which grow with the batch and the picture, come on
    top."""
    family = source.family
    try:
        parts = {name: stored_weights(source.folder, name) for name in source.models}
    # of a hub id, whose weights are not here yet; or there are none, which loading says better
    except (UserError, OSError):
        return f"{family.title} pipeline {source.place}"
    whole = config.tune == "unet"
    size = 0.0
    said = []
    for name, stored in parts.items():
        halved = stored.dtype.itemsize < 4 and not (name == family.network and (whole or low_precision is None))
        bytes_ = stored.parameters * (stored.dtype.itemsize if halved else 4)
        size += bytes_
        said.append(f"{name} {stored.parameters / 1e6:.4g} M")
    network = parts[family.network]
    trained = network.parameters if whole else adapter_parameters(network, family.adapted, config.rank)
    extra = (
        trained * (TRAINED_BYTES - (4 if whole else 0))
        + (network.parameters * 4 if whole and config.kl else 0)
        + (4 * trained if config.ema else 0)
    )
    return (
        f"{family.title}: {', '.join(said)} parameters; weights {size / GIB:.3g} GiB, {trained / 1e6:.3g} M trained"
        " ones with gradients and AdamW"
        f" {extra / GIB:.3g} GiB more; activations come on top (lower --train-batch, or --gradient-checkpointing)"
    )
