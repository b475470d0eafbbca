"""The registry of tasks: what an environment id stands for and how much cost its author allows."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.faults import describe
from saddlepoint.foreign import blame
from saddlepoint.types import EnvSetup, UserError


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
    source: Literal["saddlepoint", "gymnasium", "python"]
    """who registered it; ``python`` for a class or function that makes it"""
    extra: str | None = None
    """the extra that it needs, of ``EXTRAS``; None for none"""
    pixels: bool = False
    """whether its observations are pictures (``pixels.py``)"""
    action_repeat: int = 1
    """simulator steps that an action is held for, unless the user says otherwise"""
    episode_steps: int | None = None
    """steps after which a training episode is cut, unless the user says otherwise; None leaves it whole"""


PIXELS = "@pixels"
"""what an id ends with when the task is to be observed through pictures of it; Gymnasium allows no @ in its own ids"""

EXTRAS = {"control": "dm_control", "metaworld": "metaworld"}
"""Extras of saddlepoint that bring tasks, and the module by which one sees that they are installed."""


MODULES = "SADDLEPOINT_ENV_MODULES"
"""the environment variable that names modules to import, separated by commas, where an id is unknown without them"""

TASKS: dict[str, TaskSpec] = {}


def register_task(
    id: str,
    description: str,
    budgets: tuple[CostBudget, ...],
    horizon: int,
    extra: str | None = None,
    action_repeat: int = 1,
    episode_steps: int | None = None,
    **registration: Any,
) -> None:
    """Enter a task of our own into this registry and into Gymnasium's.

    ``horizon``, ``budgets`` and ``episode_steps`` count simulator steps; ``action_repeat`` is the task's default.
    ``registration`` goes to ``gymnasium.register`` (``entry_point``, ``vector_entry_point``, ``kwargs``).
    """
    TASKS[id] = TaskSpec(
        id, description, budgets, len(budgets), horizon, "saddlepoint", extra,
        action_repeat=action_repeat, episode_steps=episode_steps,
    )
    gym.register(id, max_episode_steps=horizon, **registration)


def list_envs() -> list[TaskSpec]:
    """The tasks registered by saddlepoint, by id; those of an extra only where it is installed."""
    here = {extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is not None}
    return [TASKS[id] for id in sorted(TASKS) if TASKS[id].extra is None or TASKS[id].extra in here]


def env_spec(env: str | Callable[..., Any] | EnvSetup, max_episode_steps: int | None = None) -> TaskSpec:
    """The task of an id, ours or any registered with Gymnasium, or either with ``PIXELS`` at its end; or of what makes
    an environment. ``max_episode_steps`` replaces its horizon and its budgets'.

    Of an ``EnvSetup`` horizon and budgets count decisions, each of ``action_repeat`` simulator steps.
    Raises ``UserError`` naming close matches when nothing of that name is registered.
    """
    setup = EnvSetup.of(env)
    spec = _registered(setup)
    if max_episode_steps is None:
        max_episode_steps = _time_limit(setup)
    if max_episode_steps is not None:
        budgets = tuple(replace(budget, horizon=max_episode_steps) for budget in spec.budgets)
        spec = replace(spec, budgets=budgets, horizon=max_episode_steps)
    return in_decisions(spec, setup.action_repeat or spec.action_repeat)


def action_repeat_of(setup: EnvSetup) -> int:
    """Simulator steps a decision: the setup's own number, or with 0 the task's."""
    return setup.action_repeat or _registered(setup).action_repeat


def in_decisions(spec: TaskSpec, action_repeat: int) -> TaskSpec:
    """``spec``, whose horizon T counts simulator steps, in ceil(T / N) decisions; an episode's budget is as it was."""
    if action_repeat == 1:
        return replace(spec, action_repeat=1)
    horizon = None if spec.horizon is None else math.ceil(spec.horizon / action_repeat)
    budgets = tuple(_stretched(budget, math.ceil(budget.steps / action_repeat)) for budget in spec.budgets)
    cut = None if spec.episode_steps is None else math.ceil(spec.episode_steps / action_repeat)
    return replace(spec, budgets=budgets, horizon=horizon, action_repeat=action_repeat, episode_steps=cut)


