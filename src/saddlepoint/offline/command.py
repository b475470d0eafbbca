"""`saddlepoint pretrain mbdpo ...`"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from saddlepoint.flags import Parsed, parse_with_file
from saddlepoint.mbdpo.config import PRESETS, MBDPOConfig
from saddlepoint.mbdpo.idle import COST_OPTIONS
from saddlepoint.offline.config import OPERATIONAL, PretrainConfig
from saddlepoint.offline.pretrain import pretrain, require_pretraining
from saddlepoint.options import chosen_preset, flag, restore
from saddlepoint.train import run as run_folder
from saddlepoint.types import UserError

PROG = "saddlepoint pretrain mbdpo"
OF_TASKS = frozenset({"task_embedding", "leak_task_gradient"})
"""options that act with several tasks alone, as here"""
IDLE = {"gamma": "each task has the discount of its own episodes"} | dict.fromkeys(COST_OPTIONS, "costs are not part of the data")
"""options that do nothing here, and why"""


@dataclass(frozen=True)
class Launch:
    """Where settings come from."""

    preset: str = "default"
    """named settings of MBDPO, which other flags change"""
    config: Path | None = None
    """a JSON file of settings, named as the flags are, which flags given here override"""
    resume: Path | None = None
    """run folder to go on with; all is taken from it: only flags that change no result, such as --total-updates, may
    be given"""


@dataclass(frozen=True)
class Flags:
    """Learn a world model of several tasks from stored episodes; `accelerate launch -m saddlepoint.cli pretrain
    mbdpo ...` uses several processes."""

    launch: Launch = field(default_factory=Launch)
    run: PretrainConfig = field(default_factory=PretrainConfig)
    system: MBDPOConfig = field(default_factory=MBDPOConfig)


def pretrain_command(args: list[str]) -> None:
    """Everything after `saddlepoint pretrain`. Raises ``UserError``; ``Interrupted`` after a checkpoint."""
    if not args or args[0] != "mbdpo":
        raise UserError("pretraining is for world models: use `saddlepoint pretrain mbdpo --data FOLDER ...`, with --help for its flags.")
    parsed = parse_with_file(Flags, Flags(), args[1:], PROG)
    resuming = parsed.values.launch.resume is not None
    config, learner_config = _resumed(parsed) if resuming else _fresh(parsed)
    folder = pretrain(config, learner_config, resume=resuming)
    if os.environ.get("RANK", "0") == "0":  # of several processes one says it
        print(f"finished: {folder}; look at a task with `saddlepoint evaluate {folder} --task NAME`")


def _fresh(parsed: Parsed) -> tuple[PretrainConfig, MBDPOConfig]:
    base = chosen_preset(parsed.values.launch.preset, PRESETS)
    for name, reason in IDLE.items():
        if name in parsed.given:
            raise UserError(f"{flag(name)} does nothing here: {reason}. Leave it out.")
    learner_config = parsed.over(parsed.values.system, base)
    learner_config.refuse_idle(parsed.given - OF_TASKS)
    return parsed.values.run, learner_config


def _resumed(parsed: Parsed) -> tuple[PretrainConfig, MBDPOConfig]:
    folder: Path = parsed.values.launch.resume
    parsed.refuse_beside_resume(parsed.given - (OPERATIONAL - {"out"}) - {"resume"})
    saved = run_folder.read(folder)
    require_pretraining(saved, folder)
    where = folder / "config.json"
    config = parsed.over(parsed.values.run, replace(restore(PretrainConfig, saved["train"], where), out=folder))
    return config, restore(MBDPOConfig, saved["learner"], where)
