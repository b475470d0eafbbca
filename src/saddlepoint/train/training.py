"""What a driver drives, and the processes that make a run together."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from saddlepoint.train import checkpoint


class Parts(NamedTuple):
    """What a training is made of, as a checkpoint holds it."""

    learner: dict[str, Tensor]
    replay: dict[str, Tensor]
    state: dict[str, Any]
    """nested dicts and lists of numbers, strings, None and numpy arrays"""


class Training(Protocol):
    """What is driven."""

    unit: ClassVar[str]
    """``step``, ``update`` or ``epoch``"""
    total_flag: ClassVar[str]
    """the flag that says how many: --total-steps"""
    step: int
    """how far it is, in units"""

    @property
    def updates(self) -> int:
        """Gradient updates made."""
        ...

    @property
    def agent(self) -> Any:
        """What learns."""
        ...

    def learn(self) -> bool:
        """Make what is owed at this step. False when asked to stop before the last of it: a resumed run makes the rest
        first."""
        ...

    def advance(self) -> None:
        """One step on. May return where it was when asked to stop; then nothing has changed. Raises ``Salvageable`` for
        a fault that leaves the state whole."""
        ...

    def training_metrics(self, regular: bool) -> dict[str, float]:
        """The line of training metrics, named ``train/...``; after a ``regular`` one, counting starts anew."""
        ...

    def evaluate(self) -> dict[str, float] | None:
        """The metrics of an evaluation, which changes nothing but what lambda follows; {} where there is nothing to say, None when asked to
        stop: it is made up for."""
        ...

    def evaluation_words(self, metrics: dict[str, float]) -> str:
        """The same for the reader of the console; empty for nothing."""
        ...

    def merit(self, metrics: dict[str, float]) -> float | None:
        """How good an evaluation is, for ``best/``; None for one that is not to be kept there, such as one over the
        budget."""
        ...

    def state(self) -> Parts:
        """Everything that the next step depends on."""
        ...

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Undo ``state``, on top of a new training."""
        ...


class Peers(Protocol):
    """The processes that make a run together: all call the same methods in the same order."""

    @property
    def main(self) -> bool: ...
    @property
    def count(self) -> int: ...
    def any(self, mine: bool) -> bool: ...
    def wait(self) -> None: ...


class Alone:
    """A run of one process."""

    main, count = True, 1

    def any(self, mine: bool) -> bool:
        return mine

    def wait(self) -> None:
        pass


class Salvageable(Exception):
    """Raised from a ``UserError`` of a step whose training is whole all the same: a checkpoint is written before the
    error goes on."""
