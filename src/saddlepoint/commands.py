"""`saddlepoint train` and `saddlepoint envs`: their flags, and what these verbs do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs import env_spec
from saddlepoint.envs.listing import list_in_words
from saddlepoint.flaghelp import render
from saddlepoint.flags import Parsed, parse_with_file
from saddlepoint.options import as_flag, chosen_preset, flag, restore
from saddlepoint.policies import start_from
from saddlepoint.systems import SYSTEMS, System, find, find_system, find_verbs, system_names
from saddlepoint.train import run
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.contract import LearnerFactory, checked, cost_gamma, refuse_cost_options, refuse_idle
from saddlepoint.train.start import default_folder, train
from saddlepoint.types import EnvSetup, UserError

FIRST = ("env", "total_steps", "seed", "out", "resume", "preset", "cost_limit", "num_envs", "eval_every", "track")
"""flags that `train --help` shows first"""


@dataclass(frozen=True)
class Launch:
    """Where settings come from."""

    preset: str = "default"
    """named settings of the system, which other flags change (an unknown one is answered with the names)"""
    config: Path | None = None
    """a JSON file of settings, named as the flags are, which flags given here override"""
    resume: Path | None = None
    """run folder to go on with; all is taken from it: only flags that change no result, such as --total-steps, may be given"""
    start_from: Path | None = None
    """run folder, of `saddlepoint pretrain` or of training, whose weights and settings a new run starts from; settings given here go before its own"""
    start_task: str | None = None
    """which of its tasks, where it has several"""


@dataclass(frozen=True)
class BudgetFlags:
    """The cost budget. What is not given is the task's own; a task without one needs --cost-limit."""

    cost_limit: tuple[float, ...] = ()
    """the bound, one number for each constraint"""
    cost_per: Literal["episode", "step"] = CostBudget.per
    """whether the bound is on the sum over an episode or on the mean of a step"""
    cost_discounted: bool = CostBudget.discounted
    """whether the bound is on the discounted sum, as the cost critic sees it"""
    cost_horizon: int | None = None
    """steps of a whole episode, counted in decisions where --action-repeat holds actions; by default the environment's own time limit. An environment
    without one is cut there"""


def train_flags(system: type[Any]) -> type[Any]:
    """All flags of ``train`` as one dataclass, which tyro reads; the part ``system`` is that system's own config."""
    parts = [("launch", Launch), ("run", TrainConfig), ("system", system), ("budget", BudgetFlags)]
    flags = make_dataclass("TrainFlags", parts, frozen=True)
    flags.__doc__ = "Train a system on an environment with a cost budget."
    return flags


def train_command(args: list[str]) -> None:
    """`saddlepoint train SYSTEM ...`, or `saddlepoint train --resume RUN ...`"""
    name, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("", args)
    folder = _resumed_folder(rest)
    saved = run.read(folder) if folder else None
    if not name:
        if saved is None and "--resume" in rest:
            raise UserError("--resume needs the run folder: `saddlepoint train --resume RUN`.")
        if saved is None:
            raise UserError(f"train needs a system: use `saddlepoint train {' | '.join(system_names())} ...`, with --help for its flags.")
        name = saved["system"]
    if saved and (verb := saved.get("verb", "train")) != "train":
        raise UserError(f"{folder} is a run of `saddlepoint {verb}`: resume it there, or train on from it with --start-from {folder}.")
    same = saved is not None and saved["system"] == name
    verbs = find_verbs(name, saved.get("module"), folder) if saved and same else find_verbs(name)
    if (own := find(verbs.train)) is not None:
        own(rest)
    else:
        train_in_environments(name.rpartition(":")[2], rest)


def _resumed_folder(args: list[str]) -> Path | None:
    """The run folder that --resume names, as far as can be seen before the flags are read."""
    for word, following in zip(args, [*args[1:], ""]):
        if word == "--resume" and following and not following.startswith("-"):
            return Path(following)
        if word.startswith("--resume="):
            return Path(word.partition("=")[2])
    return None


