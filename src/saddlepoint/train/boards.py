"""Where metrics are drawn beside metrics.jsonl: TensorBoard always, Weights & Biases on request."""

from __future__ import annotations

import re
from collections.abc import Mapping
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

        self._writer: SummaryWriter = SummaryWriter(str(folder / "tb"), purge_step=purge_step)
        self._settings = settings
        self._newest: dict[str, float] = {}

    def write(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._newest |= {
            name: value for name, value in metrics.items() if name.startswith("eval/") and name.endswith("_mean")
        }

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        if self._newest:
            self._writer.add_hparams(
                plain(self._settings), {f"final/{name}": value for name, value in self._newest.items()}, run_name="."
            )
        self._writer.close()


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
