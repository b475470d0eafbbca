"""From a configuration to a running loop: everything is checked and built before the first file is written."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.envs.tasks import PIXELS, action_repeat_of, env_spec
from saddlepoint.memory import keep_freed_memory
from saddlepoint.replay import Replay
from saddlepoint.train import run
from saddlepoint.train.callbacks import Callback
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.driver import RunDriver
from saddlepoint.train.evaluate import longest_episode, require_second
from saddlepoint.train.log import RunLog
from saddlepoint.train.loop import ENVS, LEARNER, Loop, stream
from saddlepoint.train.screen import Screen
from saddlepoint.train.signals import stop_on_signal
from saddlepoint.train.threads import use_threads
from saddlepoint.types import EnvShape, Learner, UserError

C = TypeVar("C", contravariant=True)

COMPILE_PAYS_AFTER = 1_000
"""updates from which ``--compile auto`` compiles on a CPU: building the C++ passes takes some 15 s, once for each machine and version, and saves ALGD 15 ms an
update and more, MBDPO's `small` preset 30 (benchmarks/results/algd_update_2threads.json; docs/results.md)"""
CUDA_COMPILE_PAYS_AFTER = 40_000
"""the same where PyTorch compiles whole updates, which takes a minute or two"""


class LearnerFactory(Protocol[C]):
    """What builds a learner, such as its class."""

    @property
    def system(self) -> str:
        """the system's name on the command line and in config.json"""
        ...

    @property
    def needs_cost(self) -> bool:
        """whether it can only learn in environments with a cost"""
        ...

    def __call__(
        self, config: C, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int, device: torch.device,
        *, compile: bool,
    ) -> Learner: ...  # fmt: skip


@runtime_checkable
class SeesPixels(Protocol):
    """A ``LearnerFactory`` whose learners take pictures for observations as well (``EnvShape.image``)."""

    @property
    def sees_pixels(self) -> bool: ...


@runtime_checkable
class GainsByCompiling(Protocol):
    """A ``LearnerFactory`` whose learners' updates were measured to be faster compiled, on a CPU, with some of its configs."""

    def gains_by_compiling(self, config: Any) -> bool: ...


