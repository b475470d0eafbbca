"""The systems that can be trained, how others join them, and how a trained one is taken up again."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from saddlepoint.faults import describe
from saddlepoint.foreign import blame
from saddlepoint.options import require_config
from saddlepoint.train import run
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.contract import LearnerFactory, checked_for
from saddlepoint.types import UserError

if TYPE_CHECKING:
    from saddlepoint.nn.exportable import Exportable, ExportMode

Place: TypeAlias = str
"""``module:name``; what is there is imported when it is needed. A module that begins with a dot is one of this package.
"""


@dataclass(frozen=True)
class Verbs:
    """What the verbs of the command line do with a system: each is a function, or where it is; None stands for what
    they do with a policy in environments."""

    train: Place | Callable[[list[str]], None] | None = None
    """`train SYSTEM ...`: takes the arguments after the name"""
    evaluate: Place | Callable[[str, list[str]], None] | None = None
    """`evaluate RUN ...`: takes the run folder and the other arguments"""
    export: Place | Callable[[list[str]], None] | None = None
    """`export RUN OUT ...`: takes all arguments"""
    recognises: Place | Callable[[str, list[str]], bool] | None = None
    """whether `evaluate SOURCE ...` of what is no run folder is this system's to answer; None: never"""


@dataclass(frozen=True)
class System:
    """The parts of a system that learns in environments: each is the thing itself, or where it is."""

    learner: Place | LearnerFactory[Any]
    """the learner's class, whose ``system`` is the key in ``SYSTEMS``"""
    config: Place | type[Any]
    """its frozen config"""
    preset_table: Place | Mapping[str, Any] | None = None
    """named configs, ``default`` among them; None: the config's defaults are the only one"""
    export: Place | Callable[[Any, ExportMode], Exportable | nn.Module] | None = None
    """from a learner and a mode to an ``Exportable``, or to a module from observations to actions; None where there is
    none"""
    pretrained: Place | Callable[..., Any] | None = None
    """from a stored learner, its run's config.json, a task's name and the run folder to what makes learners that start
    from its weights, and the config that they begin with; None where there is none"""
    options: Place | Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """from a run's config.json to further arguments of the learner's class; None for no further ones"""
    chooser: Place | Callable[..., Any] | None = None
    """from a stored learner, its run's config.json, a task's name, the run folder and the device to the policy of that
    task, its environment and shape, or to None where the run has one task only; None where that is always so"""
    verbs: Verbs = Verbs()
    preset_runs: Place | Mapping[str, Mapping[str, Any]] | None = None
    """settings of the run's warm-up (fields of ``TrainConfig``) that go with a preset where they are not given; None: none do"""

    def learner_class(self) -> LearnerFactory[Any]:
        return find(self.learner)

    def config_class(self) -> type[Any]:
        return find(self.config)

    def presets(self) -> Mapping[str, Any]:
        return {"default": self.config_class()()} if self.preset_table is None else find(self.preset_table)

    def preset_run(self, preset: str, config: TrainConfig) -> Mapping[str, Any]:
        """Settings of a run's warm-up that go with ``preset``, where ``config`` has a warm-up."""
        return {} if self.preset_runs is None or not config.warmup else find(self.preset_runs).get(preset, {})

    @property
    def exporter(self) -> Callable[[Any, ExportMode], Exportable | nn.Module] | None:
        return None if self.export is None else find(self.export)


def find(place: Any) -> Any:
    """What is at a ``Place``; what is none is returned as it is."""
    if not isinstance(place, str):
        return place
    module, name = place.split(":")
    return vars(import_module(module, __package__))[name]


_BASELINES = ".baselines.export:export_module"
SYSTEMS: dict[str, System] = {
    "algd": System(".algd.agent:ALGD", ".algd.config:ALGDConfig", ".algd.config:PRESETS", ".algd.export:export_module"),
    "sac": System(".baselines.sac:SAC", ".baselines.config:SACConfig", ".baselines.config:SAC_PRESETS", _BASELINES),
    "sac-lag": System(".baselines.constrained:SACLag", ".baselines.config:SACLagConfig", ".baselines.config:SAC_LAG_PRESETS", _BASELINES),
    "sac-pid": System(".baselines.constrained:SACPID", ".baselines.config:SACPIDConfig", ".baselines.config:SAC_PID_PRESETS", _BASELINES),
    "cal": System(".baselines.constrained:CAL", ".baselines.config:CALConfig", ".baselines.config:CAL_PRESETS", _BASELINES),
    "mbdpo": System(
        ".mbdpo.agent:MBDPO", ".mbdpo.config:MBDPOConfig", ".mbdpo.config:PRESETS", pretrained=".mbdpo.transfer:start_from_stored",
        options=".mbdpo.tasks:learner_options", chooser=".mbdpo.transfer:choose_task", preset_runs=".mbdpo.config:PRESET_RUNS",
    ),
}  # fmt: skip
"""those that learn in environments; ``register_system`` and ``find_system`` add others"""
WITHOUT_ENVIRONMENT: dict[str, Verbs] = {
    "safediffusion": Verbs(
        ".safediffusion.command:train_command", ".safediffusion.evaluate:evaluate_command", ".safediffusion.export:export_command",
        ".safediffusion.evaluate:recognises",
    ),
}  # fmt: skip
"""those that learn from something else"""
BUILT_IN = frozenset(SYSTEMS) | frozenset(WITHOUT_ENVIRONMENT)
GROUP = "saddlepoint.systems"
"""entry points of installed packages: each is a ``System``, or a module or function that calls ``register_system``"""


