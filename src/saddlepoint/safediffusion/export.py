"""A finished run as files for plain diffusers: a whole pipeline folder, or the adapters alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from saddlepoint.flags import parse
from saddlepoint.options import restore
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.extras import quiet_libraries
from saddlepoint.safediffusion.learner import load_weights, prepare_unet
from saddlepoint.safediffusion.pipeline import load_pipeline, weight_files
from saddlepoint.safediffusion.start import SYSTEM
from saddlepoint.train import checkpoint
from saddlepoint.train import run as run_folder
from saddlepoint.types import UserError

ExportForm = Literal["pipeline", "lora"]


@dataclass(frozen=True)
class ExportFlags:
    """What to write for plain diffusers."""

    form: ExportForm = "pipeline"
    """a whole pipeline folder, or a folder with the adapters alone (pipeline.load_lora_weights reads it)"""


def export_command(args: list[str]) -> None:
    """`saddlepoint export RUN OUT [--form pipeline|lora]` for a run of this system."""
    if len(args) < 2 or args[0].startswith("-") or args[1].startswith("-"):
        raise UserError("export needs the run folder and the folder to write: `saddlepoint export RUN OUT --form pipeline`.")
    flags = parse(ExportFlags, ExportFlags(), args[2:], "saddlepoint export RUN OUT").values
    quiet_libraries()
    export_run(Path(args[0]), Path(args[1]), flags.form)
    print(f"written: {args[1]}")


def export_run(run: Path, out: Path, form: ExportForm) -> None:
    """Write the newest checkpoint of ``run`` into the new or empty folder ``out``: averaged weights where the run has them. Raises ``UserError``."""
    out = out.resolve()  # "." has no name, and its temporary folder needs one
    settings, config = read_run(run)
    if form == "lora" and config.tune != "lora":
        raise UserError(f"{run} trained the whole UNet and has no adapters: use --form pipeline.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another.")
    pipeline, note = _with_weights(run, settings, config)
    if note:
        print(f"warning: {note}")
    if form == "pipeline":
        _guard(pipeline, settings.pipeline)
        _merge(pipeline, config)
        _write_beside(out, lambda folder: pipeline.save_pretrained(folder, safe_serialization=True))
        return
    from peft import get_peft_model_state_dict

    adapters: dict[str, Tensor] = get_peft_model_state_dict(pipeline.unet)
    metadata = pipeline.unet.peft_config["default"].to_dict()
    _write_beside(out, lambda folder: pipeline.save_lora_weights(folder, adapters, safe_serialization=True, unet_lora_adapter_metadata=metadata))


def load_trained(run: Path) -> tuple[Any, str | None]:
    """The pipeline that ``run`` has trained, adapters merged in, in float32 on the CPU; and one sentence when newer checkpoints were damaged.

    Raises ``UserError``.
    """
    settings, config = read_run(run)
    pipeline, note = _with_weights(run, settings, config)
    _merge(pipeline, config)
    return pipeline, note


def read_run(run: Path) -> tuple[RunConfig, SafeDiffusionConfig]:
    """What a run was asked to do. Raises ``UserError`` when it is not a run of this system."""
    content = run_folder.read(run)
    if content["system"] != SYSTEM:
        raise UserError(f"{run} was trained with {content['system']}, not {SYSTEM}: it holds no text-to-image model.")
    where = run / "config.json"
    return restore(RunConfig, content["train"], where), restore(SafeDiffusionConfig, content["learner"], where)


def _with_weights(run: Path, settings: RunConfig, config: SafeDiffusionConfig) -> tuple[Any, str | None]:
    """The start pipeline with the run's newest weights in it, adapters still apart."""
    before = run_folder.read(run)["resolved"].get("weights", {}).get("pipeline")  # older runs did not keep it
    if before is not None and before != weight_files(settings.pipeline):
        raise UserError(f"the weights of {settings.pipeline} have changed since {run} started from them: restore them.")
    path, note = checkpoint.latest(run, checkpoint.LEARNER)
    state = checkpoint.load_learner(path)
    pipeline = load_pipeline(settings.pipeline)
    prepare_unet(pipeline.unet, config, settings.seed)
    learning = {name: p for name, p in pipeline.unet.named_parameters() if p.requires_grad}
    load_weights(learning, state, "average." if config.ema else "unet.")
    pipeline.unet.requires_grad_(False)
    return pipeline, note


def _guard(pipeline: Any, source: str) -> None:
    """Give back the safety checker that the start pipeline came with, which training leaves out; a sentence where it cannot be had."""
    try:
        whole = load_pipeline(source, whole=True)
    except UserError as error:
        print(f"warning: the start pipeline's safety checker, if it has one, is left out: {error}")
        return
    if whole.safety_checker is not None:
        pipeline.register_modules(safety_checker=whole.safety_checker, feature_extractor=whole.feature_extractor)
        pipeline.register_to_config(requires_safety_checker=whole.config.requires_safety_checker)


def _merge(pipeline: Any, config: SafeDiffusionConfig) -> None:
    """Add the adapters' products to the weights that they adapt, so that nothing of peft is left."""
    if config.tune == "lora":
        pipeline.unet.fuse_lora()
        pipeline.unet.unload_lora()


def _write_beside(out: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a folder beside ``out`` and rename it when it is whole; an ``out`` that is there is filled, for one may stand in it."""
    temporary = out.with_name(f".{out.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if out.exists():  # empty, as was checked
            for path in list(temporary.iterdir()):
                path.rename(out / path.name)
        else:
            temporary.rename(out)
    except OSError as error:
        raise UserError(f"the export to {out} could not be written ({error.strerror or error}): make room, or choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
