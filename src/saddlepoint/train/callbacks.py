"""What a user hangs on a run: called after its steps, evaluations and checkpoints; may stop it; saved and resumed with
it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saddlepoint.options import number, whole_number
from saddlepoint.types import UserError

if TYPE_CHECKING:
    from saddlepoint.train.driver import Run


class Callback:
    """Override what you need; every method may do nothing. A method that returns False stops the run, as
    ``run.stop(reason)`` does.

    A stopped run writes a checkpoint and returns. An exception ends the run as a fault of foreign code, after a
    checkpoint.
    """

    def on_step(self, run: Run) -> bool | None:
        """After a step of all environments and its updates (`pretrain`: an update; text-to-image: an epoch)."""

    def on_evaluation(self, run: Run, metrics: dict[str, float]) -> bool | None:
        """After an evaluation; ``metrics`` are those of metrics.jsonl, such as ``eval/return_mean``."""

    def on_checkpoint(self, run: Run, folder: Path) -> bool | None:
        """After a checkpoint was written to ``folder``. What changes here is saved with the next one."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had never stopped: nested dicts and lists of numbers, strings,
        None and numpy arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo ``state_dict``."""


class StopWhenSafe(Callback):
    """Stops after ``evaluations`` evaluations in a row whose mean costs are within every budget, for the policy that
    the budget binds (``binds``)."""

    def __init__(self, evaluations: int = 5) -> None:
        self.evaluations = whole_number("StopWhenSafe's evaluations", evaluations, 1)
        self.safe = 0
        """evaluations within the budget since the last one over it"""

    def on_evaluation(self, run: Run, metrics: dict[str, float]) -> None:
        within = run.within_budget(metrics)
        if within is None:
            raise UserError(
                "StopWhenSafe needs a cost budget, and this run has none: give one, or leave the callback out."
            )
        self.safe = self.safe + 1 if within else 0
        if self.safe >= self.evaluations:
            run.stop(f"{self.safe} evaluations in a row were within the budget")

    def state_dict(self) -> dict[str, Any]:
        return {"safe": self.safe}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.safe = int(state["safe"])


class StopAfter(Callback):
    """Stops after ``hours`` of wall clock, of this start of the run alone, after ``steps`` steps, or once a metric of
    an evaluation reaches a value: ``StopAfter(metric="eval/return_mean", at_least=300)``."""

    def __init__(
        self,
        *,
        hours: float | None = None,
        steps: int | None = None,
        metric: str | None = None,
        at_least: float | None = None,
    ) -> None:
        if (metric is None) != (at_least is None):
            raise UserError("StopAfter takes metric= and at_least= together.")
        if hours is None and steps is None and metric is None:
            raise UserError("StopAfter needs hours=, steps= or metric= with at_least=.")
        self.hours = None if hours is None else number("StopAfter's hours", hours)
        self.steps = None if steps is None else whole_number("StopAfter's steps", steps)
        self.metric, self.at_least = metric, None if at_least is None else number("StopAfter's at_least", at_least)
        self._began: float | None = None

    def on_step(self, run: Run) -> None:
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        if self.steps is not None and run.step >= self.steps:
            run.stop(f"{self.steps:,} {run.unit}s are done")
        if self.hours is not None and now - self._began >= 3600 * self.hours:
            run.stop(f"{self.hours:g} hours have passed")

    def on_evaluation(self, run: Run, metrics: dict[str, float]) -> None:
        if self.metric is None or self.at_least is None:
            return
        if self.metric not in metrics:
            raise UserError(
                f"StopAfter: an evaluation has no metric {self.metric!r}: use one of {', '.join(sorted(metrics))}."
            )
        if metrics[self.metric] >= self.at_least:
            run.stop(f"{self.metric} is {metrics[self.metric]:.4g}")