def register_system(
    name: str, learner: LearnerFactory[Any], config: type[Any], presets: Mapping[str, Any] | None = None,
    export: Callable[[Any, ExportMode], Exportable | nn.Module] | None = None, *, pretrained: Callable[..., Any] | None = None,
    verbs: Verbs | None = None,
) -> System:  # fmt: skip
    """Make a system known under ``name``: it then trains, resumes, evaluates, exports, sweeps and is reported like
    those of this package.

    ``learner`` is a class with ``system`` (``name`` again), ``needs_cost``, a constructor as ``LearnerFactory`` and the
    methods of ``Learner``; ``config`` a frozen dataclass with a default for every field (``saddlepoint.train.contract``
    lists what else it may offer); ``presets`` named configs, to which ``default`` is added. ``export`` takes a learner
    and "deterministic" or "stochastic", and returns an ``nn.Module`` from observations (batch, observation) to actions
    (batch, action), or an ``Exportable`` where it needs noise.

    The command line finds a system by its module: `saddlepoint train MODULE:NAME ...`, or `--import MODULE` with any
    verb, from the working directory or an installed package. A package can name its systems in the entry-point group
    ``saddlepoint.systems`` instead; then NAME is enough. A run remembers the module. Raises ``UserError``.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"a system cannot be called {name!r}: use letters, digits, '-', '_' and '.'.")
    if name in BUILT_IN:
        raise UserError(f"there is a system {name!r} in saddlepoint already: give yours another name.")
    for needed, example in (("system", repr(name)), ("needs_cost", "True")):
        if not hasattr(learner, needed):
            raise UserError(f"the learner of {name!r} has no {needed!r}: give its class {needed} = {example}.")
    if learner.system != name:
        raise UserError(f"the learner of {name!r} calls itself {learner.system!r}: give its class system = {name!r}.")
    try:
        default = config()
    except TypeError as error:
        raise UserError(
            f"the config of {name!r} cannot be made without arguments ({error}): give every field a default."
        ) from error
    require_config(default)
    if not isinstance(presets, Mapping | None):
        raise UserError(f"the presets of {name!r} are named: give a dict, not {type(presets).__name__}.")
    known = {"default": default, **(presets or {})}
    for preset in known.values():
        if type(preset) is not config:
            raise UserError(f"the presets of {name!r} must be of class {config.__name__}, not {type(preset).__name__}.")
        checked_for(learner, preset)
    SYSTEMS[name] = System(learner, config, known, export, pretrained, verbs=verbs or Verbs())
    return SYSTEMS[name]


def find_system(name: str, module: str | None = None, run_folder: Path | None = None) -> System:
    """The system called ``name``, or ``MODULE:NAME``, imported or loaded from an installed package where it is not
    known yet.

    ``module`` is the one that config.json of ``run_folder`` names; a module that lies in that folder is refused, since
    folders may come from anywhere. Raises ``UserError``.
    """
    if ":" in name:
        module, _, name = name.partition(":")
    if name not in SYSTEMS and name not in WITHOUT_ENVIRONMENT:
        _load_entry_point(name)
    if name not in SYSTEMS and name not in WITHOUT_ENVIRONMENT and module is not None:
        import_user_module(module, run_folder)
    if name in SYSTEMS:
        return SYSTEMS[name]
    if name in WITHOUT_ENVIRONMENT:
        raise UserError(f"{name} does not learn in an environment, so it has no policy.")
    where = f", and the module {module} registers none of that name" if module else ""
    of = f"{run_folder} was trained with {name}; " if run_folder else ""
    raise UserError(
        f"{of}there is no system {name!r}{where}: use one of {', '.join(system_names())}, or MODULE:NAME for one of your own."
    )


def find_verbs(name: str, module: str | None = None, run_folder: Path | None = None) -> Verbs:
    """What the verbs do with runs of the system called ``name``, as in ``find_system``."""
    return WITHOUT_ENVIRONMENT[name] if name in WITHOUT_ENVIRONMENT else find_system(name, module, run_folder).verbs


def verbs_of_run(run_folder: Path) -> Verbs:
    """What the verbs do with this run. Raises ``UserError`` for what is no run folder, and for a system that cannot be
    found."""
    content = run.read(run_folder)
    return find_verbs(content["system"], content.get("module"), run_folder)


def system_names() -> list[str]:
    """All that can be trained: those of this package, those that were registered, those of installed packages."""
    return [
        *SYSTEMS,
        *WITHOUT_ENVIRONMENT,
        *(point.name for point in entry_points(group=GROUP) if point.name not in SYSTEMS),
    ]


def import_user_module(module: str, run_folder: Path | None = None) -> None:
    """Import a module of the user's, from the working directory too. Raises ``UserError``."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module):
        raise UserError(f"{module!r} is not the name of a module: give my_algorithm or my_package.algorithm, for example.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        spec = find_spec(module)
        if spec is None:
            raise UserError(
                f"there is no module {module} in this folder or among the installed packages: run the command where it lies."
            )
        if run_folder is not None and spec.origin and Path(spec.origin).resolve().is_relative_to(run_folder.resolve()):
            raise UserError(
                f"{run_folder} wants {spec.origin} imported, which lies in that folder itself: move it elsewhere if you trust it."
            )
        import_module(module)
    except BaseException as error:
        blame(module, error)  # raises a UserError and Ctrl-C themselves
        raise UserError(f"the module {module} cannot be imported ({describe(error)}): correct it.") from error


def _load_entry_point(name: str) -> None:
    for point in entry_points(group=GROUP, name=name):
        try:
            found = point.load()
            if isinstance(found, System):
                SYSTEMS[name] = found
            elif callable(found) and name not in SYSTEMS:
                found()
        except BaseException as error:
            blame(point.value, error)  # as above
            raise UserError(f"the system {name!r} of {point.value} cannot be loaded ({describe(error)}): correct that package.") from error
