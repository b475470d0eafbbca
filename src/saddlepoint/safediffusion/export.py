"""A finished run as files for plain diffusers: a whole pipeline folder, or the adapters alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from saddlepoint.files import beside
from saddlepoint.flags import parse
from saddlepoint.options import restore
from saddlepoint.safediffusion.adapters import ADAPTER, adapter_config
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.extras import quiet_libraries
from saddlepoint.safediffusion.families import FAMILIES, PipelineFamily
from saddlepoint.safediffusion.learner import load_weights, prepare_network
from saddlepoint.safediffusion.pipeline import Source, load_pipeline, open_source, source_files
from saddlepoint.safediffusion.start import SYSTEM
from saddlepoint.safediffusion.weights import changed_file, stored_weights
from saddlepoint.train import checkpoint
from saddlepoint.train import run as run_folder
from saddlepoint.types import UserError

ExportForm = Literal["pipeline", "lora", "kohya"]
KOHYA_FILE = "adapters.safetensors"


@dataclass(frozen=True)
class ExportFlags:
    """What to write for plain diffusers."""

    form: ExportForm = "pipeline"
    """a whole pipeline folder; or a folder with the adapters alone, as pipeline.load_lora_weights reads them (lora) or
    with the names of kohya's scripts, which other programs read (kohya, for Stable Diffusion and SDXL)"""
    pipeline: str = ""
    """where the run's start pipeline lies now, if it has moved; the adapters alone do without it"""


def export_command(args: list[str]) -> None:
    """`saddlepoint export RUN OUT [--form pipeline|lora|kohya]` for a run of this system."""
    if len(args) < 2 or args[0].startswith("-") or args[1].startswith("-"):
        raise UserError(
            "export needs the run folder and the folder to write: `saddlepoint export RUN OUT --form pipeline`."
        )
    flags = parse(ExportFlags, ExportFlags(), args[2:], "saddlepoint export RUN OUT").values
    quiet_libraries()
    export_run(Path(args[0]), Path(args[1]), flags.form, flags.pipeline)
    print(f"written: {args[1]}")


def export_run(run: Path, out: Path, form: ExportForm, pipeline: str = "") -> None:
    """Write the newest checkpoint of ``run`` into the new or empty folder ``out``: averaged weights where the run has
    them, each part in the precision that it was stored in. ``pipeline`` is the new place of a start pipeline that has
    moved. Raises ``UserError``."""
    out = out.resolve()  # "." has no name, and its temporary folder needs one
    settings, config = read_run(run)
    if form != "pipeline" and config.tune != "lora":
        raise UserError(f"{run} trained the whole network and has no adapters: use --form pipeline.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another.")
    if form != "pipeline":
        _export_adapters(run, out, form, config)
        return
    source = start_source(run, settings, pipeline)
    trained, note = _with_weights(run, source, settings, config)
    if note:
        print(f"warning: {note}")
    if "safety_checker" in trained.components:
        _guard(trained, source)
    _merge(getattr(trained, source.family.network), config)
    for part in source.models:
        getattr(trained, part).to(stored_weights(source.folder, part).dtype)
    _write_beside(out, lambda folder: trained.save_pretrained(folder, safe_serialization=True))


def _export_adapters(run: Path, out: Path, form: ExportForm, config: SafeDiffusionConfig) -> None:
    """They are in the checkpoint, and need nothing of the start pipeline."""
    import diffusers

    family = family_of_run(run)
    path, note = checkpoint.latest(run, checkpoint.LEARNER)
    if note:
        print(f"warning: {note}")
    prefix = "average." if config.ema else f"{family.network}."
    state = checkpoint.load_learner(path)
    adapters = {
        name.removeprefix(prefix).replace(f".{ADAPTER}.", "."): value
        for name, value in state.items()
        if name.startswith(prefix)
    }
    if form == "lora":
        named: dict[str, Any] = {f"{family.network}_lora_layers": adapters}
        named[f"{family.network}_lora_adapter_metadata"] = adapter_config(config, family.adapted).to_dict()
        save = getattr(diffusers, family.pipeline_class).save_lora_weights
        _write_beside(out, lambda folder: save(folder, safe_serialization=True, **named))
        return
    if family.network != "unet":
        raise UserError(
            f"--form kohya has no names for the layers of {family.title} that other programs agree on: use --form lora."
        )
    from diffusers.utils import convert_state_dict_to_kohya

    renamed: dict[str, Tensor] = convert_state_dict_to_kohya(
        {f"unet.{name}": value for name, value in adapters.items()}
    )
    _write_beside(
        out,
        lambda folder: save_file({name: value.contiguous() for name, value in renamed.items()}, folder / KOHYA_FILE),
    )


