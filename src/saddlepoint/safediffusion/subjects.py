"""What `saddlepoint evaluate` draws with: a pipeline, two of them, or a run beside the pipeline that it started from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saddlepoint.files import read_json
from saddlepoint.safediffusion.evaluate_flags import STEPS, EvaluateFlags
from saddlepoint.safediffusion.export import load_trained, read_run, start_source
from saddlepoint.safediffusion.families import Request
from saddlepoint.safediffusion.pipeline import Source, load_pipeline, open_source, source_files
from saddlepoint.safediffusion.tables import noise_schedule
from saddlepoint.train import checkpoint
from saddlepoint.types import UserError


@dataclass(frozen=True)
class Subject:
    """What is evaluated, before any model is loaded."""

    sides: dict[str, Callable[[], Any]]
    """title to how its pipeline is loaded"""
    origins: dict[str, str]
    """title to what it is, as the results say"""
    weights: dict[str, Any]
    """title to what tells it from others at the same place: digests of a pipeline's files, or of a run's checkpoint and
    of its start pipeline"""
    source: Source
    """that of the model that was trained or is evaluated; what it is compared with makes the same steps"""
    request: Request
    guidance: float
    clip: str
    folder: Path


def open_subject(place: str, flags: EvaluateFlags) -> Subject:
    """What ``place`` is. Raises ``UserError``."""
    assert flags.prompts is not None
    folder = Path(place)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        run, config = read_run(folder)
        source = start_source(folder, run, flags.pipeline)
        request = _request(flags, Request(flags.steps or config.steps, config.height, config.width, config.text_tokens))
        against = _comparable(flags.against, source, request)
        trained, _ = checkpoint.latest(folder, checkpoint.LEARNER)
        manifest = read_json(trained / checkpoint.MANIFEST, "a checkpoint's manifest")
        digests = {name: manifest["files"][name]["sha256"] for name in checkpoint.LEARNER}
        start = source_files(source.place, source.revision)
        before = against or source
        out = flags.out or folder / f"evaluation-{trained.name}-{flags.prompts.stem}"
        return Subject(
            {"before": lambda: load_pipeline(before), "after": lambda: load_trained(folder, flags.pipeline)[0]},
            {"before": before.place, "after": f"{folder} after epoch {trained.name}"},
            {
                "before": source_files(against.place, against.revision) if against else start,
                "after": digests,
                "start": start,
            },
            source,
            request,
            flags.guidance or config.guidance,
            config.clip,
            out,
        )
    if flags.pipeline:
        raise UserError(f"--pipeline does nothing here: it is for a run, and {place} is a pipeline. Leave it out.")
    source = open_source(place)
    request = _request(flags, Request(flags.steps or STEPS))
    name = f"evaluation-{flags.prompts.stem}"
    out = flags.out or (folder.with_name(f"{folder.name}-{name}") if folder.is_dir() else Path(name))
    guidance = flags.guidance or source.family.guidance
    weights = source_files(place, source.revision)
    against = _comparable(flags.against, source, request)
    if against is None:
        return Subject(
            {"pictures": lambda: load_pipeline(source)},
            {"pictures": place},
            {"pictures": weights},
            source,
            request,
            guidance,
            "",
            out,
        )
    sides = {"before": lambda: load_pipeline(against), "after": lambda: load_pipeline(source)}
    both = {"before": source_files(against.place, against.revision), "after": weights}
    return Subject(sides, {"before": against.place, "after": place}, both, source, request, guidance, "", out)


def _request(flags: EvaluateFlags, own: Request) -> Request:
    """What the flags ask for, in place of a run's own."""
    tokens = own.text_tokens if flags.text_tokens is None else flags.text_tokens
    return Request(own.steps, flags.height or own.height, flags.width or own.width, tokens)


def _comparable(place: str, source: Source, request: Request) -> Source | None:
    """``place`` opened, None where it is empty. Raises ``UserError`` when its network predicts something else than that
    of ``source``, or was trained with other noise: both go through the same steps."""
    if not place:
        return None
    against = open_source(place)
    if against.family is not source.family:
        raise UserError(
            f"{place} is {against.family.title} and {source.place} is {source.family.title}, so they cannot be"
            " compared: give another --against."
        )
    one, other = (each.configs["scheduler"] for each in (source, against))
    if source.family.flow:
        levels = [each.family.table(each.configs, request) for each in (source, against)]
        same = all(torch.equal(a, b) for a, b in zip(*levels, strict=True))
        if not same:
            raise UserError(
                f"{place} and {source.place} do not make the same steps (shift), so they cannot be compared: give"
                " another --against."
            )
        return against
    if one.get("prediction_type", "epsilon") != other.get("prediction_type", "epsilon"):
        raise UserError(
            f"{place} and {source.place} do not predict the same thing (prediction_type), so they cannot be compared:"
            " give another --against."
        )
    if not torch.equal(noise_schedule(one), noise_schedule(other)):
        raise UserError(
            f"{place} and {source.place} do not have the same noise schedule (betas), so they cannot be compared: give"
            " another --against."
        )
    return against
