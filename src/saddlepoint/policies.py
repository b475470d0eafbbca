"""Find the policy of a run: in its newest checkpoint, another one, or the best within the budget."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.faults import explain
from saddlepoint.nn.normaliser import NormalisedLearner, normalised
from saddlepoint.options import number, restore, shown, truth_value, whole_number
from saddlepoint.systems import find, find_system
from saddlepoint.train import best, run
from saddlepoint.train import checkpoint as checkpoints
from saddlepoint.train.at_budget import at_budget, plain_shape
from saddlepoint.train.contract import LearnerFactory, acting_fields, checked, refuse_acting
from saddlepoint.trained_policy import TrainedPolicy
from saddlepoint.types import EnvSetup, EnvShape, UserError
from saddlepoint.usual import usual_torch


def _device(device: Any) -> torch.device:
    """Raises ``UserError`` for what is no device here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(f"a policy cannot act on the device {device!r:.40}: give 'cpu', or 'cuda' where there is one.") from error
    return found


def load_policy(
    folder: str | Path, device: str | torch.device = "cpu", task: str | None = None, acting: Mapping[str, Any] = MappingProxyType({}),
    *, checkpoint: int | str | None = None, compile: bool = False, budget: float | None = None,
) -> TrainedPolicy:  # fmt: skip
    """The policy of a run: of its newest checkpoint whose learner is whole, of the ``checkpoint`` of a step, or of "best", the best evaluation within the
    budget. Raises ``UserError`` when there is none. Warns where newer checkpoints are damaged, and where the last evaluation before the checkpoint was over
    the budget; ``note`` of the policy keeps the words.

    ``acting`` changes settings of acting alone (``ACTING`` of the system's config), such as ``{"evaluation": "best_of_n"}`` for ALGD, or
    ``{"planner": "score"}`` for MBDPO. Raises ``UserError`` for others.

    ``compile`` on a CPU has a run that was compiled act so again: in C++, which is built once in some ten seconds and may round otherwise.

    ``budget`` turns a run with --budget-range to that cost limit, in the units of its --cost-limit, which is taken by default; ``budgets`` of the policy
    say it then. Raises ``UserError`` outside of the range, and for a run for one budget.

    A run of `saddlepoint pretrain` has a policy for each ``task``, by its name or environment. The replay is not read, so it may be damaged or missing;
    neither are the environments nor the training loop imported.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"load_policy takes the folder of a run first, not {folder!r:.60}.")
    folder, device = Path(folder), _device(device)
    if not isinstance(acting, Mapping):
        raise UserError(f"acting are settings by name, not {acting!r:.40}: give {{'evaluation': 'best_of_n'}}, for example.")
    compile = truth_value("compile", compile)
    learner, content, step, note = load_learner(folder, device, acting, checkpoint=checkpoint, compile=compile)
    if note:
        warnings.warn(note, stacklevel=2)
    system = find_system(content["system"], content.get("module"), folder)
    chosen = find(system.chooser)(learner, content, task, folder, device) if system.chooser else None
    if chosen is None and task is not None:
        raise UserError(f"{folder} was trained on {content['train']['env']} alone: leave out --task.")
    env, shape, setup = content["train"].get("env"), None, None
    if chosen is None:
        shape, setup = run.shape_of(content), run.setup_of(content)
    else:
        learner, env, shape = chosen
        setup = EnvSetup(env)
    budgets = turned(run.budgets_of(content), budget, shape, folder)
    policy = at_budget(learner, budgets[0].limit if budgets else None, shape)
    return TrainedPolicy(policy, env, plain_shape(shape), budgets, step, content["train"]["seed"], torch.device(device), note, setup, shape.budget_range)


def turned(budgets: tuple[CostBudget, ...], limit: float | None, shape: EnvShape, folder: Path) -> tuple[CostBudget, ...]:
    """The budgets of a run, with ``limit`` where it is given. Raises ``UserError`` where the run cannot be turned to it."""
    if limit is None:
        return budgets
    if shape.budget_range is None:
        raise UserError(f"{folder} was trained for one budget, {budgets[0].limit:g}: train with --budget-range LOW HIGH to turn it."
                        if budgets else f"{folder} was trained without a budget: leave out the budget.")  # fmt: skip
    low, high = shape.budget_range
    limit = number("the budget", limit)
    if not low <= limit <= high:
        raise UserError(f"{folder} was trained for budgets from {low:g} to {high:g}, not {limit}: give one in between.")
    return tuple(replace(budget, limit=limit) for budget in budgets)


def start_from(folder: Path, task: str | None) -> tuple[LearnerFactory[Any], Any, str | None]:
    """What makes learners that start from a run's weights, of its ``task`` where it has several, the config that they have to begin with, and a sentence
    about newer, damaged checkpoints.

    Raises ``UserError`` where the run's system has no such learners, or no such task.
    """
    learner, content, _, note = load_learner(folder, "cpu")
    if run.shape_of(content).budget_range is not None:
        raise UserError(f"--start-from {folder} was trained with --budget-range, and a new run starts from a policy of one budget: leave it out.")
    place = find_system(content["system"], content.get("module"), folder).pretrained
    if place is None:
        raise UserError(f"--start-from {folder} is a run of {content['system']}, which cannot start from stored weights: leave it out.")
    if isinstance(learner, NormalisedLearner):
        raise UserError(
            f"--start-from {folder} was trained with --normalise-observations, whose statistics a new run would not"
            " have: leave it out."
        )
    return *find(place)(learner, content, task, folder), note


def load_learner(
    folder: Path, device: str | torch.device, acting: Mapping[str, Any] = MappingProxyType({}), *, checkpoint: int | str | None = None,
    compile: bool = False,
) -> tuple[Any, dict[str, Any], int, str | None]:  # fmt: skip
    """The learner of a run's newest checkpoint whose learner is whole, or of another ``checkpoint``, the run's config.json, its steps, and a sentence about
    newer, damaged ones.

    That of a run of `saddlepoint pretrain` knows several tasks. Arguments as in ``load_policy``. Raises ``UserError`` when there is none.
    """
    content = run.read(folder)
    system = find_system(content["system"], content.get("module"), folder)
    where = folder / "config.json"
    stored = restore(system.config_class(), content["learner"], where)
    try:
        stored = checked(stored)
    except UserError as error:
        raise UserError(f"{where} is damaged ({str(error).rstrip('.')}): restore it, or use the version of saddlepoint that wrote it.") from error
    config = _acting(stored, acting, content["system"])
    shape, budgets = run.shape_of(content), run.budgets_of(content)
    state, step, note = stored_learner(folder, checkpoint)
    at = folder / best.NAME if checkpoint == best.NAME else checkpoints.place(folder, step)
    note = " ".join(filter(None, (note, of_other_settings(folder, content, at), over_budget(folder, at)))) or None
    further = find(system.options)(content) if system.options else {}
    compiled = compile and torch.device(device).type == "cpu" and content.get("resolved", {}).get("compiled", False)
    with usual_torch():
        try:
            learner = system.learner_class()(config, shape, budgets, 0, torch.device(device), compile=compiled, **further)
        except Exception as error:
            if sentence := explain(error):  # networks that are larger than the memory
                raise UserError(sentence) from error
            raise
        if content["train"].get("normalise_observations", False):
            learner = normalised(learner, shape.observation, device)
        with checkpoints.reading(folder):
            learner.load_state_dict(state)
    return learner, content, step, note


def of_other_settings(folder: Path, content: dict[str, Any], at: Path) -> str | None:
    """A sentence where the checkpoint in ``at`` was not made with the run's config.json, ``content``: one of them came from elsewhere, or was changed."""
    if "env" not in content["train"]:  # pretraining, whose digest is of other settings
        return None
    known = _seals(at).get("config")
    if not known or known == run.settings_digest(content, run.OPERATIONAL):
        return None
    return f"{folder / 'config.json'} is not the one that the checkpoint in {at} was made with, so budgets, environment or networks may be others."


