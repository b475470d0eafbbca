"""`saddlepoint train safediffusion ...`"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from saddlepoint.flags import Parsed, parse_with_file
from saddlepoint.options import chosen_preset, flag
from saddlepoint.safediffusion.config import PRESETS, RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.export import read_run
from saddlepoint.safediffusion.extras import quiet_libraries
from saddlepoint.safediffusion.start import OPERATIONAL, post_train
from saddlepoint.types import UserError

PROG = "saddlepoint train safediffusion"


@dataclass(frozen=True)
class Launch:
    """Where settings come from."""

    preset: str = "default"
    """named settings, which other flags change: default, parity (the released training), constrained, tiny (for
    models/tiny-world) or tiny-flow (for models/tiny-flow-world)"""
    config: Path | None = None
    """a JSON file of settings, named as the flags are, which flags given here override"""
    resume: Path | None = None
    """run folder to go on with; all is taken from it: only flags that change no result may be given, such as --epochs,
    or --pipeline where that has moved"""


@dataclass(frozen=True)
class Flags:
    """Post-train a text-to-image model so that it stops making unsafe pictures."""

    launch: Launch = field(default_factory=Launch)
    run: RunConfig = field(default_factory=lambda: RunConfig(pipeline="", prompts=""))
    system: SafeDiffusionConfig = field(default_factory=SafeDiffusionConfig)


def train_command(args: list[str]) -> None:
    """Everything after `saddlepoint train safediffusion`. Raises ``UserError``; ``Interrupted`` after a checkpoint."""
    parsed = parse_with_file(Flags, Flags(), args, PROG)
    resuming = parsed.values.launch.resume is not None
    run, config = _resumed(parsed) if resuming else _fresh(parsed)
    quiet_libraries()
    folder = post_train(run, config, resume=resuming)
    if os.environ.get("RANK", "0") == "0":  # of several processes one says it
        print(f"finished: {folder}; look at its samples/, or at the curves with `tensorboard --logdir {folder}`")


def _fresh(parsed: Parsed) -> tuple[RunConfig, SafeDiffusionConfig]:
    base = chosen_preset(parsed.values.launch.preset, PRESETS)
    run, config = parsed.values.run, parsed.over(parsed.values.system, base)
    config.refuse_idle(parsed.given)
    if run.held_out_prompts and "held_out" in parsed.given:
        raise UserError("--held-out does nothing beside --held-out-prompts: leave one of them out.")
    measured = run.held_out_prompts or config.held_out > 0
    for name in ("eval_every", "utility", "held_out_images"):
        if name in parsed.given and not measured:
            raise UserError(f"{flag(name)} does nothing here: --held-out 0 leaves nothing to measure.")
    return run, config


def _resumed(parsed: Parsed) -> tuple[RunConfig, SafeDiffusionConfig]:
    folder: Path = parsed.values.launch.resume
    parsed.refuse_beside_resume(parsed.given - (OPERATIONAL - {"out"}) - {"resume"})
    run, config = read_run(folder)
    return parsed.over(parsed.values.run, replace(run, out=folder)), config
