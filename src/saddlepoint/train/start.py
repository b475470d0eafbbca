"""From a configuration to a running loop: everything is checked and built before the first file is written."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from saddlepoint.constrained.budget import CostBudget, at_discount
from saddlepoint.constrained.dial import Dial
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.envs.tasks import PIXELS, TaskSpec, action_repeat_of, env_spec
from saddlepoint.faults import explain
from saddlepoint.memory import keep_freed_memory
from saddlepoint.nn.normaliser import normalised
from saddlepoint.options import several, truth_value
from saddlepoint.replay import Replay
from saddlepoint.streams import kept_streams
from saddlepoint.train import run
from saddlepoint.train.callbacks import Callback
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.contract import (
    GainsByCompiling,
    LearnerFactory,
    SeesPixels,
    TurnsBudgets,
    checked,
    checked_for,
    cost_gamma,
)
from saddlepoint.train.dialled import DialledEnvs
from saddlepoint.train.driver import RunDriver
from saddlepoint.train.evaluate import longest_episode, require_second
from saddlepoint.train.log import RunLog
from saddlepoint.train.loop import BUDGETS, ENVS, LEARNER, Loop, stream
from saddlepoint.train.screen import Screen
from saddlepoint.train.signals import stop_on_signal
from saddlepoint.train.threads import use_threads
from saddlepoint.types import EnvSetup, EnvShape, UserError
from saddlepoint.usual import usual_torch

C = TypeVar("C", contravariant=True)

COMPILE_PAYS_AFTER = 1_000
"""updates from which ``--compile auto`` compiles on a CPU: building the C++ passes takes about a minute, once for each machine and version, and saves ALGD 15
ms an update and more, MBDPO's `small` preset 30 (benchmarks/results/algd_update_2threads.json; docs/results.md)"""
CUDA_COMPILE_PAYS_AFTER = 40_000
"""the same where PyTorch compiles whole updates, which takes a minute or two"""


