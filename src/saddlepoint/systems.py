"""The systems that can be trained, and how a trained one is taken up again. A new system joins by one entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.train import checkpoint, run
from saddlepoint.train.acting import Actor
from saddlepoint.train.config import flag
from saddlepoint.types import ActMode, EnvSetup, EnvShape, Learner, UserError

if TYPE_CHECKING:  # a policy acts without the training loop and the environments
    from saddlepoint.nn.exportable import Exportable, ExportMode
    from saddlepoint.train.start import LearnerFactory


@dataclass(frozen=True)
class System:
    """Where the parts of a system are, as ``module:name`` within the package; they are imported when they are needed."""

    learner: str
    """the learner's class, whose ``system`` is the key in ``SYSTEMS``"""
    config: str
    """its frozen config"""
    preset_table: str
    """a dict of named configs, ``default`` among them"""
    export: str | None = None
    """its function from a learner and a mode to an ``Exportable``; None where there is none"""
    pretrained: str | None = None
    """its class of factories whose learners start from stored weights; None where there is none"""

    def learner_class(self) -> LearnerFactory[Any]:
        return _find(self.learner)

    def config_class(self) -> type[Any]:
        return _find(self.config)

    def presets(self) -> dict[str, Any]:
        return _find(self.preset_table)

    @property
    def exporter(self) -> Callable[[Any, ExportMode], Exportable] | None:
        return None if self.export is None else _find(self.export)


def _find(place: str) -> Any:
    module, name = place.split(":")
    return vars(import_module(f"saddlepoint.{module}"))[name]


SYSTEMS: dict[str, System] = {
    "algd": System("algd.agent:ALGD", "algd.config:ALGDConfig", "algd.config:PRESETS", "algd.export:export_module"),
    "sac": System("baselines.sac:SAC", "baselines.config:SACConfig", "baselines.config:SAC_PRESETS", "baselines.export:export_module"),
    "sac-lag": System("baselines.constrained:SACLag", "baselines.config:SACLagConfig", "baselines.config:SAC_LAG_PRESETS", "baselines.export:export_module"),
    "sac-pid": System("baselines.constrained:SACPID", "baselines.config:SACPIDConfig", "baselines.config:SAC_PID_PRESETS", "baselines.export:export_module"),
    "cal": System("baselines.constrained:CAL", "baselines.config:CALConfig", "baselines.config:CAL_PRESETS", "baselines.export:export_module"),
    "mbdpo": System("mbdpo.agent:MBDPO", "mbdpo.config:MBDPOConfig", "mbdpo.config:PRESETS", pretrained="mbdpo.transfer:Pretrained"),
}


def _acting(config: Any, changes: Mapping[str, Any], system: str) -> Any:
    """``config`` with other settings of acting. Raises ``UserError``."""
    if not changes:
        return config
    hints = get_type_hints(type(config))
    for name, value in changes.items():
        if name not in config.ACTING:
            known = f"take one of {', '.join(sorted(config.ACTING))}" if config.ACTING else "it has none"
            raise UserError(f"{name} is no setting of acting of {system}: {known}.")
        if not _fits(value, hints[name]):
            raise UserError(f"{flag(name)} cannot be {value!r}: see `saddlepoint train {system} --help`.")
    changed = replace(config, **changes)
    changed.validate()
    changed.refuse_acting(config, changes)
    return changed


def restore_config(kind: type[Any], values: dict[str, Any], where: Path) -> Any:
    """A frozen config from what config.json holds; options that are newer than the file take their default, which does for acting.

    A run is only resumed with all of them (``run.require_same``). Raises ``UserError`` for fields that this version has not, and for values of another type.
    """
    if unknown := set(values) - {field.name for field in fields(kind)}:
        odd = ", ".join(sorted(unknown))
        raise UserError(f"{where} was written by another version of saddlepoint (fields {odd}): use that version.")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise UserError(f"{where} is damaged ({flag(name)} cannot be {value!r}): restore it, or use the version of saddlepoint that wrote it.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON, where a tuple is a list and a path a string, is of a config's type ``hint``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is tuple:  # of any length, as in all configs
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    kinds = {float: (float, int), Path: (str,), NoneType: (NoneType,)}.get(hint, (hint,))
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))


@dataclass(frozen=True)
class TrainedPolicy:
    """A learner from a run's checkpoint, with what it was trained for."""

    learner: Learner
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
    _actors: dict[int, Actor] = field(default_factory=dict, init=False, repr=False)
    """the actor at work, by the number of environments that it acts for"""
    _generators: list[torch.Generator] = field(default_factory=list, init=False, repr=False)
    """the run's own, once it has been needed"""

    def act(
        self, observation: np.ndarray, mode: ActMode = "deterministic", generator: torch.Generator | None = None
    ) -> np.ndarray:
        """(observation,) -> (action,), or (envs, observation) -> (envs, action), in the environment's own units and
        number type, and inside its bounds. An action is meant for ``setup.action_repeat`` simulator steps.

        A policy that plans goes on from its last plan, call ``reset`` when an episode begins, and draws from ``generator`` in every mode; others do in
        ``stochastic`` and ``explore`` only. These two need one: ``UserError`` without, and for an observation of another size. In ``deterministic`` the
        policy has a generator of its own, of the run's seed, which ``reset`` of all episodes sets back.
        """
        if np.ndim(observation) not in (1, 2) or np.shape(observation)[-1] != self.shape.observation:
            raise UserError(
                f"a policy of {self.env} takes an observation of shape ({self.shape.observation},), or (envs, {self.shape.observation}),"
                f" not {np.shape(observation)}: give it those of that environment."
            )
        if generator is None:
            if mode != "deterministic":
                raise UserError(f"a policy needs a torch.Generator to act in mode {mode!r}: give one as generator=.")
            if not self._generators:
                self._generators.append(torch.Generator(device=self.device).manual_seed(self.seed))
            generator = self._generators[0]
        batch = np.atleast_2d(observation)
        if len(batch) not in self._actors:
            self._actors.clear()
            self._actors[len(batch)] = Actor(self.learner, len(batch), self.device)
        action = self.shape.fit(self._actors[len(batch)].act(batch, mode, generator))
        return action if np.ndim(observation) == 2 else action[0]

    def reset(self, ended: np.ndarray | None = None) -> None:
        """Forget the plans of the episodes that ``ended``, (envs,) bool; all of them when None. Nothing to do for a policy that plans nothing."""
        if ended is None:
            self._generators.clear()
        for actor in self._actors.values():
            actor.restart(ended)


