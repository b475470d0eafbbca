"""A data set of episodes of several tasks, in flat files that are mapped into memory: it may be larger than that.

A folder holds ``dataset.json`` (sizes, tasks, and the size and SHA-256 of each other file), ``episodes.npy`` (task,
first row and number of steps of each episode, int64) and ``observation.f32``, ``action.f32``, ``reward.f32``,
``terminated.f32``: rows of little-endian float32, nothing between them. Row t of an episode holds o_t, a_t in [-1, 1],
r_t and whether the task ended with that step; one more row ends the episode, of which only the observation counts.
Tasks are padded with zeros to the largest observation and action.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from saddlepoint.files import FileFault, digest, is_sealed, new_folder, read_array, read_json, sealed, write_json
from saddlepoint.mbdpo.tasks import Task
from saddlepoint.types import UserError

FORMAT = 2
HEADER, TABLE = "dataset.json", "episodes.npy"
AGAIN = "the data set is not whole, make it again"
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
    """Episodes on the disk. Raises ``UserError`` when ``folder`` is not a whole data set.

    ``verify`` reads every file once and compares it with its digest; without it only sizes are looked at.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = folder
        header = _header(folder)
        rows, episodes, self.observation, self.action = (
            _count(header, name, folder) for name in ("rows", "episodes", "observation", "action")
        )
        tasks, written = header.get("tasks"), header.get("files")
        if not isinstance(tasks, list) or not isinstance(written, dict):
            raise UserError(
                f"{folder / HEADER} is damaged (it has no whole 'tasks' and 'files'): make the data set again."
            )
        self.tasks = tuple(Task.from_json(task, folder / HEADER) for task in tasks)
        for name in (TABLE, *(f"{name}.f32" for name in ARRAYS)):
            _require_whole(folder / name, written.get(name), verify)
        self._arrays = {name: self._map(name, rows, width) for name, width in self._widths().items()}
        table = read_array(folder / TABLE, "the table of episodes", advice=AGAIN)
        if table.shape != (episodes, 3) or table.dtype != np.int64:
            raise UserError(f"{folder / TABLE} does not hold {episodes} episodes: {AGAIN}.")
        self._task, self._first, self._steps = table.T
        tasks_fit = ((self._task >= 0) & (self._task < len(self.tasks))).all()
        ends = np.cumsum(self._steps + 1)
        rows_fit = ((self._steps > 0) & (self._steps < rows)).all() and (self._first == ends - (self._steps + 1)).all()
        if not (tasks_fit and rows_fit and ends[-1] == rows):
            raise UserError(f"{folder / TABLE} does not fit the other files: make the data set again.")
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
        """SHA-256 of ``dataset.json``, which holds those of the other files: another data set has another."""
        return digest(self.folder / HEADER)

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """One episode: observation (steps + 1, observation), action (steps, action), reward and terminated (steps,)."""
        first, steps = int(self._first[number]), int(self._steps[number])
        ends = {name: first + steps + (name == "observation") for name in ARRAYS}
        return {name: np.array(self._arrays[name][first : ends[name]]) for name in ARRAYS} | {
            "task": self._task[number]
        }

    def sample(
        self, batch: int, horizon: int, generator: torch.Generator, rank: int = 0, processes: int = 1
    ) -> Windows:
        """``batch`` windows of ``horizon`` steps within episodes, uniformly over all of them with replacement.

        Of several ``processes``, whose generators are alike, each draws the whole batch and reads its own rows
        ``rank``, ``rank + processes``, ... of it. Raises ``UserError`` when no episode is long enough.
        """
        ends = self._window_ends(horizon)
        draw = (
            torch.randint(int(ends[-1]), (batch,), generator=generator, device=generator.device)
            .cpu()
            .numpy()[rank::processes]
        )
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
        if path.stat().st_size != wanted:
            raise UserError(f"{path} should hold {wanted} bytes and holds {path.stat().st_size} bytes: {AGAIN}.")
        return np.memmap(path, NUMBER, "r", shape=(rows, width) if width else (rows,))