def _stretched(budget: CostBudget, horizon: int) -> CostBudget:
    """The same bound on the sum over an episode, which has ``horizon`` steps now."""
    same = replace(budget, horizon=horizon)
    return replace(same, limit=same.limit * budget.episode / same.episode) if same.episode else same


def _time_limit(setup: EnvSetup) -> int | None:
    limit = setup.kwargs.get("max_episode_steps")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise UserError(
            f"an episode of {setup.name} needs at least one step, not {limit!r}: correct max_episode_steps."
        )
    return limit


def _registered(setup: EnvSetup) -> TaskSpec:
    name, pixels = split_id(setup.name)
    known = isinstance(setup.env, str)
    spec = (TASKS.get(name) or _gymnasium_task(name)) if known else _made_by(setup.name)
    if pixels:
        spec = replace(spec, id=setup.name, description=f"{spec.description}; observed as pixels", pixels=True)
    return spec


def _made_by(name: str) -> TaskSpec:
    return TaskSpec(name, f"made by {name}", (), None, None, "python")


def split_id(id: str) -> tuple[str, bool]:
    """The id that is registered, and whether ``PIXELS`` follows it. Raises ``UserError`` where something else does."""
    name, at, view = id.partition("@")
    if at and at + view != PIXELS:
        raise UserError(
            f"{id!r} cannot be observed as {view!r}: write {name}{PIXELS}, or {name} alone for its own observations."
        )
    return name, bool(at)


def maker_of(id: str) -> Callable[..., Any] | None:
    """What ``module:name`` makes environments with, where that is a class or function and not a registered id."""
    module, colon, name = id.partition(":")
    if not colon or "<" in name:
        return None
    found: Any = _import(module, id)
    if name in gym.registry:
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else None


def _gymnasium_task(id: str) -> TaskSpec:
    """A task of Gymnasium's registry; ``module:Name-v0`` imports the module first, which registers the environment."""
    module, colon, name = id.partition(":")
    if colon:
        if "<" in name or module == "__main__":
            raise UserError(
                f"the environment {id} was made in Python, by what no other program can import: use it there,"
                f" or put what makes it into a module and name it as --env module:{name.rpartition('.')[2]}."
            )
        if maker_of(id) is not None:
            return _made_by(id)
        return replace(_gymnasium_task(name), id=id)
    if id not in gym.registry:
        for extra in filter(None, os.environ.get(MODULES, "").split(",")):
            _import(extra.strip(), id)
    try:
        registered = gym.spec(id)
    except (gym.error.Error, ModuleNotFoundError, ValueError) as error:
        names = {name.lower(): name for name in gym.registry}
        near = [names[match] for match in difflib.get_close_matches(id.lower(), names, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else "`saddlepoint envs` lists those that come with it."
        as_id = id if id.isprintable() and 0 < len(id) < 100 else "ID"
        raise UserError(
            f"no environment is called {id!r:.100}: if it is your own, name the module that registers it, as --env"
            f" my_module:{as_id} (for an existing run set {MODULES}=my_module); {hint}"
        ) from error
    return TaskSpec(id, f"{id}, registered with Gymnasium", (), None, registered.max_episode_steps, "gymnasium")


def _import(module: str, id: str) -> Any:
    """The module of an environment. Raises ``UserError`` for whatever stops its import."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the module {module!r} of {id!r} cannot be imported ({error}): install it, or mind PYTHONPATH."
        ) from error
    except SyntaxError as error:
        raise UserError(
            f"the module {module!r} of {id!r} cannot be read by Python ({error}): correct that line."
        ) from error
    except BaseException as error:
        blame(module, error)  # raises what is not the module's
        raise UserError(
            f"the module {module!r} of {id!r} cannot be imported ({describe(error)}): correct it."
        ) from error