def load_policy(
    folder: str | Path, device: str | torch.device = "cpu", task: str | None = None, acting: Mapping[str, Any] = MappingProxyType({}),
    *, compile: bool = False,
) -> TrainedPolicy:  # fmt: skip
    """The policy of a run's newest checkpoint whose learner is whole. Raises ``UserError`` when there is none.

    ``acting`` changes settings of acting alone (``ACTING`` of the system's config), such as ``{"evaluation": "best_of_n"}`` for ALGD, or
    ``{"planner": "score"}`` for MBDPO. Raises ``UserError`` for others.

    ``compile`` on a CPU has a run that was compiled act so again: in C++, which is built once in some ten seconds and may round otherwise.

    A run of `saddlepoint pretrain` has a policy for each ``task``, by its name or environment. The replay is not read, so it may be damaged or missing;
    neither are the environments nor the training loop imported.
    """
    folder = Path(folder)
    learner, content, step, note = load_learner(folder, device, acting, compile=compile)
    train, budgets = content["train"], run.budgets_of(content)
    if "tasks" not in content:
        if task is not None:
            raise UserError(f"{folder} was trained on {train['env']} alone: leave out --task.")
        setup = run.setup_of(content)
        return TrainedPolicy(learner, train["env"], run.shape_of(content), budgets, step, train["seed"], torch.device(device), note, setup)
    from saddlepoint.mbdpo.tasks import chosen_task
    from saddlepoint.mbdpo.transfer import specialise

    number, chosen = chosen_task(content, task, folder)
    learner = specialise(learner, number, chosen, device=device)
    return TrainedPolicy(learner, chosen.env, chosen.shape, budgets, step, train["seed"], torch.device(device), note, EnvSetup(chosen.env))


def start_from(folder: Path, task: str | None) -> tuple[LearnerFactory[Any], Any, str | None]:
    """What makes learners that start from a run's weights, of its ``task`` where it has several, the config that they have to begin with, and a sentence
    about newer, damaged checkpoints.

    Raises ``UserError`` where the run's system has no such learners, or no such task.
    """
    learner, content, _, note = load_learner(folder, "cpu")
    place = SYSTEMS[content["system"]].pretrained
    if place is None:
        raise UserError(f"--start-from {folder} is a run of {content['system']}, which cannot start from stored weights: leave it out.")
    if "tasks" not in content:
        if task is not None:
            raise UserError(f"{folder} was trained on {content['train']['env']} alone: leave out --start-task.")
        return _find(place)(learner, None), learner.config, note
    from saddlepoint.mbdpo.tasks import chosen_task
    from saddlepoint.mbdpo.transfer import task_config

    number, chosen = chosen_task(content, task, folder, "--start-task")
    return _find(place)(learner, number), task_config(learner.config, chosen), note


def load_learner(
    folder: Path, device: str | torch.device, acting: Mapping[str, Any] = MappingProxyType({}), *, compile: bool = False
) -> tuple[Any, dict[str, Any], int, str | None]:
    """The learner of a run's newest checkpoint whose learner is whole, the run's config.json, its steps, and a sentence about newer, damaged ones.

    That of a run of `saddlepoint pretrain` knows several tasks. ``acting`` and ``compile`` as in ``load_policy``. Raises ``UserError`` when there is none.
    """
    content = run.read(folder)
    if content["system"] not in SYSTEMS:
        raise UserError(f"{folder} was trained with {content['system']}, which this version of saddlepoint has not.")
    system = SYSTEMS[content["system"]]
    config = _acting(restore_config(system.config_class(), content["learner"], folder / "config.json"), acting, content["system"])
    shape, budgets = run.shape_of(content), run.budgets_of(content)
    path, note = checkpoint.latest(folder, checkpoint.LEARNER)
    several: dict[str, Any] = {}
    if "tasks" in content:
        from saddlepoint.mbdpo.tasks import model_tasks, stored_tasks

        several["tasks"] = model_tasks(stored_tasks(content))
    compiled = compile and torch.device(device).type == "cpu" and content.get("resolved", {}).get("compiled", False)
    learner = system.learner_class()(config, shape, budgets, 0, torch.device(device), compile=compiled, **several)
    learner.load_state_dict(checkpoint.load_learner(path))
    return learner, content, int(path.name), note
