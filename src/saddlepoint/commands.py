"""What the verbs of the command line do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, make_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs import env_spec
from saddlepoint.envs.listing import list_in_words
from saddlepoint.files import write_json
from saddlepoint.flags import Parsed, parse, parse_with_file
from saddlepoint.systems import SYSTEMS, System, load_policy, restore_config, start_from
from saddlepoint.train import run
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.evaluate import evaluate
from saddlepoint.train.start import LearnerFactory, train
from saddlepoint.train.threads import use_threads
from saddlepoint.train.video import record_video, render_headless
from saddlepoint.types import EnvSetup, UserError

OWN_TRAINING: dict[str, tuple[str, str]] = {"safediffusion": ("saddlepoint.safediffusion.command", "train_command")}
"""systems that do not learn from an environment, and so have a training loop of their own"""


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
    cost_horizon: int = CostBudget.horizon
    """steps of a whole episode, counted in decisions where --action-repeat holds actions; where the environment has no time limit, it is cut there"""


def train_flags(system: type[Any]) -> type[Any]:
    """All flags of ``train`` as one dataclass, which tyro reads; the part ``system`` is that system's own config."""
    parts = [("launch", Launch), ("run", TrainConfig), ("system", system), ("budget", BudgetFlags)]
    flags = make_dataclass("TrainFlags", parts, frozen=True)
    flags.__doc__ = "Train a system on an environment with a cost budget."
    return flags


@runtime_checkable
class WithCostOptions(Protocol):
    """Settings of a system that can do without costs, and then has options that do nothing."""

    def refuse_cost_options(self, given: Collection[str]) -> None: ...


def train_command(args: list[str]) -> None:
    """`saddlepoint train SYSTEM ...`"""
    if args and args[0] in OWN_TRAINING:
        module, function = OWN_TRAINING[args[0]]
        vars(import_module(module))[function](args[1:])
        return
    if not args or args[0] not in SYSTEMS:
        wrong = args and not args[0].startswith("-")
        named = f"there is no system {args[0]!r}" if wrong else "train needs a system"
        raise UserError(
            f"{named}: use `saddlepoint train {' | '.join([*SYSTEMS, *OWN_TRAINING])} ...`, with --help for its flags."
        )
    system, parsed = SYSTEMS[args[0]], parse_training(args[0], args[1:])
    budgets: tuple[CostBudget, ...] | None
    learner: LearnerFactory[Any] = system.learner_class()
    if parsed.values.launch.resume is None:
        if parsed.values.launch.start_from is None:
            config, learner_config, budgets = fresh_run(parsed, system)
        else:
            learner, base = _started(parsed, args[0])
            config, learner_config, budgets = _new_run(parsed, system, base)
            if "warmup_actions" not in parsed.given:
                config = replace(config, warmup_actions="policy")  # the stored one is better than chance
    else:
        config, learner_config = _resumed(parsed, system, args[0])
        config.validate()
        learner_config.validate()
        # A resumed run keeps its own budgets; cost flags given beside --resume must say the same.
        stated = parsed.given & vars(parsed.values.budget).keys()
        budgets = _budgets(parsed, config, learner_config, system) if stated else None
    folder = train(config, learner, learner_config, budgets, resume=parsed.values.launch.resume is not None)
    print(f"finished: {folder}; look at it with `saddlepoint evaluate {folder}` or `tensorboard --logdir {folder}`")


def parse_training(name: str, args: list[str]) -> Parsed:
    """The flags of `saddlepoint train NAME`, with those of a --config file below them. Raises ``UserError``."""
    kind = SYSTEMS[name].config_class()
    flags, prog = train_flags(kind), f"saddlepoint train {name}"
    default = flags(Launch(), TrainConfig(env=""), kind(), BudgetFlags())
    return parse_with_file(flags, default, args, prog)