def train(
    config: TrainConfig, learner: LearnerFactory[C], learner_config: C, budgets: CostBudget | Sequence[CostBudget] | None = None,
    *, resume: bool = False, callbacks: Sequence[Callback] = (),
) -> Path:  # fmt: skip
    """``saddlepoint.train``, whose docstring says all."""
    if not isinstance(config, TrainConfig):
        given = config.__name__ if isinstance(config, type) else type(config).__name__
        raise UserError(f"train takes a TrainConfig first, not {given}: train(TrainConfig(env=...), learner, learner_config).")
    _require_learner(learner)
    source = config.env  # an id, a class or a maker
    config = replace(checked(replace(config, env=source if isinstance(source, str) else "a maker")), env=source)
    learner_config = checked_for(learner, learner_config)
    home = Path() if config.out is not None and config.out.is_absolute() else Path.cwd()  # an environment may go elsewhere
    budgets = None if budgets is None else several("budgets", budgets, CostBudget, "CostBudget(25)")
    callbacks = several("callbacks", callbacks, Callback, "StopWhenSafe()")
    resume = truth_value("resume", resume)
    if resume and config.out is None:
        raise UserError("resuming needs the run folder: give it as --resume RUN.")
    setup = config.setup()
    setup = replace(setup, action_repeat=action_repeat_of(setup))
    config = replace(config, env=setup.name, env_kwargs=dict(setup.kwargs), action_repeat=setup.action_repeat)
    if env_spec(setup).pixels and not isinstance(learner, SeesPixels):
        raise UserError(f"{learner.system} has no encoder of pictures, which {config.env} gives: leave out {PIXELS}, or train mbdpo.")
    folder = home / (config.out or default_folder(config))
    saved = run.read(folder) if resume else None
    config = as_kept(config, setup, saved)
    if saved is None:
        run.require_new(folder)
    else:  # before the environment is looked at, which may be another one
        run.require_same_settings(saved, run.describe_settings(learner.system, config, learner_config), folder, run.OPERATIONAL)
    keep_freed_memory()
    use_threads(config.threads)
    device = config.resolve_device()
    compiled = bool(saved["resolved"]["compiled"]) if saved else compiles(config, learner, learner_config, device)
    with kept_streams(), stop_on_signal() as stop:
        seed = stream(config.seed, ENVS)
        declared = run.budgets_of(saved) if saved else env_spec(setup).budgets
        budgets = with_horizons(declared if budgets is None else budgets, env_spec(setup).horizon, setup.name)
        budgets = at_discount(budgets, cost_gamma(learner_config))
        setup = replace(setup, longest=longest_episode(budgets), cut=cut_after(config, env_spec(setup)))
        envs: EnvBatch | DialledEnvs = EnvBatch(
            setup, config.num_envs, seed=seed, processes=config.env_processes, needs_cost=learner.needs_cost, stop=stop
        )
        try:
            budgets = require_budgets(budgets, envs.shape, setup.name)
            if config.budget_range is not None:
                require_dial(config, learner, budgets)
                assert isinstance(envs, EnvBatch)
                envs = DialledEnvs(envs, config.budget_range, stream(config.seed, BUDGETS))
            shape = envs.shape
            if config.eval_envs:
                require_second(setup)
            resolved = {"device": device.type, "threads": torch.get_num_threads(), "compiled": compiled}
            content = run.describe(learner.system, config, learner_config, shape, budgets, resolved, module_of(learner))
            if saved:
                run.require_same(saved, content, folder)
            with usual_torch():
                sizes = (config.replay_size, shape.observation, shape.action, shape.constraints)
                stored = torch.from_numpy(envs.observation).dtype  # bytes stay bytes
                replay = Replay(*sizes, num_envs=config.num_envs, device=device, dtype=stored, cut=setup.cut is not None)
                try:
                    agent = learner(learner_config, shape, budgets, stream(config.seed, LEARNER), device, compile=compiled)
                except Exception as error:
                    if sentence := explain(error):  # networks that are larger than the memory
                        raise UserError(sentence) from error
                    raise
                if config.normalise_observations:
                    if shape.image is not None:
                        raise UserError(
                            f"--normalise-observations does nothing for pictures, which {config.env} gives: leave it out."
                        )
                    agent = normalised(agent, shape.observation, device)
            first = None if saved else envs.reset()
            screen = Screen(config.total_steps, Loop.unit, budgets=budgets, quiet=config.quiet)
            settings = {"system": learner.system, **content["train"], **content["learner"]}
            with run.opened(folder, saved), RunLog(folder, screen, track=config.track, settings=settings) as log:
                training = Loop(config, envs, agent, replay, budgets, device, log, stop)
                driver = RunDriver(
                    training, config.schedule(), folder, log, stop, budgets=budgets, binds=config.binds, callbacks=callbacks,
                    config_digest=run.settings_digest(content, run.OPERATIONAL),
                )  # fmt: skip
                if saved and saved["resolved"]["threads"] != resolved["threads"]:
                    before = saved["resolved"]["threads"]
                    log.say(f"note: {resolved['threads']} threads instead of {before}, so the last bits may differ")
                gigabytes = Replay.bytes_needed(*sizes, stored) / 1e9
                log.say(f"replay: {gigabytes:.2f} GB on {device} when its {config.replay_size:,} transitions are there")
                for budget in budgets:
                    log.say(f"cost budget: {budget.describe()}")
                    if (most := envs.spec.horizon) not in (None, budget.steps):
                        log.say(
                            f"note: this budget counts on episodes of {budget.steps} steps,"
                            f" and those of {setup.name} have {most} where nothing ends them before"
                        )
                for note in envs.notes():
                    log.say(f"note: {note}")
                if first is None:
                    driver.resume()
                else:
                    training.begin(first)
                if changed := run.write(folder, content):
                    log.say(changed)
                driver.run()
        finally:
            envs.close()
    return folder


def default_folder(config: TrainConfig) -> Path:
    """runs/<environment>-<seed>-<time>."""
    name = re.sub(r"[^\w.+-]+", "-", str(config.env).rsplit("/", 1)[-1].removesuffix("-v0"))
    return Path("runs") / f"{name}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def with_horizons(budgets: tuple[CostBudget, ...], horizon: int | None, env: str) -> tuple[CostBudget, ...]:
    """``budgets``, those without a horizon with the environment's own. Raises ``UserError`` where it has none."""
    for budget in budgets:
        if budget.horizon is None and horizon is None:
            raise UserError(f"{env} has no time limit, so a budget needs the length of an episode: give --cost-horizon, or CostBudget(horizon=...).")
    return tuple(budget if budget.horizon is not None else replace(budget, horizon=horizon) for budget in budgets)


