"""A trained policy as its users hold it: it acts for one environment or for many, and says what it was trained for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.options import truth_value
from saddlepoint.train.acting import Actor
from saddlepoint.types import ActMode, EnvSetup, EnvShape, Policy, UserError


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
