"""The tasks of a model that learns several: names, environments, sizes; and how they stand in a run's config.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saddlepoint.mbdpo.world_model import Tasks
from saddlepoint.types import EnvShape, UserError


@dataclass(frozen=True)
class Task:
    """One of several tasks. Its observations and actions use the first entries of the padded ones; actions are stored scaled to [-1, 1]."""

    name: str
    env: str
    """environment id; the name again where nobody knows it"""
    observation: int
    action_low: tuple[float, ...]
    """bounds in the environment's own units"""
    action_high: tuple[float, ...]
    episode_length: int
    """steps of a whole episode, which the discount depends on"""

    @property
    def shape(self) -> EnvShape:
        """Of its environment, whose costs are left out of account."""
        return EnvShape(self.observation, self.action_low, self.action_high, 0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, where: Path) -> Task:
        """Undo ``to_json``; other entries are left alone. Raises ``UserError``, which names the file ``where``, for what is not a task."""
        try:
            low, high = (tuple(map(float, values[name])) for name in ("action_low", "action_high"))
            task = cls(values["name"], values["env"], values["observation"], low, high, values["episode_length"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where} is damaged (a task has no whole {error}): restore it, or make it again.") from error
        texts = isinstance(task.name, str) and isinstance(task.env, str)
        counts = all(type(count) is int and count > 0 for count in (task.observation, task.episode_length))
        bounds = len(low) == len(high) > 0 and all(-math.inf < a < b < math.inf for a, b in zip(low, high))
        if not (texts and counts and bounds):
            raise UserError(f"{where} is damaged (a task has odd names, sizes or bounds): restore it, or make it again.")
        return task


def padded_shape(observation: int, action: int) -> EnvShape:
    """The shape that a model of several tasks has: the padded sizes, with actions in [-1, 1]."""
    return EnvShape(observation, (-1.0,) * action, (1.0,) * action, 0)


def model_tasks(tasks: Sequence[Task]) -> Tasks:
    """What the model needs to know of its tasks."""
    return Tasks(tuple(len(task.action_low) for task in tasks), tuple(task.episode_length for task in tasks))


def stored_tasks(content: dict[str, Any], run: Path = Path()) -> tuple[Task, ...]:
    """The tasks of a run's config.json. Raises ``UserError`` when they are damaged."""
    where, tasks = run / "config.json", content["tasks"]
    if not isinstance(tasks, list):
        raise UserError(f"{where} is damaged (its 'tasks' are no list): restore it, or start a new run.")
    return tuple(Task.from_json(task, where) for task in tasks)


def learner_options(content: dict[str, Any]) -> dict[str, Any]:
    """What the agent of a stored run is made with beside its config: its tasks, where it has several."""
    return {"tasks": model_tasks(stored_tasks(content))} if "tasks" in content else {}


def chosen_task(content: dict[str, Any], name: str | None, run: Path, flag: str = "--task") -> tuple[int, Task]:
    """The number and the task called ``name``, or of that environment, of a run's config.json. Raises ``UserError``, which lists the tasks."""
    tasks = stored_tasks(content, run)
    number = find_task(tasks, name, run, flag)
    return number, tasks[number]


def find_task(tasks: Sequence[Task], name: str | None, where: Path, flag: str = "--task") -> int:
    """The number of the task called ``name``, or of that environment. Raises ``UserError``, which lists the tasks."""
    for number, task in enumerate(tasks):
        if name in (task.name, task.env):
            return number
    said = f"{where} has no task {name!r}" if name else f"{where} has {len(tasks)} tasks"
    raise UserError(f"{said}: name one with {flag}: {', '.join(task.name for task in tasks)}.")
