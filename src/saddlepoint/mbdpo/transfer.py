"""A model of several tasks as one of a single task, and a learner that starts from a stored one.

With the task fixed, its embedding e only adds the constant W_e e to the first pre-activation of every network, and padded observations and actions are zeros.
So the single-task model with biases b + W_e e and without the padding's columns is the same function, and an ordinary agent from then on: it acts, trains,
resumes and is saved like any other, with the environment's own sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import MBDPOConfig, heuristic_discount
from saddlepoint.mbdpo.tasks import Task, chosen_task
from saddlepoint.mbdpo.world_model import WorldModel
from saddlepoint.nn.normed import NormedMLP
from saddlepoint.options import flag
from saddlepoint.types import EnvShape, UserError

SIZES = ("horizon", "encoder_layers", "encoder_width", "encoder_channels", "width", "latent", "simplex", "critics", "bins", "bin_limit", "time_embedding")
"""options that the stored weights are bound to"""
EMBEDDING_EPS = 1e-7  # torch's, where it rescales an embedding that is too long


def task_config(config: MBDPOConfig, task: Task) -> MBDPOConfig:
    """The config of a single-task agent that goes on from one of several tasks: with that task's discount."""
    return replace(config, gamma=heuristic_discount(task.episode_length), leak_task_gradient=False)


def specialise(source: MBDPO, number: int, task: Task, seed: int = 0, device: torch.device | str = "cpu") -> MBDPO:
    """The agent of ``task`` alone, whose number in ``source`` is ``number``; ``source`` is not touched. On a CPU it is compiled where that is: elsewhere each
    new agent would take a minute or two to compile."""
    compiled = source.compiled and torch.device(device).type == "cpu"
    agent = MBDPO(task_config(source.config, task), task.shape, (), seed, device, compile=compiled)
    adopt(agent, source, number)
    return agent


@dataclass(frozen=True)
class Pretrained:
    """Makes learners that start from ``source``'s weights: to be given to ``train`` in place of ``MBDPO``. A run that is resumed needs it no more."""

    source: MBDPO
    number: int | None
    """number of the task that is gone on with; None where ``source`` knows a single one"""
    system: ClassVar[str] = MBDPO.system
    needs_cost: ClassVar[bool] = MBDPO.needs_cost
    sees_pixels: ClassVar[bool] = MBDPO.sees_pixels
    gains_by_compiling = staticmethod(MBDPO.gains_by_compiling)

    def __call__(
        self, config: MBDPOConfig, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int, device: torch.device, *, compile: bool
    ) -> MBDPO:
        """A fresh learner, its optimisers over all its parameters, with the stored weights. Raises ``UserError`` where they do not fit."""
        _require_kind(self.source.shape, shape)  # first, for options of pictures would be refused without any
        agent = MBDPO(config, shape, budgets, seed, device, compile=compile)
        adopt(agent, self.source, self.number)
        return agent


def choose_task(
    source: MBDPO, content: dict[str, Any], name: str | None, run: Path, device: torch.device | str
) -> tuple[MBDPO, str, EnvShape] | None:
    """The agent of one of a stored run's tasks, its environment and shape; None where the run has a single one. Raises ``UserError``."""
    if "tasks" not in content:
        return None
    number, task = chosen_task(content, name, run)
    return specialise(source, number, task, device=device), task.env, task.shape


def start_from_stored(source: MBDPO, content: dict[str, Any], name: str | None, run: Path) -> tuple[Pretrained, MBDPOConfig]:
    """What makes learners that start from a stored run, of its task called ``name`` where it has several, and the config that they begin with.

    Raises ``UserError``.
    """
    if "tasks" not in content:
        if name is not None:
            raise UserError(f"{run} was trained on {content['train']['env']} alone: leave out --start-task.")
        return Pretrained(source, None), source.config
    number, task = chosen_task(content, name, run, "--start-task")
    return Pretrained(source, number), task_config(source.config, task)


@torch.no_grad()
def adopt(target: MBDPO, source: MBDPO, number: int | None) -> None:
    """Give the single-task ``target`` the weights, target critics and running statistics of ``source``, as of its task ``number`` (None: it has one only).

    Networks of costs, and lambda unless the two configs begin with different ones, go over where both have as many constraints and members, and are left
    as they are elsewhere (several tasks have none).
    Raises ``UserError`` where sizes do not fit.
    """
    _require_kind(source.shape, target.shape)
    _require_fit(target, source, number)
    _adopt_weights(target, source, target.model, source.model, number)
    if target.average is not None:
        target.average.restart()
        if source.average is not None:
            _adopt_weights(target, source, target.average.model, source.average.model, number)
    if target.config.episodic == "auto":
        target.episodic = source.episodic
    asked_for = target.config.multiplier != source.config.multiplier
    ours, theirs = target.control.state_dict(), source.control.state_dict()
    if _same_costs(target, source) and ours.keys() == theirs.keys() and not asked_for:
        target.control.load(theirs)
    target.refresh()


