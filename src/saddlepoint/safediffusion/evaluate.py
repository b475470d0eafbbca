"""`saddlepoint evaluate RUN|PIPELINE --prompts FILE ...` for text-to-image models: the same prompts from the same
noise, before against after."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saddlepoint.files import FileFault, new_folder, read_json, write_json
from saddlepoint.flags import Parsed, parse
from saddlepoint.foreign import foreign
from saddlepoint.memory import keep_freed_memory
from saddlepoint.safediffusion.clip import CLIPEncoder, check_clip
from saddlepoint.safediffusion.comparison import COLUMNS, PAIRS, Number, as_json, mean_of, sum_of, table, write_grid
from saddlepoint.safediffusion.distance import Moments, RunningMoments, few_pictures, frechet_distance, read_folder
from saddlepoint.safediffusion.evaluate_flags import EvaluateFlags
from saddlepoint.safediffusion.extras import quiet_libraries, require_extra
from saddlepoint.safediffusion.generation import SETTINGS, EvaluationPrompt, pictures, read_table, unused_columns
from saddlepoint.safediffusion.harm import HarmCategories, read_harms
from saddlepoint.safediffusion.nudity import NudityDetections, require_nudenet
from saddlepoint.safediffusion.pipeline import source_files
from saddlepoint.safediffusion.reward import Alignment, featured, load_plugin, scored
from saddlepoint.safediffusion.rollout import Studio, build_studio
from saddlepoint.safediffusion.subjects import Subject, open_subject
from saddlepoint.safediffusion.worlds import World, load_world, names_world
from saddlepoint.train.threads import use_threads
from saddlepoint.types import UserError


def is_text_to_image(source: Path) -> bool:
    """Whether this is a pipeline, a checkpoint file of one, or a run of this system."""
    if (source / "model_index.json").is_file() or (source.is_file() and source.suffix in (".safetensors", ".ckpt")):
        return True
    try:
        return read_json(source / "config.json", "a configuration").get("system") == "safediffusion"
    except FileFault:
        return False


def recognises(source: str, args: list[str]) -> bool:
    """Whether `saddlepoint evaluate SOURCE ...` means pictures: a pipeline's folder, or with --prompts a hub id, and whatever else is no run folder."""
    return any(word.split("=")[0] == "--prompts" for word in args) or is_text_to_image(Path(source))


def evaluate_command(source: str, args: list[str]) -> None:
    """`saddlepoint evaluate SOURCE ...`: ``source`` is a run folder, a pipeline folder or a pipeline's hub id. Raises
    ``UserError``."""
    parsed: Parsed = parse(EvaluateFlags, EvaluateFlags(), args, "saddlepoint evaluate RUN")
    flags: EvaluateFlags = parsed.values
    flags.validate()
    flags.refuse_idle(parsed.given)
    quiet_libraries()
    keep_freed_memory()
    use_threads(flags.threads)
    out, sides, note = evaluate(source, flags)
    from rich.console import Console

    Console().print(table(sides))
    if note:
        print(note)
    print(f"written: {out / 'results.json'} and {out / 'grid.png'}")


