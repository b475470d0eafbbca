"""What must hold before the first trial starts: every trial's flags can be trained with, and agree with what was
run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from saddlepoint.commands import fresh_run, parse_training
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.sweep.plan import Plan, Trial
from saddlepoint.systems import find_system
from saddlepoint.train import run
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.start import as_kept, compiles
from saddlepoint.types import UserError


@dataclass(frozen=True)
class Settled:
    """What a trial's flags come to."""

    config: TrainConfig
    learner: Any
    budgets: tuple[CostBudget, ...]


def settle(plan: Plan) -> dict[str, Settled]:
    """By trial's name, what the flags come to. Raises ``UserError`` for the first trial that cannot be trained."""
    return {trial.name: settle_one(plan, trial) for trial in plan.trials}


def settle_one(plan: Plan, trial: Trial) -> Settled:
    """What one trial's flags come to. Raises ``UserError`` when it cannot be trained."""
    try:
        found = _settle(trial)
        if found.config.device == "cuda" and not plan.gpus:
            raise UserError("device is cuda, but the file gives each trial no GPU: add gpus = 1, or a share of one.")
    except UserError as error:
        raise UserError(f"the sweep's file {plan.file}, trial {trial.name}: {error}") from error
    return found


def _settle(trial: Trial) -> Settled:
    system = find_system(trial.system)
    parsed = parse_training(trial.system, trial.flags())
    config, learner, budgets = fresh_run(parsed, system)
    compiles(config, system.learner_class(), learner, config.resolve_device())
    return Settled(config, learner, budgets)


def require_agreement(trial: Trial, settled: Settled) -> None:
    """Raises ``UserError`` when the folder holds a run that was started with other settings."""
    saved = run.read(trial.folder)
    config = as_kept(replace(settled.config, out=trial.folder), settled.config.setup(), saved)
    system = trial.system.rpartition(":")[2]
    now = run.describe(system, config, settled.learner, run.shape_of(saved), settled.budgets, saved["resolved"])
    run.require_same(saved, now, trial.folder)
