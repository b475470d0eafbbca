"""Every navigation task by name, and their registration."""

from __future__ import annotations

import difflib

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.navigation.fixed import EPISODE_LIMIT, FIXED, HORIZON
from saddlepoint.envs.navigation.tasks import STANDARD, Task
from saddlepoint.envs.tasks import register_task
from saddlepoint.types import UserError

CATALOGUE: dict[str, Task] = {**STANDARD, **FIXED}


def find_task(name: str) -> Task:
    """The task called ``name``; raises ``UserError`` naming close matches when there is none."""
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(CATALOGUE)}."
        raise UserError(f"no navigation task is called {name!r}: {hint}")
    return CATALOGUE[name]


def _register(task: Task, text: str, limit: float, horizon: int) -> None:
    register_task(
        f"saddlepoint/{task.name}-v0", text, (CostBudget(limit, horizon=horizon),), horizon,
        entry_point="saddlepoint.envs.navigation.env:NavigationEnv",
        vector_entry_point="saddlepoint.envs.navigation.vector:NavigationVectorEnv",
        kwargs={"task": task.name},
    )  # fmt: skip


for _task in STANDARD.values():
    _name = "no costs" if not _task.costs else "cost 1 a step on " + ", ".join(
        cost.key.removeprefix("cost_").replace("_", " ") for cost in _task.costs
    )  # fmt: skip
    _register(_task, f"{_task.robot.name}, random layout; {_name}", 25.0, 1000)
for _task in FIXED.values():
    _name = ", ".join(cost.key.removeprefix("cost_") for cost in _task.costs)
    _register(_task, f"{_task.robot.name}, the papers' fixed layout; cost 1 a step on {_name}", EPISODE_LIMIT, HORIZON)
