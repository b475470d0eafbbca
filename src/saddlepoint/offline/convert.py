"""`saddlepoint convert CHUNK... --out FOLDER`: TD-MPC2's multi-task data as a data set of ours, chunk by chunk and a
few episodes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saddlepoint.flags import parse
from saddlepoint.mbdpo.tasks import Task
from saddlepoint.offline.chunk import Chunk, read_chunk
from saddlepoint.offline.dataset import Dataset, Writer
from saddlepoint.offline.task_sets import SETS, KnownTask, known_task
from saddlepoint.types import UserError

EPISODES_AT_ONCE = 256
MOST_TASKS = 10_000
"""tasks of a set; a larger number is a damaged one, and all up to it would be made"""
PROG = "saddlepoint convert CHUNK..."


@dataclass(frozen=True)
class ConvertFlags:
    """Make a data set of the chunks (.pt files) of TD-MPC2's mt30 or mt80. Nothing that a chunk says is run."""

    out: Path | None = None
    """folder of the data set, which must not exist yet"""
    tasks: tuple[str, ...] = ()
    """what the task numbers stand for: mt30, mt80, or one name for each number; without it they are called task-0,
    task-1, ..."""


def convert_command(args: list[str]) -> None:
    """Everything after `saddlepoint convert`. Raises ``UserError``."""
    chunks, flags = chunks_and_flags(args)
    parsed = parse(ConvertFlags, ConvertFlags(), flags, PROG)
    if not chunks:
        raise UserError("convert needs chunks: `saddlepoint convert CHUNK... --out FOLDER`.")
    if parsed.values.out is None:
        raise UserError("convert needs a folder for the data set: give --out FOLDER.")
    data = convert([Path(chunk) for chunk in chunks], parsed.values.out, parsed.values.tasks)
    print(
        f"{data.folder}: {len(data):,} episodes and {data.steps:,} steps of {len(data.tasks)} tasks; learn from it"
        " with `saddlepoint pretrain mbdpo`"
    )


def chunks_and_flags(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first flag, and the rest."""
    first = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    return list(args[:first]), list(args[first:])


def convert(paths: Sequence[Path], out: Path, names: Sequence[str] = ()) -> Dataset:
    """The data set ``out`` from chunks, whose sizes and types are all checked first. ``names``: as
    ``ConvertFlags.tasks``.

    How much of the padded observation and action a task uses is not stored in a chunk: up to the last entry that is
    ever other than 0, where it is not known. Raises ``UserError`` for a chunk that is damaged, of other sizes than the
    first, or holds values that are not finite.
    """
    names = SETS[names[0]] if len(names) == 1 and names[0] in SETS else tuple(names)
    chunks = [read_chunk(path) for path in paths]
    sizes = {chunk.path: (chunk.obs.shape[2], chunk.action.shape[2]) for chunk in chunks}
    first = next(iter(sizes.values()))
    for path, (observation, action) in sizes.items():
        if (observation, action) != first:
            raise UserError(
                f"{path} has {observation} observations and {action} actions and {chunks[0].path} has {first[0]} and"
                f" {first[1]}: convert them one by one."
            )
    with Writer(out, *first) as writer:
        seen = _Seen(*first, names)
        for chunk in chunks:
            for start in range(0, len(chunk.obs), EPISODES_AT_ONCE):
                _add(writer, seen, chunk, slice(start, start + EPISODES_AT_ONCE))
        writer.tasks = seen.tasks()
    return Dataset(out, verify=False)


def _add(writer: Writer, seen: _Seen, chunk: Chunk, part: slice) -> None:
    """A few episodes: the action and reward that led to row t + 1 are those of step t."""
    obs, action, reward = (_finite(values, name, chunk) for values, name in (
        (chunk.obs[part], "obs"), (chunk.action[part, 1:], "action"), (chunk.reward[part, 1:], "reward")
    ))  # fmt: skip
    task = chunk.task[part].to(torch.int64).numpy()
    if (task != task[:, :1]).any() or task.min() < 0:
        raise UserError(
            f"{chunk.path}: an episode has more than one task, or a negative one: it is not a chunk of TD-MPC2's data."
        )
    if task.max() >= MOST_TASKS:
        raise UserError(
            f"{chunk.path}: an episode is of task {task.max()}, and at most {MOST_TASKS:,} are taken: the chunk is"
            " damaged, fetch it again."
        )
    if abs(action).max() > 1 + 1e-5:
        raise UserError(f"{chunk.path}: an action is outside of [-1, 1]: it is not a chunk of TD-MPC2's data.")
    seen.add(task[:, 0], obs, action)
    writer.add(task[:, 0], obs, action.clip(-1, 1), reward, np.zeros_like(reward))


def _finite(values: Tensor, name: str, chunk: Chunk) -> np.ndarray:
    array = values.to(torch.float32).numpy()
    if not np.isfinite(array).all():
        raise UserError(
            f"{chunk.path}: {name} holds values that are not finite, and not in the first row alone: fetch it again."
        )
    return array


class _Seen:
    """What the episodes have shown of each task, by its number."""

    def __init__(self, observation: int, action: int, names: Sequence[str]) -> None:
        self.widths, self.names = (observation, action), names
        self.used: dict[
            int, list[np.ndarray]
        ] = {}  # entries of the observation and of the action that were ever other than 0
        self.steps: dict[int, int] = {}  # of the longest episode

    def add(self, task: np.ndarray, observation: np.ndarray, action: np.ndarray) -> None:
        for number in np.unique(task).tolist():
            ours = task == number
            used = self.used.setdefault(number, [np.zeros(width, bool) for width in self.widths])
            for entries, values in zip(used, (observation[ours], action[ours])):
                entries |= (values != 0).any((0, 1))
            self.steps[number] = max(self.steps.get(number, 0), action.shape[1])
            if number < len(self.names):
                self._require_known(number, self.names[number])

    def _require_known(self, number: int, name: str) -> None:
        """At the first episodes that do not fit, and not when all chunks have been read. Raises ``UserError``."""
        known = known_task(name) or KnownTask(name, 1, None, None)
        for what, most, entries in zip(
            ("observations", "actions"), (known.observation, known.action), self.used[number], strict=True
        ):
            uses = int(entries.nonzero()[0].max(initial=0)) + 1
            if most and uses > most:
                raise UserError(
                    f"{name} has {most} {what} and the chunks use {uses} of task {number}: --tasks names them wrongly."
                )

    def tasks(self) -> tuple[Task, ...]:
        """Every task up to the highest number, or of ``names``; one without episodes counts with the whole padded
        sizes."""
        names, highest = self.names, max(self.used, default=-1)
        if names and highest >= len(names):
            raise UserError(
                f"the chunks hold a task {highest} and --tasks names {len(names)} (0 to {len(names) - 1}): name them"
                " all."
            )
        return tuple(
            self._task(number, names[number] if names else f"task-{number}")
            for number in range(len(names) or highest + 1)
        )

    def _task(self, number: int, name: str) -> Task:
        known = known_task(name) or KnownTask(name, self.steps.get(number, 1), None, None)
        observation, action = self.widths
        if number in self.used:
            observation, action = (int(entries.nonzero()[0].max(initial=0)) + 1 for entries in self.used[number])
            observation = min(known.observation or observation, self.widths[0])
        return Task(name, known.env, observation, (-1.0,) * action, (1.0,) * action, known.steps)