def train(
    config: TrainConfig, learner: LearnerFactory[C], learner_config: C, budgets: tuple[CostBudget, ...] | None = None,
    *, resume: bool = False, callbacks: Sequence[Callback] = (),
) -> Path:  # fmt: skip
    """Train until ``total_steps`` and return the run folder: ``train(TrainConfig(env=...), ALGD, ALGDConfig())``.

    ``budgets`` replace those that the task declares (with ``resume`` they must be those of the run). With ``resume``
    the run in ``config.out`` goes on from its newest whole checkpoint: N + M steps are N, a resume and M, to the bit
    on a CPU with the same number of threads.

    Raises ``UserError`` for a configuration that cannot work, before anything is written, and for a fault on the way,
    after which the last checkpoint stands; ``Interrupted`` on SIGINT or SIGTERM, after a checkpoint.
    """
    config.validate()
    if resume and config.out is None:
        raise UserError("resuming needs the run folder: give it as --resume RUN.")
    setup = config.setup()
    setup = replace(setup, action_repeat=action_repeat_of(setup))
    config = replace(config, env=setup.name, env_kwargs=dict(setup.kwargs), action_repeat=setup.action_repeat)
    if env_spec(setup).pixels and not isinstance(learner, SeesPixels):
        raise UserError(f"{learner.system} has no encoder of pictures, which {config.env} gives: leave out {PIXELS}, or train mbdpo.")
    folder = config.out or default_folder(config)
    saved = run.read(folder) if resume else None
    if saved is None:
        run.require_new(folder)
    else:  # before the environment is looked at, which may be another one
        run.require_same_settings(saved, run.describe_settings(learner.system, config, learner_config), folder, run.OPERATIONAL)
    keep_freed_memory()
    use_threads(config.threads)
    device = config.resolve_device()
    compiled = bool(saved["resolved"]["compiled"]) if saved else compiles(config, learner, learner_config, device)
    with stop_on_signal() as stop:
        seed = stream(config.seed, ENVS)
        declared = run.budgets_of(saved) if saved else env_spec(setup).budgets
        budgets = declared if budgets is None else budgets
        setup = replace(setup, longest=longest_episode(budgets))
        envs = EnvBatch(
            setup, config.num_envs, seed=seed, processes=config.env_processes, needs_cost=learner.needs_cost, stop=stop
        )
        try:
            shape = envs.shape
            budgets = require_budgets(budgets, shape, setup.name)
            if config.eval_envs:
                require_second(setup)
            resolved = {"device": device.type, "threads": torch.get_num_threads(), "compiled": compiled}
            content = run.describe(learner.system, config, learner_config, shape, budgets, resolved)
            if saved:
                run.require_same(saved, content, folder)
            sizes = (config.replay_size, shape.observation, shape.action, shape.constraints)
            stored = torch.from_numpy(envs.observation).dtype  # bytes stay bytes
            replay = Replay(*sizes, num_envs=config.num_envs, device=device, dtype=stored)
            agent = learner(learner_config, shape, budgets, stream(config.seed, LEARNER), device, compile=compiled)
            first = None if saved else envs.reset()
            screen = Screen(config.total_steps, Loop.unit, budgets=budgets, quiet=config.quiet)
            with run.opened(folder, saved), RunLog(folder, screen) as log:
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
                for note in envs.notes():
                    log.say(f"note: {note}")
                if first is None:
                    driver.resume()
                else:
                    training.begin(first)
                run.write(folder, content)
                driver.run()
        finally:
            envs.close()
    return folder


def default_folder(config: TrainConfig) -> Path:
    """runs/<environment>-<seed>-<time>."""
    name = config.env.rsplit("/", 1)[-1].removesuffix("-v0")
    return Path("runs") / f"{name}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def require_budgets(budgets: tuple[CostBudget, ...], shape: EnvShape, env: str) -> tuple[CostBudget, ...]:
    """``budgets`` when there is one for each constraint, else ``UserError``."""
    if not shape.constraints and budgets:
        raise UserError(f"{env} has no cost that a budget could limit: leave out the cost flags.")
    if not budgets and shape.constraints:
        raise UserError(f"{env} declares no cost budget of its own: give one with --cost-limit.")
    if len(budgets) != shape.constraints:
        raise UserError(f"{env} has {shape.constraints} constraints, not {len(budgets)}: give one budget for each.")
    return budgets


def compiles(config: TrainConfig, learner: LearnerFactory[C], learner_config: C, device: torch.device) -> bool:
    """What ``--compile`` comes to: decided when a run starts and kept in config.json for when it is resumed.

    On a CPU auto compiles only where that was measured to win. Raises ``UserError`` for ``on`` without a compiler.
    """
    gains = device.type != "cpu" or (isinstance(learner, GainsByCompiling) and learner.gains_by_compiling(learner_config))
    without = 0 if config.catch_up else config.warmup_steps
    return pays_to_compile(config.compile, config.updates_per_step * (config.total_steps - without), gains, device)


def pays_to_compile(asked: Literal["auto", "on", "off"], updates: float, gains: bool, device: torch.device) -> bool:
    """Whether a run of so many updates is compiled; ``gains``: whether a long one is by auto. Raises ``UserError`` for ``on`` without a compiler."""
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++") if name)
    if asked == "on" and not compiler:
        raise UserError("--compile on needs a C++ compiler at run time and finds none: install one (apt-get install g++), or use off.")
    if asked != "auto" or not compiler:
        return asked == "on"
    return gains and updates >= (COMPILE_PAYS_AFTER if device.type == "cpu" else CUDA_COMPILE_PAYS_AFTER)
