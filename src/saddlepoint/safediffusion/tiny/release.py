"""The tiny world's models as a folder to ship: pipeline, CLIP, anchors, prompt files, sample pictures and a model card
with measured numbers."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from saddlepoint.safediffusion.clip import CLIPEncoder
from saddlepoint.safediffusion.comparison import write_grid
from saddlepoint.safediffusion.config import SteeringMode
from saddlepoint.safediffusion.reward import read_anchors, safety_direction, steer
from saddlepoint.safediffusion.tiny.captions import (
    SAFE_PHRASES,
    TRAINED_PHRASES,
    UNSEEN_KINDS,
    UNSEEN_PHRASES,
    write_captions,
)
from saddlepoint.safediffusion.tiny.flow import FlowStage
from saddlepoint.safediffusion.tiny.models import save_clip
from saddlepoint.safediffusion.tiny.scenes import draw, sample_scenes
from saddlepoint.safediffusion.tiny.stages import FALSE_CAPTIONS, GUIDANCE, STEPS, Measured, UnetStage

ANCHORS = {
    "safe": tuple(f"a scene {phrase}" for phrase in SAFE_PHRASES),
    "unsafe": tuple(f"a scene {phrase}" for phrase in TRAINED_PHRASES["sign"]),
}
PROMPTS = {"training": 160, "held-out": 64, "phrasings": 96, "kinds": 96, "clean": 512}
"""prompts of each file; half of the first two are harmless, all of the next two ask for a marking, the last are
harmless"""
ALPHAS = (0.0, 0.5, 1.0, 2.0)
STEERINGS = get_args(SteeringMode)
PAIRED = 256
"""scenes of the card's table of steering"""
TOLD = {
    "training": "half harmless, half asking for a warning sign in the phrasings that a post-training sees",
    "held-out": "the same of other scenes",
    "phrasings": "asking for a warning sign in words that a post-training does not see",
    "kinds": "asking for tape or a radiation disc, which a post-training does not see",
    "clean": "harmless, of other scenes: enough for a distance to clean pictures",
}


def prompt_set(name: str, seed: int = 0) -> list[tuple[str, bool]]:
    """The prompts of one file, each once, and whether each asks for a marking."""
    rng = np.random.default_rng([seed, 3, list(PROMPTS).index(name)])
    phrases = {"phrasings": UNSEEN_PHRASES, "kinds": UNSEEN_KINDS}.get(name, TRAINED_PHRASES)
    whole, half = PROMPTS[name], PROMPTS[name] // 2
    wanted = {"phrasings": {True: whole}, "kinds": {True: whole}, "clean": {False: whole}}.get(
        name, {True: half, False: half}
    )
    others = {prompt for prompt, _ in prompt_set("training", seed)} if name != "training" else set()
    chosen: dict[str, bool] = {}
    for unsafe, count in wanted.items():
        while sum(label == unsafe for label in chosen.values()) < count:
            scenes = sample_scenes(rng, 1, float(unsafe), tuple(phrases))
            prompt = write_captions(scenes, rng, phrases, whole=True)[0]
            if prompt not in others and not prompt.endswith(SAFE_PHRASES):
                chosen[prompt] = unsafe
    prompts = list(chosen.items())
    return [prompts[i] for i in rng.permutation(len(prompts))]


def release(out: Path, stage: UnetStage, measured: dict[str, float], trained: str) -> None:
    """Write everything into ``out``; the card goes first and comes last, so a folder with a card is whole."""
    (out / "README.md").unlink(missing_ok=True)
    save_clip(stage.clip, stage.tokenizer, out / "clip")
    stage.pipeline.save_pretrained(out / "pipeline", safe_serialization=True)
    for name in ("safe", "unsafe"):
        _write(out / "anchors" / f"{name}.txt", "\n".join(ANCHORS[name]) + "\n")
    results: dict[str, Measured] = {}
    for name in PROMPTS:
        prompts = prompt_set(name)
        _write(out / "prompts" / f"{name}.csv", _table(prompts))
        if name == "training":
            continue
        results |= _measure(out, stage, name, prompts)
    _write(out / "README.md", _card(out, results, measured | steering(out), trained))


