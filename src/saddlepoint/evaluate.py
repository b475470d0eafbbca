"""`saddlepoint evaluate`: whole episodes of a trained policy, in words and in a file beside the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.constrained.calibration import blindness
from saddlepoint.files import FileFault, write_json
from saddlepoint.flags import field_names, parse
from saddlepoint.options import as_flag, require_at_least, require_episodes, require_seed
from saddlepoint.policies import as_settings, load_policy
from saddlepoint.systems import SYSTEMS, WITHOUT_ENVIRONMENT, find, find_system, verbs_of_run
from saddlepoint.train import run
from saddlepoint.train.contract import acting_fields
from saddlepoint.train.evaluate import evaluate
from saddlepoint.train.threads import use_threads
from saddlepoint.train.verdict import verdict_in_words
from saddlepoint.train.video import record_video, render_headless
from saddlepoint.types import UserError


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
    budget: tuple[float, ...] = ()
    """cost limits to turn a policy of --budget-range to, each evaluated by itself (default: the run's own --cost-limit)"""
    checkpoint: str | None = None
    """which checkpoint: a step, or best (the best evaluation within the budget); by default the newest whole one"""
    video: bool = False
    """also write a film of one episode to videos/"""


def evaluate_command(args: list[str]) -> None:
    """`saddlepoint evaluate RUN ...`"""
    import torch

    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        raise UserError("evaluate needs the run folder first: `saddlepoint evaluate RUN --episodes 10 --video`.")
    helping = args[0] in ("-h", "--help")
    if not helping and (own := _own_evaluation(args)) is not None:
        own(args[0], args[1:])
        return
    flags = parse(EvaluateFlags, EvaluateFlags(), args if helping else args[1:], "saddlepoint evaluate RUN").values
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu.")
    require_at_least(flags, {"threads": 0, "eval_envs": 1})
    require_seed(flags.seed)
    require_episodes(flags.episodes)
    use_threads(flags.threads)
    if flags.video:
        render_headless()
    folder = Path(args[0])
    where = folder.absolute()  # an environment may go elsewhere
    for limit in flags.budget or (None,):
        _evaluate(folder, where, flags, limit)


def _evaluate(folder: Path, where: Path, flags: EvaluateFlags, limit: float | None) -> None:
    """Evaluate the run in ``folder``, which lies at ``where``, a policy of --budget-range turned to ``limit``, print what was found and keep it there."""
    acting = _acting(where, flags.acting)
    policy = load_policy(where, flags.device, flags.task, acting, checkpoint=flags.checkpoint, compile=True, budget=limit)
    turned = [] if limit is None else [f"budget={limit:g}"]
    name = "-".join([str(policy.step), *([flags.task] if flags.task else []), *flags.acting, *turned]).replace("/", "-")
    metrics = evaluate(
        policy.learner, policy.setup, policy.budgets, flags.episodes, flags.seed, flags.device, envs=flags.eval_envs
    )
    assert metrics is not None  # nobody asks it to stop
    print(f"{folder} after {policy.step} steps, {flags.episodes} episodes of {policy.setup.describe()}")
    for budget in policy.budgets:
        print(f"budget: {budget.describe()}")
    for title, prefix in (("noise-free policy", "eval"), ("sampled policy", "eval/stochastic")):
        over = f"{100 * metrics[f'{prefix}/violation_rate']:.0f}% of episodes over budget"
        cost = f"; {_costs(metrics, prefix, policy.budgets)}; {over}" if policy.budgets else ""
        success = f"; success at the end of {100 * metrics[f'{prefix}/success_rate']:.0f}%" if f"{prefix}/success_rate" in metrics else ""
        print(f"{title}: return {_spread(metrics, f'{prefix}/return')}{cost}{success}")
    if policy.budgets:
        print(f"verdict: {verdict_in_words(metrics, policy.budgets, run.read(where)['train'].get('binds', 'both'))}")
    if blind := blindness(metrics, policy.budgets, "eval/stochastic"):
        print(f"note: {blind}")
    try:
        write_json(where / f"evaluation-{name}.json", {"step": policy.step, **asdict(flags), "budget": limit, **metrics})
    except FileFault as error:  # a colleague's run, which one may only read
        print(f"note: the numbers are not kept: {error}")
    if flags.video:
        path = Path("videos") / f"{name}.mp4"
        steps = record_video(policy.learner, policy.setup, where / path, flags.seed, device=flags.device, budgets=policy.budgets)
        print(f"video: {folder / path} ({steps} steps)")


def _own_evaluation(args: list[str]) -> Callable[[str, list[str]], None] | None:
    """What evaluates a run folder of a system that has no policy in environments, or what is no run folder at all; None for policies."""
    source = Path(args[0])
    if (source / "config.json").is_file():
        return find(verbs_of_run(source).evaluate)
    for verbs in (*WITHOUT_ENVIRONMENT.values(), *(system.verbs for system in SYSTEMS.values())):
        if verbs.recognises is not None and find(verbs.recognises)(args[0], args[1:]):
            return find(verbs.evaluate)
    return None


def _acting(folder: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """``NAME=VALUE`` as settings of the run's system, read as its flags are. Raises ``UserError``."""
    if odd := [word for word in words if "=" not in word]:
        raise UserError(f"--acting {odd[0]}: give NAME=VALUE, such as planner=score.")
    if not words:
        return {}
    content = run.read(folder)
    name = content["system"]
    kind = find_system(name, content.get("module"), folder).config_class()
    known = field_names(kind())
    for key in (word.partition("=")[0].replace("-", "_") for word in words):
        if key not in known:
            own = ", ".join(sorted(acting_fields(kind())))
            raise UserError(f"--acting {key}: {name} has no such setting: {f'take one of {own}' if own else 'none is of acting alone'}.")
    args = [as_flag(*word.split("=", 1)) for word in words]
    try:
        parsed = parse(kind, kind(), args, f"saddlepoint train {name}")  # whose --help has these settings
    except UserError as error:
        raise as_settings(error) from error
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