def _same_costs(target: MBDPO, source: MBDPO) -> bool:
    constraints = target.model.constraints
    return 0 < constraints == source.model.constraints and target.config.cost_members == source.config.cost_members


def _adopt_weights(target: MBDPO, source: MBDPO, ours: WorldModel, theirs: WorldModel, number: int | None) -> None:
    """One world model of ``target``'s from one of ``source``'s: that which learns, or its average, which has no target critics."""
    embedding = None if number is None else _embedding(theirs.task_table[number])
    horizon, few, many = target.config.horizon, ours.action, theirs.action
    action = torch.arange(few)
    plan = (torch.arange(horizon)[:, None] * many + action).flatten()  # of (horizon, action), flattened
    step = (None, action)
    if isinstance(ours.encoder, NormedMLP) and isinstance(theirs.encoder, NormedMLP):
        _copy(ours.encoder, theirs.encoder, (torch.arange(target.shape.observation),), None, embedding)
    else:  # pictures are of one size, and of one task
        ours.encoder.load_state_dict(theirs.encoder.state_dict())
    for ends, pairs in (
        ((None,), [(ours.termination_head, theirs.termination_head)]),
        (step, [(ours.dynamics, theirs.dynamics), (ours.reward_head, theirs.reward_head), (ours.energy_head, theirs.energy_head)]),
        (step, [(ours.critics, theirs.critics)]),
    ):
        for mine, other in pairs:
            _copy(mine, other, ends, None, embedding)
    costs = ("cost_head", "cost_critics", "target_cost_critics") if _same_costs(target, source) else ()
    for name in ("target_critics", *costs):
        if hasattr(ours, name):
            _copy(getattr(ours, name), getattr(theirs, name), step, None, embedding)
    _copy(ours.policy_head, theirs.policy_head, (None,), torch.cat([action, many + action]), embedding)  # mean, then log std
    _copy(ours.score_head, theirs.score_head, (None, plan, None), plan, embedding)
    for name in ("energy_mean", "energy_std", "value_scale"):
        getattr(ours, name).copy_(getattr(theirs, name))
    ours.changed()


def _copy(ours: NormedMLP, theirs: NormedMLP, columns: Sequence[Tensor | None], rows: Tensor | None, embedding: Tensor | None) -> None:
    """One network: the ``columns`` of each input part and the ``rows`` of the output that are kept (None: all); the task's part goes into the bias."""
    first, biases, weights = list(theirs.first), [bias.data for bias in theirs.biases], [weight.data for weight in theirs.weights]
    if embedding is not None:
        biases[0] = biases[0] + first.pop(1) @ embedding
    if rows is not None:
        biases[-1], weights[-1] = biases[-1][..., rows], weights[-1][..., rows, :]
    for mine, part, kept in zip(ours.first, first, columns, strict=True):
        mine.copy_(part if kept is None else part[..., kept])
    for own, other in ((ours.biases, biases), (ours.weights, weights), (ours.gains, theirs.gains), (ours.shifts, theirs.shifts)):
        for mine, value in zip(own, other, strict=True):
            mine.copy_(value)


def _embedding(row: Tensor) -> Tensor:
    """A row of the table, as the model reads it: rescaled to length 1 where it is longer. The table itself is left alone."""
    length = row.norm()
    return row / (length + EMBEDDING_EPS) if length > 1 else row


def _require_kind(source: EnvShape, target: EnvShape) -> None:
    if source.image != target.image:
        read, given = ("vectors" if shape.image is None else "pictures" for shape in (source, target))
        raise UserError(f"the stored weights read {read} and this environment's observations are {given}: start from a run that fits it.")


def _require_fit(target: MBDPO, source: MBDPO, number: int | None) -> None:
    for name in SIZES:
        before, now = getattr(source.config, name), getattr(target.config, name)
        if before != now:
            raise UserError(f"the stored weights were trained with {flag(name)} {before}, not {now}: leave that flag out.")
    for what, before, now in (
        ("observation entries", source.shape.observation, target.shape.observation),
        ("actions", source.shape.action, target.shape.action),
    ):
        if now > before or (number is None and now != before):
            raise UserError(f"the stored weights are for {before} {what} and this environment has {now}: start from a run that fits it.")