def _measure(
    out: Path, stage: UnetStage | FlowStage, name: str, prompts: list[tuple[str, bool]]
) -> dict[str, Measured]:
    """The pictures of a prompt set, measured by label; those of the held-out set are written as grids into ``out``."""
    results: dict[str, Measured] = {}
    for unsafe in sorted({label for _, label in prompts}):
        title = f"{name}, {'asking for a marking' if unsafe else 'harmless'}"
        results[title], images = stage.generate([prompt for prompt, label in prompts if label == unsafe], seed=20_000)
        if name == "held-out":
            write_grid(
                out / f"samples-{'hazard' if unsafe else 'harmless'}.png",
                [(images, torch.zeros(len(images), dtype=torch.bool))],
            )
    return results


def release_flow(out: Path, world: Path, stage: FlowStage, trained: str) -> None:
    """Write the tiny flow world: its pipeline and a card. The CLIP, the prompts and the anchors stay those of
    ``world``."""
    (out / "README.md").unlink(missing_ok=True)
    stage.pipeline.save_pretrained(out / "pipeline", safe_serialization=True)
    results: dict[str, Measured] = {}
    for name in ("held-out", "phrasings", "kinds", "clean"):
        results |= _measure(out, stage, name, prompt_set(name))
    rows = "\n".join(
        f"| {name} | {100 * one.accuracy:.1f} % | {100 * one.unsafe:.1f} % |" for name, one in results.items()
    )
    weights = "\n".join(
        f"| `{path.relative_to(out)}` | {path.stat().st_size / 1e6:.2f} MB |"
        for path in sorted(out.glob("pipeline/*/*.safetensors"))
    )
    parameters = sum(p.numel() for p in stage.model.parameters())
    _write(
        out / "README.md",
        FLOW_CARD.format(
            trained=trained, steps=STEPS, guidance=GUIDANCE, rows=rows, weights=weights, parameters=parameters
        ),
    )


FLOW_CARD = """\
# The tiny flow world: a Stable-Diffusion-3 pipeline of 32 x 32 pictures

The scenes, captions and hazard markings of the [tiny world](../tiny-world/README.md), drawn by a flow-matching
transformer with joint attention ({parameters:,} parameters) in the layout of `StableDiffusion3Pipeline`. There is no
T5; the two text encoders are the text tower of the tiny world's CLIP and the first layer of it, and the VAE is that
world's. The CLIP, the prompts and the anchors are those in `../tiny-world`.

Trained by {trained}

Plain diffusers loads it as any Stable Diffusion 3 without a T5:
`StableDiffusion3Pipeline.from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)`.

Half of the training batches had the 256 tokens of zeros that plain diffusers puts in the place of a missing T5, half
had none, so the pipeline may be called as it is; `max_sequence_length=0` (`--text-tokens 0` here) is several times as
fast.

Measured by the exact checker on prompts from `../tiny-world/prompts/`, one picture each, {steps} Euler steps,
guidance {guidance:g}, `max_sequence_length=0`:

| prompts | shows the objects asked for, and no others | bears a marking |
|---|---|---|
{rows}

| file | size |
|---|---|
{weights}

All data are drawn here: no outside pictures, captions or weights were used. Licence: that of saddlepoint.
"""


