"""How many CPU threads PyTorch takes."""

from __future__ import annotations

import torch

from saddlepoint.machine import cpus
from saddlepoint.types import UserError

A_CORE = 64
"""threads a core that are still taken: with 1,000 on two cores a run crawls, with 100,000 PyTorch crashes without a word"""


def use_threads(count: int) -> None:
    """Let PyTorch use ``count`` CPU threads; 0 leaves its own choice. Raises ``UserError`` for more than ``A_CORE`` a core."""
    cores = cpus()
    if count > A_CORE * cores:
        raise UserError(
            f"--threads {count} is far more than {cores} cores can use: give at most {A_CORE * cores}, or 0 for PyTorch's own choice."
        )
    if count:
        torch.set_num_threads(count)