def require_budgets(budgets: tuple[CostBudget, ...], shape: EnvShape, env: str) -> tuple[CostBudget, ...]:
    """``budgets`` when there is one for each constraint, else ``UserError``."""
    if not shape.constraints and budgets:
        raise UserError(f'{env} puts no "cost" into info that a budget could limit: put it there, or leave out the budget (the cost flags).')
    if not budgets and shape.constraints:
        raise UserError(f"{env} declares no cost budget of its own: give one with --cost-limit.")
    if len(budgets) != shape.constraints:
        raise UserError(f"{env} has {shape.constraints} constraints, not {len(budgets)}: give one budget for each.")
    return budgets


def as_kept(config: TrainConfig, setup: EnvSetup, saved: dict[str, Any] | None) -> TrainConfig:
    """``config`` as a run keeps it, so that another version's defaults do not change it: where it leaves ``--action-repeat`` and ``--episode-steps`` open,
    those of the task that ``setup`` makes (evaluations in the training environments need whole episodes), and the warm-up of the ``saved`` config.json
    where the run goes on."""
    setup = replace(setup, action_repeat=action_repeat_of(setup))
    task, warmup = env_spec(setup), config.warmup_steps
    own = task.episode_steps if config.eval_envs else task.horizon
    if warmup is None:  # a run that goes on for longer keeps its own
        warmup = saved["train"].get("warmup_steps") if saved else config.warmup
    return replace(config, action_repeat=setup.action_repeat, episode_steps=config.episode_steps or own or 0, warmup_steps=warmup)


def cut_after(config: TrainConfig, task: TaskSpec) -> int | None:
    """Steps after which training episodes are cut; None where they are whole. Raises ``UserError``."""
    cut = config.episode_steps
    if not cut or (task.horizon is not None and cut >= task.horizon):
        return None
    if not config.eval_envs:
        raise UserError("--episode-steps cuts training episodes, and --eval-envs 0 evaluates in the same environments: leave out one of them.")
    return cut


def require_dial(config: TrainConfig, learner: LearnerFactory[C], budgets: tuple[CostBudget, ...]) -> None:
    """Raises ``UserError`` where ``--budget-range`` cannot be had."""
    assert config.budget_range is not None
    if not isinstance(learner, TurnsBudgets):
        raise UserError(f"--budget-range is for algd: {learner.system} learns for one budget. Leave it out.")
    if config.normalise_observations:
        raise UserError("--normalise-observations would normalise the budget of --budget-range too: leave out one of them.")
    if env_spec(config.setup()).pixels:
        raise UserError("--budget-range has no place in pictures: leave it out.")
    Dial.of(config.budget_range, budgets)


def _require_learner(learner: Any) -> None:
    """Raises ``UserError`` for what cannot be a system's class."""
    if callable(learner) and isinstance(getattr(learner, "system", None), str) and hasattr(learner, "needs_cost"):
        return
    given = learner.__name__ if isinstance(learner, type) else repr(learner)
    raise UserError(f"train takes a system's class second, such as saddlepoint.ALGD, not {given:.60}.")


def module_of(learner: LearnerFactory[C]) -> str | None:
    """The module that whoever takes up the run has to import to know its system; None for those of this package."""
    kind = learner if isinstance(learner, type) else type(learner)
    name = kind.__module__
    if name == "__main__":
        name = Path(getattr(sys.modules["__main__"], "__file__", None) or "").stem
    return None if not name or name.split(".")[0] == "saddlepoint" else name


def compiles(config: TrainConfig, learner: LearnerFactory[C], learner_config: C, device: torch.device) -> bool:
    """What ``--compile`` comes to: decided when a run starts and kept in config.json for when it is resumed.

    On a CPU auto compiles only where that was measured to win. Raises ``UserError`` for ``on`` without a compiler.
    """
    gains = device.type != "cpu" or (isinstance(learner, GainsByCompiling) and learner.gains_by_compiling(learner_config))
    without = 0 if config.catch_up else config.warmup
    return pays_to_compile(config.compile, config.updates_per_step * (config.total_steps - without), gains, device)


def pays_to_compile(asked: Literal["auto", "on", "off"], updates: float, gains: bool, device: torch.device) -> bool:
    """Whether a run of so many updates is compiled; ``gains``: whether a long one is by auto. Raises ``UserError`` for ``on`` without a compiler."""
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++") if name)
    if asked == "on" and not compiler:
        raise UserError("--compile on needs a C++ compiler at run time and finds none: install one (apt-get install g++), or use off.")
    if asked != "auto" or not compiler:
        return asked == "on"
    return gains and updates >= (COMPILE_PAYS_AFTER if device.type == "cpu" else CUDA_COMPILE_PAYS_AFTER)
