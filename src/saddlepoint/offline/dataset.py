"""A data set of episodes of several tasks, in flat files that are mapped into memory: it may be larger than that.

A folder holds ``dataset.json`` (sizes and tasks), ``episodes.npy`` (task, first row and number of steps of each episode, int64) and ``observation.f32``,
``action.f32``, ``reward.f32``, ``terminated.f32``: rows of little-endian float32, nothing between them. Row t of an episode holds o_t, a_t in [-1, 1], r_t and
whether the task ended with that step; one more row ends the episode, of which only the observation counts. Tasks are padded with zeros to the largest
observation and action.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from saddlepoint.mbdpo.tasks import Task
from saddlepoint.train.checkpoint import write_json
from saddlepoint.types import UserError

FORMAT = 1
ARRAYS = ("observation", "action", "reward", "terminated")
NUMBER = np.dtype("<f4")


class Windows(NamedTuple):
    """Sub-sequences of ``horizon`` steps, time-major, as numpy float32; ``batch`` of them."""

    observation: np.ndarray  # (horizon + 1, batch, observation)
    action: np.ndarray  # (horizon, batch, action), in [-1, 1]
    reward: np.ndarray  # (horizon, batch)
    terminated: np.ndarray  # (horizon, batch)
    task: np.ndarray  # (batch,) int64


class Dataset:
    """Episodes on the disk. Raises ``UserError`` when ``folder`` is not a whole data set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        header = _header(folder)
        try:
            rows, episodes = int(header["rows"]), int(header["episodes"])
            self.observation, self.action = int(header["observation"]), int(header["action"])
            self.tasks = tuple(Task.from_json(task) for task in header["tasks"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / 'dataset.json'} is damaged ({error!r}): make the data set again.") from error
        if rows < 1:
            raise UserError(f"{folder} holds no episodes: make the data set again.")
        self._arrays = {name: self._map(name, rows, width) for name, width in self._widths().items()}
        table = self._table(episodes)
        self._task, self._first, self._steps = table.T
        tasks_fit = ((self._task >= 0) & (self._task < len(self.tasks))).all()
        rows_fit = (self._steps > 0).all() and (self._first == np.cumsum(self._steps + 1) - (self._steps + 1)).all()
        if not (tasks_fit and rows_fit and (self._steps + 1).sum() == rows):
            raise UserError(f"{folder / 'episodes.npy'} does not fit the other files: make the data set again.")
        self._ends: dict[int, np.ndarray] = {}  # by horizon: windows of the episodes up to each, that one included

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
        return int(self._steps.sum())

    def windows(self, horizon: int) -> int:
        """Windows of ``horizon`` steps that can be drawn. Raises ``UserError`` when no episode is long enough."""
        return int(self._window_ends(horizon)[-1])

    def holds(self, task: int) -> bool:
        """Whether there are episodes of the task with that number."""
        return bool((self._task == task).any())

    def __len__(self) -> int:
        """Episodes."""
        return len(self._steps)

    def digest(self) -> str:
        """SHA-256 of what the data set says of itself, not of the arrays: one that was made anew has another."""
        parts = (self.folder / name for name in ("dataset.json", "episodes.npy"))
        return hashlib.sha256(b"".join(hashlib.sha256(part.read_bytes()).digest() for part in parts)).hexdigest()

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """One episode: observation (steps + 1, observation), action (steps, action), reward and terminated (steps,)."""
        first, steps = int(self._first[number]), int(self._steps[number])
        ends = {name: first + steps + (name == "observation") for name in ARRAYS}
        return {name: np.array(self._arrays[name][first : ends[name]]) for name in ARRAYS} | {"task": self._task[number]}

    def sample(self, batch: int, horizon: int, generator: torch.Generator, rank: int = 0, processes: int = 1) -> Windows:
        """``batch`` windows of ``horizon`` steps within episodes, uniformly over all of them with replacement.

        Of several ``processes``, whose generators are alike, each draws the whole batch and reads its own rows ``rank``, ``rank + processes``, ... of it.
        Raises ``UserError`` when no episode is long enough.
        """
        ends = self._window_ends(horizon)
        draw = torch.randint(int(ends[-1]), (batch,), generator=generator, device=generator.device).cpu().numpy()[rank::processes]
        episode = np.searchsorted(ends, draw, side="right")
        first = self._first[episode] + draw - (ends[episode - 1] * (episode > 0))
        rows = first + np.arange(horizon + 1)[:, None]
        steps = {name: self._arrays[name][rows[:-1]] for name in ARRAYS[1:]}
        return Windows(self._arrays["observation"][rows], **steps, task=self._task[episode])

    def _window_ends(self, horizon: int) -> np.ndarray:
        if horizon not in self._ends:
            ends = np.cumsum(np.maximum(self._steps - horizon + 1, 0))
            if not len(ends) or not ends[-1]:
                raise UserError(f"{self.folder} has no episode of {horizon} steps: lower --horizon.")
            self._ends[horizon] = ends
        return self._ends[horizon]

    def _widths(self) -> dict[str, int]:
        return {"observation": self.observation, "action": self.action, "reward": 0, "terminated": 0}

    def _map(self, name: str, rows: int, width: int) -> np.ndarray:
        path = self.folder / f"{name}.f32"
        wanted = rows * max(width, 1) * NUMBER.itemsize
        if not path.is_file() or path.stat().st_size != wanted:
            size = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
            raise UserError(f"{path} should hold {wanted} bytes and holds {size}: the data set is not whole, make it again.")
        return np.memmap(path, NUMBER, "r", shape=(rows, width) if width else (rows,))

    def _table(self, episodes: int) -> np.ndarray:
        path = self.folder / "episodes.npy"
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read ({error}): the data set is not whole, make it again.") from error
        if table.shape != (episodes, 3) or table.dtype != np.int64:
            raise UserError(f"{path} does not hold {episodes} episodes: the data set is not whole, make it again.")
        return table


class Writer:
    """Writes a data set beside its place and renames it there when the ``with`` block ends well; else nothing is left.

    Episodes go to the disk as they come. Raises ``UserError`` when ``folder`` exists, and at the end when there were no episodes.
    """

    def __init__(self, folder: Path, observation: int, action: int) -> None:
        if folder.exists():
            raise UserError(f"{folder} exists already: choose another --out.")
        self.folder, self.observation, self.action = folder, observation, action
        self.tasks: tuple[Task, ...] = ()
        """to be set before the block ends"""
        self._temporary = folder.with_name(f".writing-{folder.name}")
        self._files: dict[str, IO[bytes]] = {}
        self._rows = 0
        self._episodes: list[np.ndarray] = []  # of each block: (episodes, 3)

    def __enter__(self) -> Writer:
        shutil.rmtree(self._temporary, ignore_errors=True)
        try:
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}): choose another --out.") from error
        self._files = {name: (self._temporary / f"{name}.f32").open("wb") for name in ARRAYS}
        return self

    def add(self, task: np.ndarray, observation: np.ndarray, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray) -> None:
        """A block of episodes of one length, which may be of different tasks and narrower than the data set.

        Shapes: task (episodes,), observation (episodes, steps + 1, observation), action (episodes, steps, action) in [-1, 1], the others (episodes, steps).
        """
        episodes, steps = reward.shape
        rows = {"observation": (self.observation, observation), "action": (self.action, action), "reward": (0, reward), "terminated": (0, terminated)}
        for name, (width, values) in rows.items():
            block = np.zeros((episodes, steps + 1, *((width,) if width else ())), NUMBER)
            part = block[:, : values.shape[1]]
            (part[..., : values.shape[2]] if width else part)[...] = values
            block.tofile(self._files[name])
        first = self._rows + np.arange(episodes) * (steps + 1)
        self._episodes.append(np.stack([np.asarray(task, np.int64), first, np.full(episodes, steps)], axis=1))
        self._rows += episodes * (steps + 1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            if kind is None:
                file.flush()
                os.fsync(file.fileno())
            file.close()
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _finish(self) -> None:
        if not self._episodes:
            raise UserError(f"{self.folder} would be a data set with no episodes: nothing was written; look at what it is made from.")
        table = np.concatenate(self._episodes)
        with (self._temporary / "episodes.npy").open("wb") as file:
            np.save(file, table, allow_pickle=False)
            os.fsync(file.fileno())
        tasks: list[dict[str, Any]] = []
        for number, task in enumerate(self.tasks):
            steps = table[table[:, 0] == number, 2]
            tasks.append(task.to_json() | {"episodes": len(steps), "steps": int(steps.sum())})
        sizes = {"observation": self.observation, "action": self.action, "rows": self._rows, "episodes": len(table)}
        write_json(self._temporary / "dataset.json", {"format": FORMAT, **sizes, "tasks": tasks})
        self._temporary.rename(self.folder)


def _header(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    try:
        header = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{folder} is not a data set (it has no dataset.json): make one with `saddlepoint collect` or `saddlepoint convert`.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): make the data set again.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this version of saddlepoint: make the data set again.")
    return header
