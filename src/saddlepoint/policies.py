"""The policy of a run, to act with: from its newest checkpoint, another one, or the best within the budget."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.faults import explain
from saddlepoint.nn.normaliser import NormalisedLearner, normalised
from saddlepoint.options import number, restore, shown, truth_value, whole_number
from saddlepoint.systems import find, find_system
from saddlepoint.train import best, run
from saddlepoint.train import checkpoint as checkpoints
from saddlepoint.train.acting import Actor
from saddlepoint.train.at_budget import at_budget, plain_shape
from saddlepoint.train.contract import LearnerFactory, acting_fields, checked, refuse_acting
from saddlepoint.types import ActMode, EnvSetup, EnvShape, Policy, UserError
from saddlepoint.usual import usual_torch


@dataclass(frozen=True)
class TrainedPolicy:
    """A learner from a run's checkpoint, with what it was trained for."""

    takes_arrays: ClassVar[bool] = True
    learner: Policy
    """what acts: the learner, or for a run with --budget-range the learner at one budget"""
    env: str
    shape: EnvShape
    budgets: tuple[CostBudget, ...]
    step: int
    """environment steps that it was trained for"""
    seed: int
    """seed of its run"""
    device: torch.device
    note: str | None
    """one sentence when newer checkpoints were damaged"""
    setup: EnvSetup
    """how the environments that it was trained in are made: arguments, flattening, ``action_repeat``"""
    budget_range: tuple[float, float] | None = None
    """budgets that it can be turned to, by ``load_policy(run, budget=...)``; None for a policy of one budget"""
    _actors: dict[int, Actor] = field(default_factory=dict, init=False, repr=False)
    """the actor at work, by the number of environments that it acts for"""
    _generators: list[torch.Generator] = field(default_factory=list, init=False, repr=False)
    """the run's own, once it has been needed"""

    _unpaid: set[int] = field(default_factory=set, init=False, repr=False)
    """numbers of environments whose last step's cost is not told yet, for a policy that acts by it"""

    _given: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)
    """the action given last, by the number of environments"""

    def act(
        self, observation: np.ndarray, mode: ActMode | None = None, generator: torch.Generator | None = None, *,
        deterministic: bool | None = None, on_nan: Literal["raise", "hold"] = "raise",
    ) -> np.ndarray:  # fmt: skip
        """(observation,) -> (action,), or (envs, observation) -> (envs, action), in the environment's own units and
        number type, and inside its bounds. An action is meant for ``setup.action_repeat`` simulator steps.

        ``mode`` is "deterministic", the noise-free action and the default, "stochastic", a sample of the policy, or "explore", the policy of training;
        ``deterministic`` True or False says the first or the second as well. Draws are from ``generator``, or from one of the policy's own, of the
        run's seed, which ``reset`` of all episodes sets back. What it carries on, MBDPO's plan or the noise of ALGD's
        samples, is of one episode: call ``reset`` when another begins.

        A policy with a shield (MBDPO's ``shield``) acts by what the episode has cost: call ``pay`` after each step.

        For an observation that is not finite it raises ``UserError``; with ``on_nan="hold"`` it gives the last action of that environment once
        more, and raises where there was none.

        Raises ``UserError`` for an observation of another size, for another mode, and for two that contradict each other.
        """
        if not (isinstance(on_nan, str) and on_nan in ("raise", "hold")):
            raise UserError(f"on_nan must be 'raise' or 'hold', not {on_nan!r:.60}.")
        mode = _mode(mode, deterministic)
        observation = _numbers(observation, self.env)
        if np.ndim(observation) not in (1, 2) or np.shape(observation)[-1] != self.shape.observation:
            raise UserError(
                f"a policy of {self.env} takes an observation of shape ({self.shape.observation},), or (envs, {self.shape.observation}),"
                f" not {np.shape(observation)}: give it those of that environment."
            )
        if generator is None:
            if not self._generators:
                self._generators.append(torch.Generator(device=self.device).manual_seed(self.seed))
            generator = self._generators[0]
        if not isinstance(generator, torch.Generator):
            raise UserError(f"a policy draws from a torch.Generator, not {generator!r:.60}: give torch.Generator().manual_seed(0), for example.")
        batch = np.atleast_2d(observation)
        if len(batch) not in self._actors:
            self._actors.clear()
            self._actors[len(batch)] = Actor(self.learner, len(batch), self.device)
        actor = self._actors[len(batch)]
        if len(batch) in self._unpaid:
            raise UserError("this policy's shield has not been told what the last step cost: call pay(info['cost']) after each step, or reset().")
        blind = ~np.isfinite(batch).all(axis=1)
        if blind.any():
            batch, memory = self._without(batch, blind, on_nan), actor.memory
        action = self.shape.fit(actor.act(batch, mode, generator))
        if blind.any():
            action[blind] = self._given[len(batch)][blind]
            actor.memory = torch.where(torch.as_tensor(blind, device=self.device)[:, None], memory, actor.memory)
        self._given.clear()
        self._given[len(batch)] = action.copy()
        if actor.counts_cost:
            self._unpaid.add(len(batch))
        return action if np.ndim(observation) == 2 else action[0]

    def _without(self, batch: np.ndarray, blind: np.ndarray, on_nan: str) -> np.ndarray:
        """Observations with zeros for the rows that are ``blind``, (envs,) bool, whose actions are held."""
        if on_nan == "hold" and len(batch) in self._given:
            return np.where(blind[:, None], np.zeros_like(batch), batch)
        entry = int(np.argmax(~np.isfinite(batch[blind][0])))
        advice = 'correct it, or give on_nan="hold" to repeat the last action'
        after = "there is no action yet to hold" if on_nan == "hold" else advice
        raise UserError(
            f"an observation for the policy of {self.env} is not finite (entry {entry} is {batch[blind][0][entry]}):"
            f" {after}."
        )

    def predict(
        self, observation: np.ndarray, state: None = None, episode_start: np.ndarray | None = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """``act``, as Stable-Baselines3 calls it: (action, None). The plans of environments whose episode begins (``episode_start``, (envs,) bool) are
        forgotten first. Raises ``UserError`` as ``act`` and ``reset`` do."""
        if episode_start is not None:
            observation = _numbers(observation, self.env)
            started = _truths("episode_start says", "begin", episode_start, len(observation) if np.ndim(observation) == 2 else 1)
            if len(started) not in self._actors:  # another number of environments than before
                self._actors.clear()
            self.reset(started)
        return self.act(observation, deterministic=deterministic), None

    def pay(self, cost: float | np.ndarray) -> None:
        """Tell a policy with a shield what the step just made cost: a number or (constraints,) for one environment, (envs,) or (envs, constraints) for several.
        Nothing to do for other policies. Raises ``UserError`` for another size, and for a cost that is not finite."""
        constraints = len(self.budgets)
        for slots, actor in self._actors.items():
            if not actor.counts_cost:
                continue
            try:
                told = np.asarray(cost, np.float64)
            except (TypeError, ValueError):
                told = np.full(1, np.nan)
            if told.size != slots * constraints or not np.isfinite(told).all():
                raise UserError(f"pay takes {slots * constraints} finite cost(s) of the last step, not {cost!r:.60}: one of each environment and constraint.")
            actor.pay(told.reshape(slots, constraints))
            self._unpaid.discard(slots)

    def reset(self, ended: np.ndarray | None = None) -> None:
        """Begin new episodes where ``ended``, (envs,) bool, everywhere when None: forget their plans, the noise that samples carry on and the last actions."""
        if ended is not None:
            ended = _truths("reset takes", "ended", ended, *self._actors)
        if ended is None:
            self._generators.clear()
            self._given.clear()
        if ended is None or np.all(ended):
            self._unpaid.clear()
        for actor in self._actors.values():
            actor.restart(ended)


def _truths(where: str, what: str, value: Any, *sizes: int) -> np.ndarray:
    """``value`` as (envs,) bool, of each of the ``sizes``. Raises ``UserError``."""
    try:
        found = np.atleast_1d(np.asarray(value))
    except ValueError:  # lists of several lengths
        found = np.zeros(0)
    if found.dtype != bool or found.ndim != 1 or any(len(found) != size for size in sizes):
        raise UserError(f"{where} which episodes {what}, a truth value for each environment, not {value!r:.60}.")
    return found


def _numbers(observation: Any, env: str) -> np.ndarray:
    """An observation as an array of numbers, NaN where it is masked. Raises ``UserError`` where it is none."""
    if isinstance(observation, Mapping):
        how = "gymnasium.spaces.flatten(env.observation_space, observation)"
        raise UserError(f"a policy of {env} takes one vector, not a Dict: give {how}, as --flatten did in training.")
    if isinstance(observation, np.ma.MaskedArray) and observation.dtype.kind in "biuf":
        observation = np.where(np.ma.getmaskarray(observation), np.nan, observation.data)
    try:
        if isinstance(observation, torch.Tensor):
            observation = observation.detach().cpu()
            observation = observation.float() if observation.is_floating_point() else observation  # NumPy knows no bfloat16
        found = np.asarray(observation)
    except Exception as error:  # whatever an object's own conversion raises
        raise UserError(f"a policy of {env} takes an observation of numbers, not {observation!r:.60}.") from error
    if found.dtype.kind not in "biuf":
        raise UserError(f"a policy of {env} takes an observation of numbers, not {observation!r:.60}.")
    with np.errstate(over="ignore"):  # what is too large is not finite
        return found.astype(np.float32)


def _device(device: Any) -> torch.device:
    """Raises ``UserError`` for what is no device here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(f"a policy cannot act on the device {device!r:.40}: give 'cpu', or 'cuda' where there is one.") from error
    return found


def _mode(mode: ActMode | None, deterministic: bool | None) -> ActMode:
    """What is asked for: by name, or by whether there is to be noise. Raises ``UserError``."""
    if mode is not None and not (isinstance(mode, str) and mode in get_args(ActMode)):
        raise UserError(f"a policy cannot act in mode {mode!r:.60}: use one of {', '.join(get_args(ActMode))}.")
    if deterministic is None:
        return mode or "deterministic"
    deterministic = truth_value("deterministic", deterministic)
    if mode is not None and (mode == "deterministic") is not deterministic:
        raise UserError(f"mode={mode!r} and deterministic={deterministic} contradict each other: give one of them.")
    return mode or ("deterministic" if deterministic else "stochastic")


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