def load_trained(run: Path, pipeline: str = "") -> tuple[Any, str | None]:
    """The pipeline that ``run`` has trained, adapters merged in, its network in float32, on the CPU; and one sentence
    when newer checkpoints were damaged.

    ``pipeline`` is the new place of a start pipeline that has moved. Raises ``UserError``.
    """
    settings, config = read_run(run)
    source = start_source(run, settings, pipeline)
    trained, note = _with_weights(run, source, settings, config)
    _merge(getattr(trained, source.family.network), config)
    return trained, note


def read_run(run: Path) -> tuple[RunConfig, SafeDiffusionConfig]:
    """What a run was asked to do. Raises ``UserError`` when it is not a run of this system."""
    content = run_folder.read(run)
    if content["system"] != SYSTEM:
        raise UserError(f"{run} was trained with {content['system']}, not {SYSTEM}: it holds no text-to-image model.")
    where = run / "config.json"
    return restore(RunConfig, content["train"], where), restore(SafeDiffusionConfig, content["learner"], where)


def family_of_run(run: Path) -> PipelineFamily:
    """The family of its pipeline; runs of older versions, which do not say it, trained Stable Diffusion."""
    return FAMILIES[run_folder.read(run)["resolved"].get("family", "StableDiffusionPipeline")]


def start_source(run: Path, settings: RunConfig, pipeline: str = "") -> Source:
    """The pipeline that ``run`` started from, at its new place ``pipeline`` if it has moved. Raises ``UserError`` when
    it is no longer the same."""
    place = pipeline or settings.pipeline
    before = run_folder.read(run)["resolved"].get("weights", {}).get("pipeline")  # older runs did not keep it
    source = open_source(place, (before or {}).get("revision"))
    changed = changed_file(before, source_files(place, source.revision)) if before is not None else None
    if changed:
        raise UserError(
            f"the weights or configs of {place} have changed since {run} started from them ({changed}): restore them."
        )
    return source


def _with_weights(
    run: Path, source: Source, settings: RunConfig, config: SafeDiffusionConfig
) -> tuple[Any, str | None]:
    """The start pipeline with the run's newest weights in it, adapters still apart."""
    path, note = checkpoint.latest(run, checkpoint.LEARNER)
    state = checkpoint.load_learner(path)
    pipeline = load_pipeline(source)
    network = getattr(pipeline, source.family.network)
    prepare_network(network, config, settings.seed, source.family.adapted)
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    load_weights(learning, state, "average." if config.ema else f"{source.family.network}.")
    network.requires_grad_(False)
    return pipeline, note


def _guard(pipeline: Any, source: Source) -> None:
    """Give back the safety checker that the start pipeline came with, which training leaves out; a sentence where it
    cannot be had."""
    try:
        whole = load_pipeline(source, whole=True)
    except UserError as error:
        print(f"warning: the start pipeline's safety checker, if it has one, is left out: {error}")
        return
    if whole.safety_checker is not None:
        pipeline.register_modules(safety_checker=whole.safety_checker, feature_extractor=whole.feature_extractor)
        pipeline.register_to_config(requires_safety_checker=whole.config.requires_safety_checker)


def _merge(network: Any, config: SafeDiffusionConfig) -> None:
    """Add the adapters' products to the weights that they adapt, so that nothing of peft is left."""
    if config.tune == "lora":
        network.fuse_lora()
        network.unload_lora()


def _write_beside(out: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a folder beside ``out`` and rename it when it is whole; an ``out`` that is there is filled,
    for one may stand in it."""
    temporary = beside(out)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if out.exists():  # empty, as was checked
            for path in list(temporary.iterdir()):
                path.rename(out / path.name)
        else:
            temporary.rename(out)
    except OSError as error:
        raise UserError(
            f"the export to {out} could not be written ({error.strerror or error}): make room, or choose another"
            " folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