def fresh_run(parsed: Parsed, system: System) -> tuple[TrainConfig, Any, tuple[CostBudget, ...]]:
    """What the flags of a new run come to, all of it valid. Raises ``UserError``."""
    presets = system.presets()
    preset = parsed.values.launch.preset
    if preset not in presets:
        raise UserError(f"there is no preset {preset!r}: use one of {', '.join(presets)}.")
    for name in ("start_from", "start_task"):
        if name in parsed.given:  # `train` itself asks before; a sweep cannot
            raise UserError(f"--{name.replace('_', '-')} does nothing here: --start-from is for `saddlepoint train`, and --start-task for use with it.")
    return _new_run(parsed, system, presets[preset])


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


def _new_run(parsed: Parsed, system: System, base: Any) -> tuple[TrainConfig, Any, tuple[CostBudget, ...]]:
    """The settings of a new run: ``base`` with what was given."""
    config: TrainConfig = parsed.values.run
    if not config.env:
        raise UserError("training needs an environment: give --env (`saddlepoint envs` lists some), or --resume RUN.")
    if "warmup_actions" in parsed.given and not config.warmup_steps:
        raise UserError("--warmup-actions does nothing with --warmup-steps 0: leave it out.")
    learner_config = parsed.over(parsed.values.system, base)
    learner_config.refuse_idle(parsed.given)
    config.validate()
    learner_config.validate()
    budgets = _budgets(parsed, config, learner_config, system)
    if not budgets and isinstance(learner_config, WithCostOptions):
        learner_config.refuse_cost_options(parsed.given)
    return config, learner_config, budgets


def _budgets(parsed: Parsed, config: TrainConfig, learner_config: Any, system: System) -> tuple[CostBudget, ...]:
    return budgets_from(parsed, config.setup(), learner_config.cost_gamma, system.learner_class().needs_cost)


def _resumed(parsed: Parsed, system: System, name: str) -> tuple[TrainConfig, Any]:
    folder: Path = parsed.values.launch.resume
    for other in ("out", "preset", "config", "start_from", "start_task"):
        if other in parsed.given:
            raise UserError(f"--resume {folder} takes everything from that run: leave out --{other.replace('_', '-')}.")
    saved = run.read(folder)
    if saved["system"] != name:
        raise UserError(f"{folder} was trained with {saved['system']}, not {name}: use `saddlepoint train` with that.")
    if "tasks" in saved:
        raise UserError(f"{folder} is a run of `saddlepoint pretrain`: resume it there, or train on from it with --start-from {folder}.")
    where = folder / "config.json"
    config = replace(restore_config(TrainConfig, saved["train"], where), out=folder)
    learner_config = restore_config(system.config_class(), saved["learner"], where)
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
    if limits is not None and task.horizon is None and "horizon" not in given:
        raise UserError(f"{env} has no time limit, so a budget needs the length of an episode: give --cost-horizon.")
    base = task.budgets
    if limits is not None:
        blank = CostBudget(0.0, horizon=task.horizon or CostBudget.horizon)
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