def evaluate(source: str, flags: EvaluateFlags) -> tuple[Path, dict[str, dict[str, Number]], str]:
    """Draw, measure and write. Returns the folder of the results, the numbers of each model, and remarks (or nothing).

    Raises ``UserError`` before a model is loaded for everything that can be seen without one.
    """
    assert flags.prompts is not None
    require_extra()
    prompts = read_table(flags.prompts)[: flags.limit or None]
    subject = open_subject(source, flags)
    world = None if flags.checker == "none" else load_world("--checker", flags.checker)
    if world is not None:
        foreign("--checker", world.require, [prompt.text for prompt in prompts])
    if "nudity" in flags.measures:
        require_nudenet()
    harms = read_harms(flags.harms) if "inappropriate" in flags.measures else {}
    clip_source = flags.clip or subject.clip
    if flags.uses_clip:
        if not clip_source:
            raise UserError("these measures need a CLIP: give --clip a folder in transformers' layout, or a hub id.")
        check_clip(clip_source)
    if flags.distance_to and sum(not prompt.unsafe for prompt in prompts) < 2:
        raise UserError(
            "--distance-to compares pictures of prompts not labelled unsafe, and there are not two of them: give"
            " others, or leave it out."
        )
    subject.source.check(subject.request)
    encode = load_plugin("--encoder", flags.encoder) if flags.distance_to and flags.encoder != "clip" else None
    kept = subject.folder / "pictures"
    settings = _settings(source, flags, subject, prompts, clip_source if flags.uses_clip else "")
    _open_folder(subject.folder, kept, settings)

    device = flags.resolve_device()
    clip = CLIPEncoder(clip_source, device) if flags.uses_clip else None
    judges = _judges(flags, clip, harms, world)
    notes = (
        [f"the columns {', '.join(unused)} of {flags.prompts} are not used"]
        if (unused := unused_columns(flags.prompts))
        else []
    )
    notes += subject.source.remarks(subject.guidance)
    if clip and (cut := clip.cut([prompt.text for prompt in prompts])):
        notes.append(cut)
    features: Callable[[Tensor], Tensor] | None = None
    reference: Moments | None = None
    if flags.distance_to:
        features = partial(featured, encode, "--encoder") if encode else _required(clip).images
        reference = _reference(flags, features)
    numbers: dict[str, dict[str, Number]] = {}
    values: dict[str, dict[str, Tensor]] = {}
    shown: list[tuple[Tensor, Tensor]] = []
    for side, load in subject.sides.items():
        studio = build_studio(load().to(device), subject.request, subject.guidance, 0.0, device)
        if cut := studio.embeddings.cut([prompt.text for prompt in prompts]):
            notes.append(f"{side}: {cut}")
        found, running, samples = _measure(studio, prompts, flags, subject, kept, side, judges, features)
        values[side] = found
        numbers[side] = _summary(found, prompts, {TEXT_SCORE, *(world.measures if world else ())})
        if reference is not None:
            moments = running.moments()
            numbers[side]["Frechet distance to clean pictures"] = Number(
                frechet_distance(moments, reference), None, moments.pictures
            )
            if remark := few_pictures(moments, reference):
                notes.append(f"{side}: {remark}")
        shown.append((samples, _flagged(found)[: len(samples)]))
    per_prompt = [
        {"prompt": prompt.text, "unsafe": prompt.unsafe}
        | {side: {name: float(of[name][i]) for name in of} for side, of in values.items()}
        for i, prompt in enumerate(prompts)
    ]
    judged = "nudity" in flags.measures or "inappropriate" in flags.measures
    if not judged:
        notes.append("no detector was asked for, so no picture of the grid is blurred")
    content = {
        "settings": settings,
        "notes": notes,
        "numbers": {side: as_json(of) for side, of in numbers.items()},
        "pictures": per_prompt,
    }
    write_json(subject.folder / "results.json", content)
    write_grid(subject.folder / "grid.png", shown)
    return subject.folder, numbers, "; ".join(notes)


def _settings(
    source: str, flags: EvaluateFlags, subject: Subject, prompts: list[EvaluationPrompt], clip: str
) -> dict[str, Any]:
    """All that the results depend on, as it will be read back."""
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    resolved = {
        **subject.request._asdict(),
        "guidance": subject.guidance,
        "device": flags.resolve_device().type,
        "clip": clip,
        "clip_weights": source_files(clip) if clip else {},
        "models": subject.origins,
        "weights": subject.weights,
        "prompts_sha256": digest,
    }
    return json.loads(json.dumps({"source": source} | asdict(flags) | resolved, default=str))


TEXT_SCORE = "CLIP text score"
DRAWN_BY = (
    "models",
    "weights",
    "prompts_sha256",
    "steps",
    "height",
    "width",
    "text_tokens",
    "guidance",
    "batch",
    "seed",
)
"""settings that pictures depend on; measures may be chosen anew for pictures that are there"""


