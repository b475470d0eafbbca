"""When a run logs, evaluates and keeps checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Line: TypeAlias = dict[str, Any]
"""One line of metrics.jsonl: ``step``, ``wall_s``, ``kind`` and flat metrics."""


@dataclass(frozen=True)
class Schedule:
    """When things are due, in the run's own unit."""

    total: int
    log_every: int
    eval_every: int
    """0: no evaluation at all"""
    checkpoint_every: int
    keep_checkpoints: int
    stride: int = 1
    """units that one advance makes"""
    evaluate_first: bool = False
    """whether there is an evaluation before the first step"""

    def due(self, step: int, every: int) -> bool:
        """Whether a multiple of ``every`` above 0 was passed by the last advance."""
        return step > 0 and every > 0 and step // every > (step - self.stride) // every

    def regular(self, line: Line) -> bool:
        """Whether every run with these settings has this line, wherever it ends."""
        if line["kind"] == "train":
            return self.due(line["step"], self.log_every)
        return self.due(line["step"], self.eval_every) or (self.evaluate_first and line["step"] == 0)
