"""From settings to a running pretraining: everything is checked and built before the first file is written."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import MBDPOConfig
from saddlepoint.mbdpo.tasks import Task, find_task, model_tasks, padded_shape
from saddlepoint.memory import keep_freed_memory
from saddlepoint.offline.config import OPERATIONAL, PretrainConfig
from saddlepoint.offline.dataset import Dataset
from saddlepoint.offline.evaluate import playable
from saddlepoint.offline.loop import Pretraining
from saddlepoint.offline.processes import Processes
from saddlepoint.options import truth_value
from saddlepoint.train import run as run_folder
from saddlepoint.train.contract import checked, checked_for
from saddlepoint.train.driver import RunDriver
from saddlepoint.train.log import RunLog
from saddlepoint.train.loop import LEARNER, stream
from saddlepoint.train.screen import Screen
from saddlepoint.train.signals import stop_on_signal
from saddlepoint.train.start import pays_to_compile
from saddlepoint.train.threads import use_threads
from saddlepoint.types import EnvShape, UserError


def pretrain(config: PretrainConfig, learner_config: MBDPOConfig, *, resume: bool = False) -> Path:
    """Learn from the data set until ``total_updates`` and return the run folder: ``pretrain(PretrainConfig(data=...), MBDPOConfig())``.

    With ``resume`` the run in ``config.out`` goes on from its newest whole checkpoint: N + M updates are N, a resume and M, to the bit on a CPU with the same
    number of threads and processes. Under ``accelerate launch`` several processes share each batch.

    Raises ``UserError`` for settings that cannot work, before anything is written, and for a fault on the way, after which the last checkpoint stands;
    ``Interrupted`` on SIGINT or SIGTERM, after a checkpoint.
    """
    config, learner_config, resume = checked(config), checked_for(MBDPO, learner_config), truth_value("resume", resume)
    if resume and config.out is None:
        raise UserError("resuming needs the run folder: give it as --resume RUN.")
    config = replace(config, data=str(Path(config.data).resolve()))
    folder = config.out or Path("runs") / f"pretrain-{Path(config.data).name}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    saved = run_folder.read(folder) if resume else None
    data = Dataset(Path(config.data))
    data.windows(learner_config.horizon)
    tasks, faults = playable(data, config)
    keep_freed_memory()
    processes = Processes(config.device)
    # After the processes, which set them too; a resumed run keeps its own, because they decide the last bits.
    use_threads(config.threads or (saved["resolved"]["threads"] if saved else 0))
    _require_even(learner_config, processes.count)
    if not resume and processes.main:
        run_folder.require_new(folder)
    processes.wait()
    shape = padded_shape(data.observation, data.action)
    compiled = saved["resolved"].get("compiled", False) if saved else _compiles(config, learner_config, processes.device)
    content = _describe(config, learner_config, shape, tasks, data, processes, compiled)
    if saved:
        require_same(saved, content, folder)
        content["tasks"] = saved["tasks"]  # environments may be missing on this machine that were there
    agent = MBDPO(learner_config, shape, (), stream(config.seed, LEARNER), processes.device, compile=compiled, tasks=model_tasks(data.tasks))
    agent.peers = processes
    evaluated = _evaluated(tasks, faults, config, data)
    screen = Screen(config.total_updates, Pretraining.unit, quiet=config.quiet, silent=not processes.main)
    with (
        stop_on_signal() as stop,
        run_folder.opened(folder, saved, main=processes.main),
        RunLog(folder if processes.main else None, screen) as log,
    ):
        training = Pretraining(config, data, agent, evaluated, processes, log, stop)
        driver = RunDriver(training, config.schedule(bool(evaluated)), folder, log, stop, peers=processes,
                           config_digest=run_folder.settings_digest(content, OPERATIONAL))
        _introduce(log, data, processes, agent, saved, content, faults, config)
        if saved:
            driver.resume()
        if processes.main and (note := run_folder.write(folder, content)):
            log.say(note)
        driver.run()
    return folder


def _compiles(config: PretrainConfig, learner_config: MBDPOConfig, device: torch.device) -> bool:
    """What ``--compile`` comes to; kept in config.json for when the run is resumed."""
    gains = device.type == "cpu" and MBDPO.gains_by_compiling(learner_config)  # with several tasks it was not measured on CUDA
    return pays_to_compile(config.compile, config.total_updates, gains, device)


def _require_even(config: MBDPOConfig, processes: int) -> None:
    """Raises ``UserError`` where several processes cannot share an update so that it is the same as of one."""
    if processes == 1:
        return
    if config.batch_size % processes:
        raise UserError(f"{processes} processes cannot share --batch-size {config.batch_size} evenly: change it.")
    if config.trains_score and (config.score_training == "released" or min(config.score_states, config.batch_size) % processes):
        raise UserError(f"{processes} processes cannot share the score's training evenly: give --score-training planner and --score-states a multiple of them.")
    if config.leak_task_gradient:
        raise UserError("--leak-task-gradient is for one process: leave it out, or run one.")


def _evaluated(tasks: tuple[Task, ...], faults: dict[str, str], config: PretrainConfig, data: Dataset) -> list[tuple[int, Task]]:
    if not config.eval_every:
        return []
    wanted = {find_task(data.tasks, name, data.folder, "--eval-tasks") for name in config.eval_tasks} or range(len(tasks))
    return [(number, task) for number, task in enumerate(tasks) if number in wanted and task.name not in faults]


def _introduce(
    log: RunLog, data: Dataset, processes: Processes, agent: MBDPO, saved: dict[str, Any] | None, content: dict[str, Any], faults: dict[str, str],
    config: PretrainConfig,
) -> None:  # fmt: skip
    parameters = sum(p.numel() for group in (agent.model_optimiser, agent.policy_optimiser) for g in group.param_groups for p in g["params"])
    log.say(f"{data.folder}: {len(data):,} episodes and {data.steps:,} steps of {len(data.tasks)} tasks")
    log.say(f"{parameters:,} learning parameters on {processes.device}")
    if faults and not config.eval_tasks:
        names = ", ".join(faults)
        log.say(f"note: not evaluated: {names} (of the first: {next(iter(faults.values()))})")
    for name in ("threads", "processes"):
        before, after = (saved or content)["resolved"][name], content["resolved"][name]
        if before != after:
            log.say(f"note: {after} {name} instead of {before}, so the last bits may differ")


def _describe(
    config: PretrainConfig, learner_config: MBDPOConfig, shape: EnvShape, tasks: tuple[Task, ...], data: Dataset, processes: Processes, compiled: bool
) -> dict[str, Any]:
    """The content of config.json, as it will be read back: that of a training run, with ``tasks``."""
    resolved = {"device": processes.device.type, "threads": torch.get_num_threads(), "processes": processes.count, "data_sha256": data.digest(),
                "compiled": compiled}  # fmt: skip
    content = {
        "format": run_folder.FORMAT, "system": MBDPO.system, "train": asdict(config), "learner": asdict(learner_config), "shape": shape._asdict(),
        "budgets": [], "resolved": resolved, "verb": "pretrain", "tasks": [task.to_json() for task in tasks],
    }  # fmt: skip
    return json.loads(json.dumps(content, default=str))


def require_pretraining(saved: dict[str, Any], folder: Path) -> None:
    """Raises ``UserError`` unless the config.json is of a pretraining run."""
    if saved["system"] != MBDPO.system or "tasks" not in saved:
        raise UserError(f"{folder} is not a run of `saddlepoint pretrain`: resume it with `saddlepoint train {saved['system']} --resume {folder}`.")


def require_same(saved: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises ``UserError`` naming the first thing in which a resumed run differs from the saved one."""
    require_pretraining(saved, folder)
    run_folder.require_same_settings(saved, now, folder, OPERATIONAL)
    if saved["resolved"]["data_sha256"] != now["resolved"]["data_sha256"]:
        raise UserError(f"{now['train']['data']} is not the data set that {folder} learns from, or was made anew: restore it, or start a new run with --out.")
    if saved["resolved"]["device"] != now["resolved"]["device"]:
        before, after = saved["resolved"]["device"], now["resolved"]["device"]
        raise UserError(f"{folder} was trained on {before}, not {after}: resume it on a machine with {before}.")