class Writer:
    """Writes a data set beside its place and renames it there when the ``with`` block ends well; else nothing is left.

    Episodes go to the disk as they come. Raises ``UserError`` when ``folder`` exists, also when another writer has made
    it meanwhile, when the disk is full, and at the end when there were no episodes.
    """

    def __init__(self, folder: Path, observation: int, action: int) -> None:
        if folder.exists():
            raise UserError(f"{folder} exists already: choose another --out.")
        self.folder, self.observation, self.action = folder, observation, action
        self.tasks: tuple[Task, ...] = ()
        """to be set before the block ends"""
        self._temporary = folder
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._rows = 0
        self._episodes: list[np.ndarray] = []  # of each block: (episodes, 3)

    def __enter__(self) -> Writer:
        with ExitStack() as stack:
            self._temporary = stack.enter_context(new_folder(self.folder))
            self._files = {name: stack.enter_context((self._temporary / f"{name}.f32").open("wb")) for name in ARRAYS}
            self._stack = stack.pop_all()
        return self

    def add(
        self, task: np.ndarray, observation: np.ndarray, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray
    ) -> None:
        """A block of episodes of one length, which may be of different tasks and narrower than the data set.

        Shapes: task (episodes,), observation (episodes, steps + 1, observation), action (episodes, steps, action) in
        [-1, 1], the others (episodes, steps).
        """
        episodes, steps = reward.shape
        rows = {
            "observation": (self.observation, observation),
            "action": (self.action, action),
            "reward": (0, reward),
            "terminated": (0, terminated),
        }
        for name, (width, values) in rows.items():
            block = np.zeros((episodes, steps + 1, *((width,) if width else ())), NUMBER)
            part = block[:, : values.shape[1]]
            (part[..., : values.shape[2]] if width else part)[...] = values
            block.tofile(self._files[name])
        first = self._rows + np.arange(episodes) * (steps + 1)
        self._episodes.append(np.stack([np.asarray(task, np.int64), first, np.full(episodes, steps)], axis=1))
        self._rows += episodes * (steps + 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                raise error
            self._finish()

    def _finish(self) -> None:
        if not self._episodes:
            raise UserError(
                f"{self.folder} would be a data set with no episodes: nothing was written; look at what it is made"
                " from."
            )
        table = np.concatenate(self._episodes)
        np.save(self._temporary / TABLE, table, allow_pickle=False)
        for file in self._files.values():
            file.close()
        written = {
            path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
            for path in sorted(self._temporary.iterdir())
        }
        tasks: list[dict[str, Any]] = []
        for number, task in enumerate(self.tasks):
            steps = table[table[:, 0] == number, 2]
            tasks.append(task.to_json() | {"episodes": len(steps), "steps": int(steps.sum())})
        sizes = {"observation": self.observation, "action": self.action, "rows": self._rows, "episodes": len(table)}
        write_json(self._temporary / HEADER, sealed({"format": FORMAT, **sizes, "files": written, "tasks": tasks}))


def _header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        header = read_json(path, "the description of a data set", advice="make the data set again")
    except FileFault as error:
        if not error.missing:
            raise
        raise UserError(
            f"{folder} is not a data set (it has no {HEADER}): make one with `saddlepoint collect` or `saddlepoint"
            " convert`."
        ) from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this version of saddlepoint: make the data set again.")
    if not is_sealed(header):
        raise UserError(f"{path} has changed since it was written: {AGAIN}.")
    return header


def _count(header: dict[str, Any], name: str, folder: Path) -> int:
    value = header.get(name)
    if type(value) is not int or value < 1:
        raise UserError(
            f"{folder / HEADER} is damaged ({name} is {value!r}, not a number of at least 1): make the data set again."
        )
    return value


def _require_whole(path: Path, entry: Any, verify: bool) -> None:
    """Raises ``UserError`` unless the file is as ``entry`` of dataset.json says."""
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
        raise UserError(f"{path.parent / HEADER} says nothing whole of {path.name}: make the data set again.")
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        size = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
        raise UserError(f"{path} should hold {entry['bytes']} bytes and holds {size}: {AGAIN}.")
    if verify and digest(path) != entry["sha256"]:
        raise UserError(f"{path} has changed since it was written: {AGAIN}.")
