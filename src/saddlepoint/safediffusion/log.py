"""Grids of pictures."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def save_grid(path: Path, images: Tensor) -> None:
    """Write pictures (rows, columns, 3, height, width) in [0, 1] as one PNG."""
    from PIL import Image

    rows, columns, channels, height, width = images.shape
    sheet = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    Image.fromarray((sheet * 255).round().byte().cpu().numpy()).save(path)