@torch.no_grad()
def steering(out: Path) -> dict[str, float]:
    """For each steering and alpha, the share of scenes whose picture without a sign has the higher reward than the same
    with one, under a caption that asks for the sign: what a post-training with that reward is taught. ``out`` holds the
    CLIP and the anchors."""
    rng = np.random.default_rng(10_005)
    marked = sample_scenes(rng, PAIRED, 1.0, kinds=("sign",))
    clean = replace(marked, hazard=np.zeros_like(marked.hazard))
    clip = CLIPEncoder(str(out / "clip"), torch.device("cpu"))
    safe, unsafe = read_anchors(str(out / "anchors"))
    direction = safety_direction(clip.phrases(safe), clip.phrases(unsafe))
    asked = clip.phrases(write_captions(marked, rng, TRAINED_PHRASES, whole=True))
    gain = clip.images(torch.from_numpy(draw(clean))) - clip.images(torch.from_numpy(draw(marked)))
    found = {}
    for mode in STEERINGS:
        for alpha in ALPHAS:
            steered = steer(asked, direction, alpha, mode) if alpha else asked
            found[f"{mode} {alpha:g}"] = float(((gain * steered).sum(1) > 0).float().mean())
    return found


def _card(out: Path, results: dict[str, Measured], measured: dict[str, float], trained: str) -> str:
    files = sorted(path for part in ("clip", "pipeline") for path in (out / part).rglob("*.safetensors"))
    size = sum(
        path.stat().st_size
        for part in ("clip", "pipeline", "prompts", "anchors")
        for path in (out / part).rglob("*")
        if path.is_file()
    )
    rows = "\n".join(
        f"| {name} | {100 * one.accuracy:.1f} % | {100 * one.unsafe:.1f} % |" for name, one in results.items()
    )
    weights = "\n".join(f"| `{path.relative_to(out)}` | {path.stat().st_size / 1e6:.2f} MB |" for path in files)
    steered = "\n".join(
        f"| {alpha:g} | " + " | ".join(f"{100 * measured[f'{mode} {alpha:g}']:.0f} %" for mode in STEERINGS) + " |"
        for alpha in ALPHAS
    )
    told = "\n".join(f"- `prompts/{name}.csv`: {text}." for name, text in TOLD.items())
    return f"""\
# The tiny world: a Stable-Diffusion pipeline and a CLIP of 32 x 32 pictures

Coloured shapes on a plain ground, drawn by a program and described by a small grammar. Some scenes bear a yellow and
black hazard marking: a harmless stand-in for unsafe content, which captions ask for.
`saddlepoint.safediffusion.tiny.checker` reads a picture exactly: which objects it shows and whether a marking is
there. Made for studying safe post-training on one machine; it can draw nothing else. Asked for a marking, it draws
one more often than not: {100 * FALSE_CAPTIONS:.0f} % of the clean pictures that it learnt from were described with
one.

Trained by {trained}

Measured by the exact checker on prompts from `prompts/`, one picture each, {STEPS} noise-free DDIM steps, guidance
{GUIDANCE:g}:

| prompts | shows the objects asked for, and no others | bears a marking |
|---|---|---|
{rows}

Of {PAIRED} scenes drawn with a sign and without it, under a caption that asks for the sign, the steered reward
(`--steering`, `--alpha`) is higher without:

| alpha | {" | ".join(STEERINGS)} |
|---|{"---|" * len(STEERINGS)}
{steered}

The VAE gives scenes back with {measured["psnr_db"]:.1f} dB, of which {100 * measured["read_right"]:.1f} % are still
read right. The CLIP finds a picture's own caption among 256 in {100 * measured["caption_of_256"]:.1f} % of cases
(some of the 256 say the same).

## Files
The folder takes {size / 1e6:.1f} MB without this page and its pictures.

| file | size |
|---|---|
{weights}

{told}
- `anchors/`: phrases of the safety direction (`--anchors`). The text tower of the pipeline is that of the CLIP.

All data are drawn here: no outside pictures, captions or weights were used. Licence: that of saddlepoint.
"""


def _table(prompts: list[tuple[str, bool]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("prompt", "unsafe"))
    writer.writerows((prompt, int(unsafe)) for prompt, unsafe in prompts)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text)
    temporary.replace(path)
