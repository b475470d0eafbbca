"""Where metrics are drawn beside metrics.jsonl: TensorBoard always, Weights & Biases on request."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from saddlepoint.types import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

Track: TypeAlias = Literal["none", "wandb"]
"""boards beside TensorBoard"""


class Board(Protocol):
    """What draws metrics."""

    def write(self, step: int, metrics: dict[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Scalars, and the run's settings once it ends (its "hparams" table wants the final metrics beside them), in
    ``<run>/tb``.

    ``purge_step``: what was written from this step on is taken back; None for a new run.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], purge_step: int | None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import, so only by runs that write

        _hush_writers()
        self._writer: SummaryWriter = SummaryWriter(str(folder / "tb"), purge_step=purge_step)
        self._settings, self._folder, self._broken = settings, folder / "tb", False
        self._newest: dict[str, float] = {}

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self._broken:
            return
        with self._going_on():
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
        self._newest |= {
            name: value for name, value in metrics.items() if name.startswith("eval/") and name.endswith("_mean")
        }

    def flush(self) -> None:
        if not self._broken:
            with self._going_on():
                self._writer.flush()

    def close(self) -> None:
        if self._broken:
            return
        with self._going_on():
            if self._newest:
                self._writer.add_hparams(
                    plain(self._settings), {f"final/{name}": value for name, value in self._newest.items()}, run_name="."
                )
            self._writer.close()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A disk that is full ends these curves, with one warning, and not the run: that is for metrics.jsonl and checkpoints to say."""
        try:
            yield
        except OSError as error:
            self._broken = True
            warnings.warn(f"{self._folder} cannot be written ({error.strerror}): TensorBoard's curves end here", stacklevel=2)


def _hush_writers() -> None:
    """Leave out the traceback of TensorBoard's own thread: ``TensorBoard`` gets the same error and says it."""
    before = threading.excepthook
    if getattr(before, "__name__", "") == "quiet":
        return

    def quiet(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            before(args)

    threading.excepthook = quiet


class WandB:
    """A run of Weights & Biases, whose id is the run folder's: a resumed run goes on with it. ``WANDB_MODE=offline``
    keeps it on the disk.

    Raises ``UserError`` where wandb is missing or refuses.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], purge_step: int | None) -> None:
        wandb = require_wandb()
        name = re.sub(r"[^\w.-]+", "-", str(folder.resolve()).strip("/"))[-120:]
        try:
            self._run = wandb.init(
                project="saddlepoint", id=name, name=folder.name, dir=str(folder), config=dict(settings),
                resume=None if purge_step is None else "allow",
            )  # fmt: skip
        except Exception as error:  # not logged in, no network
            said = " ".join(str(error).split())
            raise UserError(
                f"--track wandb: Weights & Biases refuses ({said}): log in with `wandb login`, or set WANDB_MODE=offline."
            ) from error

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def flush(self) -> None:
        """It has a process of its own for that."""

    def close(self) -> None:
        self._run.finish()


def require_wandb() -> ModuleType:
    """The package. Raises ``UserError`` where it is missing."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "--track wandb needs Weights & Biases, which is an extra: pip install saddlepoint[wandb]."
        ) from error
    return wandb


def open_boards(folder: Path, track: Track, settings: Mapping[str, Any], purge_step: int | None) -> list[Board]:
    """The boards of a run."""
    boards: list[Board] = [TensorBoard(folder, settings, purge_step)]
    if track == "wandb":
        boards.append(WandB(folder, settings, purge_step))
    return boards


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as TensorBoard takes them: flat, of numbers, texts and truth values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": item for inner, item in plain(value).items()}
        elif isinstance(value, bool | int | float | str):
            flat[name] = value
        elif value is not None:
            flat[name] = str(value)
    return flat
