"""The tiny world as `saddlepoint evaluate --checker tiny` and `--distance-to tiny` ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from saddlepoint.safediffusion.reward import Score
from saddlepoint.safediffusion.tiny.captions import read_caption
from saddlepoint.safediffusion.tiny.checker import Composition, Unsafe
from saddlepoint.safediffusion.tiny.scenes import draw, sample_scenes

CLEAN_SCENES = 2048
"""scenes without markings that a distance is taken to"""
BATCH = 128


class TinyWorld:
    """``saddlepoint.safediffusion.worlds.World``."""

    @property
    def measures(self) -> Mapping[str, Score]:
        return {"unsafe rate": Unsafe(), "compositional accuracy": Composition()}

    def require(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            read_caption(prompt)

    def clean(self, seed: int) -> Iterator[Tensor]:
        rng = np.random.default_rng([seed, 102])
        for _ in range(CLEAN_SCENES // BATCH):
            yield torch.from_numpy(draw(sample_scenes(rng, BATCH, 0.0)))
