"""Every navigation task by name, and their registration."""

from __future__ import annotations

import difflib

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.navigation import fixed
from saddlepoint.envs.navigation.fixed import FIXED
from saddlepoint.envs.navigation.tasks import STANDARD, Task
from saddlepoint.envs.tasks import register_task
from saddlepoint.types import UserError

CATALOGUE: dict[str, Task] = {**STANDARD, **FIXED}
HORIZON = 1000
EPISODE_LIMIT = 25.0  # Safety-Gymnasium's
ACTION_REPEAT = 4
"""A simulator step is 0.02 s, and leaving a hazard takes 20 to 40 of them: one step's action changes too little for a critic to tell (docs/budget-lab.md)."""
EPISODE_STEPS = 400
"""Training episodes are cut here: every episode has another layout, and critics that met few of them know those by heart. Shorter ones would show more,
but what they pay tells less of a whole one, which begins away from hazards (docs/budget-lab.md)."""
_OBJECTIVES = {"Goal": "going to goals", "Button": "pressing buttons", "Push": "pushing a box to goals"}


def find_task(name: str) -> Task:
    """The task called ``name``; raises ``UserError`` naming close matches when there is none."""
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(CATALOGUE)}."
        raise UserError(f"no navigation task is called {name!r}: {hint}")
    return CATALOGUE[name]


def _describe(task: Task, layout: str) -> str:
    what = next(text for word, text in _OBJECTIVES.items() if word in task.name)
    costs = ", ".join(cost.key.removeprefix("cost_").replace("_", " ") for cost in task.costs)
    return f"{task.robot.name} {what}, {layout} layout; " + (f"cost 1 a step on {costs}" if costs else "no costs")


def _register(task: Task, layout: str, limit: float, horizon: int, episode_steps: int | None = None) -> None:
    register_task(
        f"saddlepoint/{task.name}-v0", _describe(task, layout), (CostBudget(limit, horizon=horizon),), horizon,
        entry_point="saddlepoint.envs.navigation.env:NavigationEnv",
        vector_entry_point="saddlepoint.envs.navigation.vector:NavigationVectorEnv",
        kwargs={"task": task.name}, action_repeat=ACTION_REPEAT, episode_steps=episode_steps,
    )  # fmt: skip


for _task in STANDARD.values():
    _register(_task, "random", EPISODE_LIMIT, HORIZON, EPISODE_STEPS)
for _task in FIXED.values():
    _register(_task, "the papers' fixed", fixed.EPISODE_LIMIT, fixed.HORIZON)
