"""What `saddlepoint envs` prints: all tasks by groups, or those that match some words in full."""

from __future__ import annotations

import textwrap

import gymnasium as gym

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.tasks import TaskSpec, list_envs
from saddlepoint.types import UserError

GROUPS = {
    "toy": "Toy: a point and a hazard, for a first run",
    "velocity": "Robots of MuJoCo with a limit on their speed (Velocity: steps above it; Speed: the speed itself)",
    "navigation": "Safe navigation among hazards, after Safety-Gymnasium",
    "control": "DeepMind Control Suite (extra: control)",
    "metaworld": "Meta-World (extra: metaworld)",
}
"""titles, by the module of ``saddlepoint.envs`` that has the environment"""
OTHER = "Other tasks"


def list_in_words(words: list[str]) -> list[str]:
    """Lines: without ``words`` the ids of every group, else the tasks whose id has all of them, or where no id does,
    those whose description has.

    Raises ``UserError`` where none has.
    """
    tasks = list_envs()
    if words:
        found = [task for task in tasks if _has(task.id, words)] or [
            task for task in tasks if _has(f"{task.id} {task.description}", words)
        ]
        if not found:
            raise UserError(
                f"no task has {' and '.join(map(repr, words))} in its name or description:"
                " `saddlepoint envs` lists them all."
            )
        return [line for task in found for line in _in_full(task)]
    lines: list[str] = []
    for title in [*GROUPS.values(), OTHER]:
        ids = [task.id for task in tasks if _group(task) == title]
        if ids:
            lines += [
                f"{title}: {len(ids)}",
                *textwrap.wrap("  ".join(ids), 116, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False),
            ]
    return [
        *lines,
        "",
        "`saddlepoint envs WORD ...` describes those that match: `saddlepoint envs hopper velocity`.",
        'Any other environment of Gymnasium\'s with Box actions works when it puts a cost into info["cost"]: give --env'
        " module:its-id and a --cost-limit.",
        "mbdpo learns from pictures of an environment too: put @pixels after its name.",
    ]


def _has(text: str, words: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in words)


def _group(task: TaskSpec) -> str:
    place = str(gym.spec(task.id).entry_point).partition(":")[0].split(".")
    return GROUPS.get(place[2], OTHER) if place[:2] == ["saddlepoint", "envs"] and len(place) > 2 else OTHER


def _in_full(task: TaskSpec) -> list[str]:
    steps = f" ({task.horizon} steps an episode)" if task.horizon else ""
    return [task.id, f"    {task.description}{steps}", *(f"    budget: {_in_words(budget)}" for budget in task.budgets)]


def _in_words(budget: CostBudget) -> str:
    """As ``describe``; without the discounted sum where the learner's discount decides it (a run prints it)."""
    words = budget.describe()
    return words if budget.discounted else words.rpartition(" = ")[0]