def over_budget(folder: Path, at: Path) -> str | None:
    """A sentence where the last evaluation before the checkpoint in ``at`` was over the budget."""
    over = _seals(at).get("over")
    if not isinstance(over, dict):
        return None
    try:
        way = f'--checkpoint best, in Python checkpoint="best", is of step {best.read(folder)[1]}, which was within it'
    except UserError:
        way = "no evaluation of this run was within it yet, so train on"
    return f"the last evaluation before the checkpoint in {at}, at step {over.get('step')}, was over the budget ({over.get('costs')}): {way}."


def _seals(at: Path) -> dict[str, Any]:
    """What a checkpoint says of the files beside it; nothing where a run that goes on has removed it."""
    try:
        seals = checkpoints.whole(at, ())[1].get("seals")
    except UserError:
        return {}
    return seals if isinstance(seals, dict) else {}


def stored_learner(folder: Path, which: int | str | None) -> tuple[dict[str, torch.Tensor], int, str | None]:
    """A learner's state: of the newest whole checkpoint (None), of a step's, or of "best"; its step; and a sentence about newer, damaged ones.

    Raises ``UserError``.
    """
    if which is None:
        return checkpoints.newest(folder, checkpoints.load_learner, checkpoints.LEARNER)
    if isinstance(which, str) and which == best.NAME:
        at, step = best.read(folder)
        return checkpoints.load_learner(at), step, None
    digits = isinstance(which, str) and re.fullmatch(r"[0-9]{1,18}", which)
    try:
        which = whole_number("checkpoint", int(which) if digits else which)
    except UserError:
        raise UserError(f"--checkpoint {which if isinstance(which, str) else shown(which):.60} is neither a step nor {best.NAME}: give one of them.") from None
    at = checkpoints.place(folder, which)
    if not at.is_dir() and not checkpoints.aside(at).is_dir():
        kept = ", ".join(str(step) for step in checkpoints.steps(folder)) or "none"
        also = f" and {best.NAME}" if (folder / best.NAME).is_dir() else ""
        raise UserError(f"{folder} has no checkpoint of step {which}: it keeps {kept}{also}.")
    return checkpoints.load_learner(at, which), which, None


def _acting(config: Any, changes: Mapping[str, Any], system: str) -> Any:
    """``config`` with other settings of acting. Raises ``UserError``."""
    if not changes:
        return config
    own = acting_fields(config)
    for name in changes:
        if name not in own:
            known = f"take one of {', '.join(sorted(own))}" if own else "it has none"
            raise UserError(f"{name} is no setting of acting of {system}: {known}.")
    try:
        changed = checked(replace(config, **changes))
        refuse_acting(changed, config, changes)
    except UserError as error:
        raise as_settings(error) from error
    return changed


def as_settings(error: UserError) -> UserError:
    """``error`` of a setting of acting, which names it as such and not as the flag of ``train`` that it has."""
    return UserError("acting: " + re.sub(r"--(?!help\b)([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error)))