def train_in_environments(name: str, args: list[str]) -> None:
    """Everything after `saddlepoint train NAME`, for a system that learns in environments. Raises ``UserError``; ``Interrupted`` after a checkpoint."""
    home = Path()
    with suppress(OSError):  # a folder that was removed
        home = Path.cwd()  # an environment's module may go elsewhere
    system, parsed = SYSTEMS[name], parse_training(name, args)
    budgets: tuple[CostBudget, ...] | None
    learner: LearnerFactory[Any] = system.learner_class()
    if parsed.values.launch.resume is None:
        if parsed.values.launch.start_from is None:
            config, learner_config, budgets = fresh_run(parsed, system)
            own = system.preset_run(parsed.values.launch.preset, config)
            if said := _as_flags({name: value for name, value in own.items() if name not in parsed.given}):
                print(f"note: --preset {parsed.values.launch.preset} of {name} also sets {said}")
        else:
            learner, base = _started(parsed, name)
            config, learner_config, budgets = _new_run(parsed, system, base)
            if "warmup_actions" not in parsed.given:
                config = replace(config, warmup_actions="policy")  # the stored one is better than chance
    else:
        config, learner_config = _resumed(parsed, system, name)
        config, learner_config = checked(config), checked(learner_config)
        # A resumed run keeps its own budgets; cost flags given beside --resume must say the same.
        stated = parsed.given & vars(parsed.values.budget).keys()
        budgets = _budgets(parsed, config, learner_config, system) if stated else None
    folder = config.out or default_folder(config)
    train(replace(config, out=home / folder), learner, learner_config, budgets, resume=parsed.values.launch.resume is not None)
    print(f"finished: {folder}; look at it with `saddlepoint evaluate {folder}` or `tensorboard --logdir {folder}`")


def parse_training(name: str, args: list[str]) -> Parsed:
    """The flags of `saddlepoint train NAME`, with those of a --config file below them. Raises ``UserError``."""
    kind = find_system(name).config_class()
    flags, prog = train_flags(kind), f"saddlepoint train {name}"
    default = flags(Launch(), TrainConfig(env=""), kind(), BudgetFlags())
    system = find_system(name)
    presets = ", ".join(system.presets())
    settings = {preset: system.preset_run(preset, TrainConfig(env="")) for preset in system.presets()}
    runs = [f"{preset} also sets {_as_flags(own)}" for preset, own in settings.items() if own]

    def help() -> str:
        parts = {"Where settings come from": default.launch, "The run": default.run, "The cost budget": default.budget}
        parts[f"The algorithm, {name}"] = default.system
        notes = ["; ".join([f"Presets of {name}, for --preset: {presets}", *runs]) + "."]
        return render(prog, "Train a system on an environment with a cost budget.", parts, FIRST, notes)

    return parse_with_file(flags, default, args, prog, help)


def _as_flags(settings: Mapping[str, Any]) -> str:
    """Settings of a run as they are written on the command line."""
    return " ".join(as_flag(name, str(value)) for name, value in settings.items())


def fresh_run(parsed: Parsed, system: System) -> tuple[TrainConfig, Any, tuple[CostBudget, ...]]:
    """What the flags of a new run come to, all of it valid. Raises ``UserError``."""
    preset = parsed.values.launch.preset
    base = chosen_preset(preset, system.presets())
    for name in ("start_from", "start_task"):
        if name in parsed.given:  # `train` itself asks before; a sweep cannot
            raise UserError(f"{flag(name)} does nothing here: --start-from is for `saddlepoint train`, and --start-task for use with it.")
    return _new_run(parsed, system, base, preset)


def _started(parsed: Parsed, name: str) -> tuple[LearnerFactory[Any], Any]:
    """What makes the learner of a run that starts from another's weights, and that run's settings. Raises ``UserError``."""
    launch = parsed.values.launch
    if "preset" in parsed.given:
        raise UserError(f"--start-from {launch.start_from} takes that run's settings: leave out --preset.")
    trained = run.read(launch.start_from)["system"]
    if trained != name:
        raise UserError(f"{launch.start_from} was trained with {trained}, not {name}: use `saddlepoint train` with that.")
    learner, base, note = start_from(launch.start_from, launch.start_task)
    if note:
        print(f"warning: {note}")
    return learner, base