def _open_folder(out: Path, kept: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or take up an earlier evaluation's of the same pictures. Raises ``UserError`` when it holds
    something else."""
    path = kept / SETTINGS
    if path.is_file():
        before = read_json(path, "what an evaluation's pictures are drawn by", advice="choose another --out")
        if any(before.get(name) != settings[name] for name in DRAWN_BY):
            raise UserError(
                f"{out} holds an evaluation of other pictures (models, prompts, steps, guidance, batch or seed):"
                " choose another --out."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another --out.")
    with new_folder(kept) as folder:  # of two evaluations that start at once, one has it
        write_json(folder / SETTINGS, {name: settings[name] for name in DRAWN_BY})


def _judges(flags: EvaluateFlags, clip: CLIPEncoder | None, harms: dict[str, list[str]], world: World | None) -> dict[str, Any]:
    """Measures of single pictures, by the words of the table."""
    judges: dict[str, Any] = {}
    if "nudity" in flags.measures:
        judges["NudeNet detections"] = NudityDetections(
            flags.nudity_threshold, flags.nudity_classes, flags.nudity_model
        )
    if "inappropriate" in flags.measures:
        judges["inappropriate"] = HarmCategories(_required(clip), harms)
    if "alignment" in flags.measures:
        judges[TEXT_SCORE] = Alignment(_required(clip))
    return judges if world is None else judges | dict(world.measures)


def _reference(flags: EvaluateFlags, features: Callable[[Tensor], Tensor]) -> Moments:
    """Moments of the clean pictures' features."""
    running, name = RunningMoments(), flags.distance_to
    clean = iter(load_world("--distance-to", name).clean(flags.seed) if names_world(name) else read_folder(Path(name), flags.batch))
    while (images := foreign("--distance-to", next, clean, None)) is not None:
        running.add(features(images))
    return running.moments()


def _measure(
    studio: Studio,
    prompts: list[EvaluationPrompt],
    flags: EvaluateFlags,
    subject: Subject,
    kept: Path,
    side: str,
    judges: dict[str, Any],
    features: Callable[[Tensor], Tensor] | None,
) -> tuple[dict[str, Tensor], RunningMoments, Tensor]:
    """Each measure of each picture (prompts,), moments of the harmless ones' features, and the first pictures for a
    grid."""
    found: dict[str, Tensor] = {}
    running = RunningMoments()
    first: dict[int, Tensor] = {}
    done = 0
    for places, images in pictures(studio, prompts, subject.guidance, flags.batch, flags.seed, kept, side):
        texts = [prompts[i].text for i in places]
        for name, judge in judges.items():
            for part, of in _named(name, judge, images, texts).items():
                found.setdefault(part, torch.zeros(len(prompts)))[places] = of.cpu()
        wanted = [j for j, i in enumerate(places) if not prompts[i].unsafe]
        if features is not None and wanted:
            running.add(features(images[wanted]))
        first |= {i: image for i, image in zip(places, images, strict=True) if i < COLUMNS * PAIRS}
        done += len(places)
        if sys.stdout.isatty() or done == len(prompts):
            print(
                f"\r{side}: {done:,} of {len(prompts):,} pictures", end="" if done < len(prompts) else "\n", flush=True
            )
    return found, running, torch.stack([first[i] for i in sorted(first)])


def _named(name: str, judge: Any, images: Tensor, texts: list[str]) -> dict[str, Tensor]:
    """A judge's numbers for some pictures; that of harms has one for each category and one for any."""
    if isinstance(judge, HarmCategories):
        classes = judge(images, texts)
        return {"inappropriate (CLIP)": classes.sum(1)} | {
            f"  {harm}": classes[:, i] for i, harm in enumerate(judge.names)
        }
    return {name: scored(judge, name, images, texts)}


def _summary(found: dict[str, Tensor], prompts: list[EvaluationPrompt], apart: set[str]) -> dict[str, Number]:
    """Means over all pictures, and, of the measures ``apart``, those of prompts labelled unsafe and of others where there are both."""
    unsafe = torch.tensor([bool(prompt.unsafe) for prompt in prompts])
    numbers: dict[str, Number] = {}
    for name, values in found.items():
        if name == "NudeNet detections":
            numbers["NudeNet detections, sum"] = sum_of(values)
            numbers["pictures with a NudeNet detection"] = mean_of((values > 0).double())
            continue
        numbers[name] = mean_of(values)
        if (
            name in apart
            and bool(unsafe.any())
            and not bool(unsafe.all())
        ):
            numbers[f"  {name}, unsafe prompts"] = mean_of(values[unsafe])
            numbers[f"  {name}, other prompts"] = mean_of(values[~unsafe])
    return numbers


def _flagged(found: dict[str, Tensor]) -> Tensor:
    """Which pictures must be blurred in a report: those with a detection, and those judged inappropriate. (prompts,)
    bool."""
    count = len(next(iter(found.values()))) if found else COLUMNS * PAIRS
    flagged = torch.zeros(count, dtype=torch.bool)
    for name in ("NudeNet detections", "inappropriate (CLIP)"):
        if name in found:
            flagged |= found[name] > 0
    return flagged


def _required(clip: CLIPEncoder | None) -> CLIPEncoder:
    assert clip is not None  # ``uses_clip`` says when there is one
    return clip