@dataclass(frozen=True)
class EvaluateFlags:
    """Whole episodes of a trained policy on fresh environments, noise-free and stochastic. Pictures have other flags: `evaluate RUN --help` of their run."""

    episodes: int = 10
    """whole episodes of each policy"""
    task: str | None = None
    """which task, where the run has several (`saddlepoint pretrain`), by its name or environment"""
    eval_envs: int = 10
    """environments to play side by side"""
    seed: int = 1_000_000
    """seed of the environments and of the stochastic policy"""
    acting: tuple[str, ...] = ()
    """settings of acting to change, such as evaluation=best_of_n (algd) or planner=score (mbdpo)"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where the policy acts"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""
    video: bool = False
    """also write a film of one episode to videos/"""


def evaluate_command(args: list[str]) -> None:
    """`saddlepoint evaluate RUN ...`"""
    import torch

    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        raise UserError("evaluate needs the run folder first: `saddlepoint evaluate RUN --episodes 10 --video`.")
    from saddlepoint.safediffusion import evaluate as pictures

    hub_id = not Path(args[0]).exists() and any(word.split("=")[0] == "--prompts" for word in args)  # there is no folder to look at
    if hub_id or pictures.is_text_to_image(Path(args[0])):
        pictures.evaluate_command(args[0], args[1:])
        return
    helping = args[0] in ("-h", "--help")
    flags = parse(EvaluateFlags, EvaluateFlags(), args if helping else args[1:], "saddlepoint evaluate RUN").values
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu.")
    if flags.threads < 0 or flags.seed < 0:
        raise UserError("--threads and --seed must not be negative.")
    if flags.eval_envs < 1:
        raise UserError(f"--eval-envs must be at least 1, not {flags.eval_envs}.")
    use_threads(flags.threads)
    if flags.video:
        render_headless()
    folder = Path(args[0])
    policy = load_policy(folder, flags.device, flags.task, _acting(folder, flags.acting), compile=True)
    name = "-".join([str(policy.step), *([flags.task] if flags.task else []), *flags.acting]).replace("/", "-")
    if policy.note:
        print(f"warning: {policy.note}")
    metrics = evaluate(
        policy.learner, policy.setup, policy.budgets, flags.episodes, flags.seed, flags.device, envs=flags.eval_envs
    )
    assert metrics is not None  # nobody asks it to stop
    print(f"{folder} after {policy.step} steps, {flags.episodes} episodes of {policy.env}")
    for budget in policy.budgets:
        print(f"budget: {budget.describe()}")
    for title, prefix in (("noise-free policy", "eval"), ("stochastic policy", "eval/stochastic")):
        over = f"{100 * metrics[f'{prefix}/violation_rate']:.0f}% of episodes over budget"
        cost = f"; {_costs(metrics, prefix, policy.budgets)}; {over}" if policy.budgets else ""
        success = f"; success at the end of {100 * metrics[f'{prefix}/success_rate']:.0f}%" if f"{prefix}/success_rate" in metrics else ""
        print(f"{title}: return {_spread(metrics, f'{prefix}/return')}{cost}{success}")
    write_json(folder / f"evaluation-{name}.json", {"step": policy.step, **asdict(flags), **metrics})
    if flags.video:
        path = folder / "videos" / f"{name}.mp4"
        steps = record_video(policy.learner, policy.setup, path, flags.seed, device=flags.device, budgets=policy.budgets)
        print(f"video: {path} ({steps} steps)")


def _acting(folder: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """``NAME=VALUE`` as settings of the run's system, read as its flags are. Raises ``UserError``."""
    if odd := [word for word in words if "=" not in word]:
        raise UserError(f"--acting {odd[0]}: give NAME=VALUE, such as planner=score.")
    name = run.read(folder)["system"] if words else ""
    if name not in SYSTEMS:  # what is read next says why
        return {}
    kind = SYSTEMS[name].config_class()
    args = [f"--{key.replace('_', '-')}={value}" for key, _, value in (word.partition("=") for word in words)]
    parsed = parse(kind, kind(), args, f"saddlepoint train {name}")  # whose --help has these settings
    return {key: vars(parsed.values)[key] for key in parsed.given}


def _costs(metrics: dict[str, float], prefix: str, budgets: tuple[CostBudget, ...]) -> str:
    """Each constraint by itself, in the sum that its budget is on."""
    parts = []
    for i, budget in enumerate(budgets):
        number = f"_{i}" if len(budgets) > 1 else ""
        name = f"cost {i}" if len(budgets) > 1 else "cost"
        if budget.discounted:
            parts.append(f"{name} {metrics[f'{prefix}/discounted_cost{number}_mean']:.2f} of {budget.critic:.4g} discounted")
        else:
            parts.append(f"{name} {_spread(metrics, f'{prefix}/cost{number}')} of {budget.episode:.4g}")
    return ", ".join(parts)


def _spread(metrics: dict[str, float], name: str) -> str:
    mean, std, least, most = (metrics[f"{name}_{end}"] for end in ("mean", "std", "min", "max"))
    return f"{mean:.2f} (std {std:.2f}, {least:.2f} to {most:.2f})"


def envs_command(args: list[str]) -> None:
    """`saddlepoint envs [WORD ...]`"""
    if any(arg in ("-h", "--help") for arg in args):
        args = []
    if odd := [arg for arg in args if arg.startswith("-")]:
        raise UserError(f"`saddlepoint envs` has no flag {odd[0]}: give words that the tasks should have, or nothing.")
    for line in list_in_words(args):
        print(line)
