"""The registry of tasks: what an environment id stands for and how much cost its author allows."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.types import UserError


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task before it is made."""

    id: str
    description: str
    budgets: tuple[CostBudget, ...]
    """the task's own default budget of every constraint; empty when it declares none"""
    constraints: int | None
    """length of ``info["cost"]``; None where only a rollout can tell"""
    horizon: int | None
    """steps until an episode is truncated; None without a time limit"""
    source: Literal["saddlepoint", "gymnasium"]
    extra: str | None = None
    """the extra that it needs, of ``EXTRAS``; None for none"""
    pixels: bool = False
    """whether its observations are pictures (``pixels.py``)"""


PIXELS = "@pixels"
"""what an id ends with when the task is to be observed through pictures of it; Gymnasium allows no @ in its own ids"""

EXTRAS = {"control": "dm_control", "metaworld": "metaworld"}
"""Extras of saddlepoint that bring tasks, and the module by which one sees that they are installed."""


TASKS: dict[str, TaskSpec] = {}


def register_task(
    id: str,
    description: str,
    budgets: tuple[CostBudget, ...],
    horizon: int,
    extra: str | None = None,
    **registration: Any,
) -> None:
    """Enter a task of our own into this registry and into Gymnasium's.

    ``registration`` goes to ``gymnasium.register`` (``entry_point``, ``vector_entry_point``, ``kwargs``).
    """
    TASKS[id] = TaskSpec(id, description, budgets, len(budgets), horizon, "saddlepoint", extra)
    gym.register(id, max_episode_steps=horizon, **registration)


def list_envs() -> list[TaskSpec]:
    """The tasks registered by saddlepoint, by id; those of an extra only where it is installed."""
    here = {extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is not None}
    return [TASKS[id] for id in sorted(TASKS) if TASKS[id].extra is None or TASKS[id].extra in here]


def env_spec(id: str, max_episode_steps: int | None = None) -> TaskSpec:
    """The task of ``id``, ours or any registered with Gymnasium, or either with ``PIXELS`` at its end;
    ``max_episode_steps`` replaces its horizon and its budgets'.

    Raises ``UserError`` naming close matches when nothing of that name is registered.
    """
    name, pixels = split_id(id)
    spec = TASKS.get(name) or _gymnasium_task(name)
    if pixels:
        spec = replace(spec, id=id, description=f"{spec.description}; observed as pixels", pixels=True)
    if max_episode_steps is None:
        return spec
    budgets = tuple(replace(budget, horizon=max_episode_steps) for budget in spec.budgets)
    return replace(spec, budgets=budgets, horizon=max_episode_steps)


def split_id(id: str) -> tuple[str, bool]:
    """The id that is registered, and whether ``PIXELS`` follows it. Raises ``UserError`` where something else does."""
    name, at, view = id.partition("@")
    if at and at + view != PIXELS:
        raise UserError(f"{id!r} cannot be observed as {view!r}: write {name}{PIXELS}, or {name} alone for its own observations.")
    return name, bool(at)


def _gymnasium_task(id: str) -> TaskSpec:
    """A task of Gymnasium's registry; ``module:Name-v0`` imports the module first, which registers the environment."""
    module, colon, name = id.partition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"the module {module!r} of {id!r} cannot be imported ({error}): install it, or mind PYTHONPATH.") from error
        except SyntaxError as error:
            raise UserError(f"the module {module!r} of {id!r} cannot be read by Python ({error}): correct that line.") from error
        return replace(_gymnasium_task(name), id=id)
    try:
        registered = gym.spec(id)
    except (gym.error.Error, ModuleNotFoundError) as error:
        near = difflib.get_close_matches(id.lower(), {name.lower(): name for name in gym.registry}, n=3, cutoff=0.5)
        names = {name.lower(): name for name in gym.registry}
        hint = f"did you mean {' or '.join(names[match] for match in near)}?" if near else "see `saddlepoint envs`."
        raise UserError(f"no environment is called {id!r}: {hint}") from error
    return TaskSpec(id, f"{id}, registered with Gymnasium", (), None, registered.max_episode_steps, "gymnasium")