def _new_run(parsed: Parsed, system: System, base: Any, preset: str | None = None) -> tuple[TrainConfig, Any, tuple[CostBudget, ...]]:
    """The settings of a new run: ``base``, and what ``preset`` says of the run, with what was given."""
    config: TrainConfig = parsed.values.run
    if preset is not None:
        config = replace(config, **{name: value for name, value in system.preset_run(preset, config).items() if name not in parsed.given})
    if not config.env:
        raise UserError("training needs an environment: give --env (`saddlepoint envs` lists some), or --resume RUN.")
    if "warmup_actions" in parsed.given and not config.warmup:
        raise UserError("--warmup-actions does nothing with --warmup-steps 0: leave it out.")
    learner_config = parsed.over(parsed.values.system, base)
    refuse_idle(learner_config, parsed.given)
    config, learner_config = checked(config), checked(learner_config)
    sums = parsed.values.budget.cost_discounted if "cost_discounted" in parsed.given else any(b.discounted for b in env_spec(config.setup()).budgets)
    if sums and "cost_gamma" not in parsed.given and hasattr(learner_config, "cost_gamma"):
        learner_config = replace(learner_config, cost_gamma=CostBudget.gamma)  # that of the discounted sum which the budget bounds
    budgets = _budgets(parsed, config, learner_config, system)
    if not budgets:
        refuse_cost_options(learner_config, parsed.given)
    return config, learner_config, budgets


def _budgets(parsed: Parsed, config: TrainConfig, learner_config: Any, system: System) -> tuple[CostBudget, ...]:
    return budgets_from(parsed, config.setup(), cost_gamma(learner_config), system.learner_class().needs_cost)


def _resumed(parsed: Parsed, system: System, name: str) -> tuple[TrainConfig, Any]:
    folder: Path = parsed.values.launch.resume
    parsed.refuse_beside_resume(("out", "preset", "config", "start_from", "start_task"))
    saved = run.read(folder)
    if saved["system"] != name:
        raise UserError(f"{folder} was trained with {saved['system']}, not {name}: use `saddlepoint train --resume {folder}`.")
    where = folder / "config.json"
    config = replace(restore(TrainConfig, saved["train"], where), out=folder)
    learner_config = restore(system.config_class(), saved["learner"], where)
    config = parsed.over(parsed.values.run, config)
    if "threads" not in parsed.given:
        config = replace(config, threads=saved["resolved"]["threads"])
    return config, parsed.over(parsed.values.system, learner_config)


def budgets_from(parsed: Parsed, source: str | EnvSetup, cost_gamma: float, needs_cost: bool = True) -> tuple[CostBudget, ...]:
    """The task's budgets, changed by what was given; none where there are none and the system ``needs_cost`` not.

    Raises ``UserError`` when there is no limit, or two meanings, or no cost that there could be a limit for.
    """
    task, env, flags = env_spec(source), EnvSetup.of(source).name, parsed.values.budget
    if task.constraints == 0 and needs_cost:
        free = [name for name, system in SYSTEMS.items() if not system.learner_class().needs_cost]
        raise UserError(f"{env} reports no cost, which this system needs: train {' or '.join(free)}, which can do without, or take another environment.")
    given = {name.removeprefix("cost_"): vars(flags)[name] for name in parsed.given if name in vars(flags)}
    limits = given.pop("limit", None)
    if limits == ():  # without a constraint would be the worst way to understand it
        raise UserError("--cost-limit needs a number for each constraint (perhaps a shell variable is not set).")
    if limits is not None and task.horizon is None and "horizon" not in given:
        raise UserError(f"{env} has no time limit, so a budget needs the length of an episode: give --cost-horizon.")
    base = task.budgets
    if limits is not None:
        blank = CostBudget(0.0, horizon=task.horizon)
        base = tuple(replace(base[i] if i < len(base) else blank, limit=limit) for i, limit in enumerate(limits))
    if not base and not needs_cost and not given:
        return ()
    if not base:
        raise UserError(f"{env} declares no cost budget of its own: give one with --cost-limit.")
    for budget in base:
        if limits is None and budget.discounted and budget.gamma != cost_gamma:
            raise UserError(
                f"the budget of {env} is a sum discounted by {budget.gamma:g}, not by --cost-gamma {cost_gamma:g}:"
                " give --cost-limit too."
            )
    return tuple(replace(budget, **given, gamma=cost_gamma) for budget in base)


def envs_command(args: list[str]) -> None:
    """`saddlepoint envs [WORD ...]`"""
    if any(arg in ("-h", "--help") for arg in args):
        args = []
    if odd := [arg for arg in args if arg.startswith("-")]:
        raise UserError(f"`saddlepoint envs` has no flag {odd[0]}: give words that the tasks should have, or nothing.")
    for line in list_in_words(args):
        print(line)
