"""What a post-training run says: metrics.jsonl, TensorBoard, grids of pictures, and one live progress line (or plain lines)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

REFRESH_SECONDS = 0.2
PLAIN_SECONDS = 30.0
SHOWN = {"train/reward_mean": "reward", "train/cost_mean": "cost", "train/multiplier": "multiplier"}


class EpochLog:
    """The log of one run, whose steps are epochs. Processes other than the first have a silent one (``folder`` None)."""

    def __init__(self, folder: Path | None, epochs: int, quiet: bool) -> None:
        from rich.live import Live

        from saddlepoint.train.console import PatientConsole

        self._folder, self._epochs = folder, epochs
        self._console = PatientConsole(highlight=False, quiet=folder is None)
        self._live = None if quiet or folder is None or not self._console.is_terminal else Live(console=self._console, auto_refresh=False)
        self._started, self._wall_before, self._shown = time.monotonic(), 0.0, time.monotonic()
        self._first: tuple[float, float] | None = None  # when this process showed its first progress, and how far it was
        self._newest: dict[str, float] = {}
        self._file = (folder / "metrics.jsonl").open("a") if folder else None
        self._board: SummaryWriter | None = None
        if self._live is not None:
            self._live.start()

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, over all its starts."""
        return self._wall_before + time.monotonic() - self._started

    def resume(self, epoch: int, wall_s: float, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Cut off the lines that ``keep`` refuses (those a killed run wrote too many) and let the clock go on."""
        self._wall_before = wall_s
        if self._folder is None or self._file is None:
            return
        self._file.close()
        path = self._folder / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines(keepends=True) if _is_kept(line, keep)]
        temporary = path.with_name(".metrics.jsonl.writing")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a")
        self._board = _open_board(self._folder, epoch + 1)

    def write(self, epoch: int, kind: Literal["train", "eval"], metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl, and TensorBoard scalars."""
        self._newest |= metrics
        if self._folder is None or self._file is None:
            return
        self._file.write(json.dumps({"step": epoch, "wall_s": round(self.wall_s, 3), "kind": kind} | metrics) + "\n")
        self._file.flush()
        if self._board is None:
            self._board = _open_board(self._folder, None)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, epoch)

    def grid(self, name: str, images: Tensor) -> None:
        """Pictures (rows, columns, 3, height, width) in [0, 1] as samples/<name>.png."""
        if self._folder is not None:
            path = self._folder / "samples" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            save_grid(path, images)

    def progress(self, done: float, doing: str) -> None:
        """Show the progress line, now and then. ``done`` is in epochs, with a fraction."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if now - self._shown < (REFRESH_SECONDS if self._live else PLAIN_SECONDS):
            return
        self._shown = now
        line = self._line(now, done, doing)
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self._console.print(line, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """One line for the user, above the progress line."""
        self._console.print(sentence, soft_wrap=True, markup=False)

    def flush(self) -> None:
        """Metrics to the disk, before a checkpoint that counts on them."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _line(self, now: float, done: float, doing: str) -> str:
        parts = [f"epoch {int(done) + 1:,} of {self._epochs:,}", doing]
        parts += [f"{title} {self._newest[name]:.3g}" for name, title in SHOWN.items() if name in self._newest]
        assert self._first is not None
        then, before = self._first
        if done > before:
            left = int((self._epochs - done) * (now - then) / (done - before))
            parts.append(f"ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
        return "  ".join(parts)


def save_grid(path: Path, images: Tensor) -> None:
    """Write pictures (rows, columns, 3, height, width) in [0, 1] as one PNG."""
    from PIL import Image

    rows, columns, channels, height, width = images.shape
    sheet = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    Image.fromarray((sheet * 255).round().byte().cpu().numpy()).save(path)


def _open_board(folder: Path, purge_step: int | None) -> SummaryWriter:
    from torch.utils.tensorboard.writer import SummaryWriter  # slow to import, so only by runs that write

    return SummaryWriter(str(folder / "tb"), purge_step=purge_step)


def _is_kept(line: str, keep: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return keep(json.loads(line))
    except ValueError:  # the last line of a killed run may be cut
        return False
