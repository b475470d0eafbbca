"""``best/``: the learner of the best evaluation within the budget, replaced as a whole when there is a better one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from saddlepoint.train import checkpoint
from saddlepoint.types import UserError

NAME = "best"


def keep(run: Path, step: int, learner: dict[str, Tensor], metrics: dict[str, float], seals: dict[str, Any]) -> None:
    """Replace ``best/`` by the learner of ``step`` and what its evaluation found. Raises ``UserError`` when it cannot
    be written; the old one then stands."""
    checkpoint.write_folder(run, run / NAME, checkpoint.Checkpoint(step, learner, {}, {"metrics": metrics}, seals))


def read(run: Path) -> tuple[Path, int]:
    """The folder and the step of the best evaluation. Raises ``UserError`` where there is none, or it is damaged."""
    folder = run / NAME
    if not folder.is_dir() and not checkpoint.aside(folder).is_dir():
        raise UserError(
            f"{run} has no {NAME}/: no evaluation was within the budget yet; leave out --checkpoint, or train on."
        )
    found, manifest = checkpoint.whole(folder, checkpoint.LEARNER)
    return found, int(manifest["step"])
