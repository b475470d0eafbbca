"""What a pretraining run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from saddlepoint.options import require_at_least, require_episodes, require_seed
from saddlepoint.train.schedule import Schedule
from saddlepoint.types import UserError


@dataclass(frozen=True)
class PretrainConfig:
    """Learning from a data set alone. A step is a gradient update."""

    data: str = ""
    """folder of the data set, from `saddlepoint collect` or `saddlepoint convert`"""
    seed: int = 0
    """seeds the learner, what it draws from the data, and the evaluation"""
    total_updates: int = 100_000
    """gradient updates of the whole run"""
    eval_every: int = 25_000
    """updates between evaluations, with one at the end; 0 leaves evaluation out"""
    eval_episodes: int = 10
    """whole episodes of each task and evaluation, at least 10"""
    eval_tasks: tuple[str, ...] = ()
    """tasks that are evaluated; without it all whose environments can be made here"""
    checkpoint_every: int = 10_000
    """updates between checkpoints; there is always one at the end"""
    keep_checkpoints: int = 2
    """newest checkpoints kept"""
    log_every: int = 500
    """updates between lines of training metrics"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the learner lives; auto takes CUDA if there is one, which has not been tested on a GPU yet"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""
    compile: Literal["auto", "on", "off"] = "auto"
    """compile updates and plans; auto does so on a CPU, where it is C++ that takes about a minute to build once, from a
    thousand updates on where the processor has AVX2"""
    out: Path | None = None
    """run folder, which must not hold a run yet; by default a new one under runs/"""
    quiet: bool = False
    """plain log lines instead of the live progress line"""

    def validate(self) -> None:
        """Raises ``UserError`` for a value that cannot work."""
        if not self.data:
            raise UserError("pretraining needs a data set: give --data FOLDER, or --resume RUN.")
        one = ("total_updates", "checkpoint_every", "keep_checkpoints", "log_every")
        require_at_least(self, dict.fromkeys(one, 1) | {"eval_every": 0, "threads": 0})
        require_seed(self.seed)
        require_episodes(self.eval_episodes, 10, "--eval-episodes")
        if self.eval_tasks and not self.eval_every:
            raise UserError("--eval-tasks does nothing with --eval-every 0: leave one of them out.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto.")

    def schedule(self, evaluates: bool) -> Schedule:
        """When things are due; ``evaluates``: whether there is a task to evaluate."""
        return Schedule(self.total_updates, self.log_every, self.eval_every if evaluates else 0, self.checkpoint_every, self.keep_checkpoints)


OPERATIONAL = frozenset({"total_updates", "out", "quiet", "keep_checkpoints", "checkpoint_every", "threads", "data"})
"""fields that may differ on resume: they do not change what is learnt (threads: the last bits; data: it may have
moved, and is held to its digest)"""
