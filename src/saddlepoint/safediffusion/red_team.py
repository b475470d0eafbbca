"""`saddlepoint red-team PIPELINE ...`: words that make a pipeline draw unsafe pictures and that no prompt of a file has, and prompts and anchors with them.

Post-training removes what its prompts call for and little more. The safety direction of the reward knows further words: those of the CLIP's own vocabulary
whose addition moves prompts furthest to the unsafe side. The pipeline then draws prompts with each of them, and those stay whose pictures are unsafe.
Anchors need them as much as prompts do: projected off a direction that knows signs alone, "with warning tape" keeps its tape, and pictures with one are
rewarded for it.
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saddlepoint.flags import parse
from saddlepoint.safediffusion.clip import BATCH, CLIPEncoder, check_clip, read_phrases
from saddlepoint.safediffusion.extras import quiet_libraries, require_extra
from saddlepoint.safediffusion.pipeline import denoising_table, load_pipeline, scheduler_config
from saddlepoint.safediffusion.prompts import Prompt, read_prompts
from saddlepoint.safediffusion.reward import (
    Score,
    anchored_costs,
    embed_anchors,
    load_plugin,
    read_anchors,
    require_anchors,
    scored,
)
from saddlepoint.safediffusion.rollout import DenoisingPolicy, Noise, Studio
from saddlepoint.types import UserError

NOISE = 104
"""the stream of its pictures' noise, apart from those of training and evaluation"""
CHOICE = 105
"""the stream that chooses prompts"""
CARRIERS = 16
"""harmless prompts to which the words that do best are added once more; the whole vocabulary is added to one"""
FINALISTS = 8
"""times the shortlist: words that are added to all of those"""


@dataclass(frozen=True)
class RedTeamFlags:
    """Find words that make a pipeline's pictures unsafe, and write prompts and anchors with them, to be post-trained on."""

    prompts: Path | None = None
    """the prompts that there are: .csv (columns prompt and, optionally, unsafe), .txt or .jsonl; words are added to those not labelled unsafe, and put
    in the place of others in those that are"""
    clip: str = "openai/clip-vit-large-patch14"
    """the CLIP whose words are tried, and of the safety direction: a folder or a hub id"""
    anchors: str = "compact"
    """phrases of the safety direction: compact, scaled, unsafe-only, or a folder with unsafe.txt and optionally safe.txt"""
    cost: str = "probability"
    """what judges the pictures: probability, coordinate, or module:name of a detector, as of `saddlepoint train safediffusion`"""
    words: Path | None = None
    """a text file of words or phrases to try, one a line, instead of the CLIP's vocabulary"""
    shortlist: int = 32
    """words that are drawn: those that move prompts furthest to the unsafe side of the direction"""
    pictures: int = 16
    """pictures of each of them"""
    least: float = 0.1
    """a word stays when the mean cost of its pictures lies at least this far above that of the same prompts without it"""
    count: int = 0
    """prompts to write beside those that there are; 0 writes as many as those"""
    steps: int = 50
    """denoising steps"""
    guidance: float = 5.0
    """classifier-free guidance; 1 is none"""
    batch: int = 16
    """pictures drawn at once"""
    seed: int = 0
    """of the noise and of the choice of prompts"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the models live; auto takes CUDA if there is one"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""
    out: Path | None = None
    """folder to write, which must not exist yet: prompts.csv for --prompts, with the column word beside prompt and unsafe, and anchors for --anchors"""

    def validate(self) -> None:
        """Raises ``UserError`` for what needs no model to be seen."""
        if self.prompts is None or self.out is None:
            raise UserError("red-team needs prompts to start from and a folder to write: give --prompts FILE and --out FOLDER.")
        if self.out.exists():
            raise UserError(f"{self.out} exists: choose another --out.")
        for name in ("shortlist", "pictures", "batch"):
            if vars(self)[name] < 1:
                raise UserError(f"--{name} must be at least 1, not {vars(self)[name]}.")
        if self.count < 0 or self.seed < 0 or self.threads < 0 or not 0 <= self.guidance < float("inf"):
            raise UserError("--count, --seed, --threads and --guidance must be finite and not negative.")
        if not 0 < self.least < float("inf"):
            raise UserError(f"--least must be finite and greater than 0, not {self.least}.")
        if self.cost not in ("probability", "coordinate") and ":" not in self.cost:
            raise UserError(f"--cost must be probability, coordinate or the module:name of your own, not {self.cost!r}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto.")


class Found(NamedTuple):
    """A word that was drawn."""

    word: str
    shift: float
    """by how much it moves prompts along the safety direction; below 0 is towards the unsafe side"""
    excess: float
    """mean cost of its pictures less that of the same prompts without it"""


class Gap(NamedTuple):
    """A prompt that wants a word."""

    before: list[str]
    after: list[str]

    def filled(self, word: str) -> str:
        return " ".join([*self.before, word, *self.after])


def red_team_command(args: list[str]) -> None:
    """`saddlepoint red-team PIPELINE ...`. Raises ``UserError``."""
    helping = args[:1] in (["-h"], ["--help"])
    if not args or (args[0].startswith("-") and not helping):
        raise UserError("red-team needs the pipeline first: `saddlepoint red-team PIPELINE --prompts FILE --out FOLDER`.")
    flags = parse(RedTeamFlags, RedTeamFlags(), args if helping else args[1:], "saddlepoint red-team PIPELINE").values
    quiet_libraries()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    found = red_team(args[0], flags)
    for each in sorted(found, key=lambda each: -each.excess):
        kept = "" if each.excess >= flags.least else "   left out"
        print(f"{each.word:<20} shift {each.shift:+.3f}   cost of its pictures {each.excess:+.3f}{kept}")
    print(f"written: {flags.out}; read it, then train with --prompts {flags.out / 'prompts.csv'} --anchors {flags.out / 'anchors'}")


def red_team(pipeline: str, flags: RedTeamFlags) -> list[Found]:
    """Search, draw and write ``flags.out``. Returns the words that were drawn. Raises ``UserError``, before a model is loaded where that can be."""
    require_extra()
    flags.validate()
    assert flags.prompts is not None
    assert flags.out is not None
    prompts = read_prompts(flags.prompts)
    harmless = [prompt.text for prompt in prompts if not prompt.unsafe]
    if not harmless:
        raise UserError(f"all prompts of {flags.prompts} are labelled unsafe: red-team adds words to harmless ones.")
    check_clip(flags.clip)
    require_anchors(flags.anchors, flags.cost)
    own: Score | None = load_plugin("--cost", flags.cost) if ":" in flags.cost else None
    candidates = None if flags.words is None else read_phrases(flags.words)
    if candidates == []:
        raise UserError(f"the file {flags.words} of --words cannot be found or holds no word: give one a line.")
    table = denoising_table(scheduler_config(pipeline), flags.steps)
    device = torch.device("cuda" if flags.device == "cuda" or (flags.device == "auto" and torch.cuda.is_available()) else "cpu")

    clip = CLIPEncoder(flags.clip, device)
    anchors = embed_anchors(clip, flags.anchors)
    cost = own or anchored_costs(clip, anchors)[flags.cost]
    order = np.random.default_rng([flags.seed, CHOICE]).permutation(len(harmless))
    carriers = [harmless[i] for i in order[:CARRIERS]]
    known = " ".join(prompt.text.lower() for prompt in prompts).split()
    fresh = [word for word in dict.fromkeys(candidates or clip.words()) if word.lower() not in known]
    if not fresh:
        raise UserError(f"{flags.prompts} has every word that there is to try: give others with --words.")
    shifts = shortlist(clip, anchors.direction, fresh, carriers, flags.shortlist)
    loaded = load_pipeline(pipeline).to(device)
    studio = Studio(loaded, DenoisingPolicy(loaded.unet, table, flags.guidance, 1.0, device, None))
    found = draw_words(studio, cost, shifts, carriers, flags)
    words = [each.word for each in found if each.excess >= flags.least]
    if not words:
        most = max(each.excess for each in found)
        raise UserError(
            f"no word makes the pictures unsafe by --least {flags.least:g} (the most was {most:.3g}), so nothing is written: lower it, or raise --shortlist."
        )
    pairs = combine(gaps(clip, anchors.direction, prompts), words, flags.count or len(prompts), flags.seed)
    safe, unsafe = read_anchors(flags.anchors)
    own_gaps = gaps(clip, anchors.direction, [Prompt(phrase, True) for phrase in unsafe])
    more = [gap.filled(word) for word in words for gap in own_gaps]
    _write(flags.out, prompts, pairs, safe, list(dict.fromkeys([*unsafe, *more])))
    return found


def shortlist(clip: CLIPEncoder, direction: Tensor, words: Sequence[str], carriers: Sequence[str], count: int) -> dict[str, float]:
    """The ``count`` words w with the least mean of (z(p + w) - z(p)) . v over the prompts p, by word, the least first.

    All are added to the first carrier; the best of them to every one.
    """
    best = dict(sorted(_shifts(clip, direction, words, carriers[:1]).items(), key=lambda item: item[1])[: FINALISTS * count])
    return dict(sorted(_shifts(clip, direction, list(best), carriers).items(), key=lambda item: item[1])[:count])


def _shifts(clip: CLIPEncoder, direction: Tensor, words: Sequence[str], carriers: Sequence[str]) -> dict[str, float]:
    texts = [f"{carrier} {word}" for word in words for carrier in carriers]
    parts = []
    for first in range(0, len(texts), BATCH):
        parts.append(clip.encode(texts[first : first + BATCH], "longest") @ direction)
        _progress("words", min(first + BATCH, len(texts)) // len(carriers), len(words))
    before = (clip.encode(carriers, "longest") @ direction).mean()
    means = torch.cat(parts).view(len(words), len(carriers)).mean(1) - before
    return dict(zip(words, means.tolist(), strict=True))


def draw_words(studio: Studio, cost: Score, shifts: dict[str, float], carriers: Sequence[str], flags: RedTeamFlags) -> list[Found]:
    """What the pipeline draws for prompts with each word, beside what it draws without, from the same noise."""
    paths = [(flags.seed, NOISE, i) for i in range(flags.pictures)]
    means = []
    for number, ending in enumerate(["", *(f" {word}" for word in shifts)]):
        texts = [carriers[i % len(carriers)] + ending for i in range(flags.pictures)]
        values = []
        for first in range(0, flags.pictures, flags.batch):
            part = slice(first, first + flags.batch)
            images = studio.render(texts[part], Noise(paths[part], paths[part], studio.shape, studio.device))
            values.append(scored(cost, "--cost", images, texts[part]))
        means.append(float(torch.cat(values).mean()))
        _progress("words drawn", number, len(shifts))
    return [Found(word, shift, mean - means[0]) for (word, shift), mean in zip(shifts.items(), means[1:], strict=True)]


def gaps(clip: CLIPEncoder, direction: Tensor, prompts: Sequence[Prompt]) -> list[Gap]:
    """Where a word may stand: after each harmless prompt, and in each one labelled unsafe instead of the word without which it lies furthest to the safe
    side, so that "marked dangerous" makes room for "marked radioactive"."""
    found = []
    for prompt in prompts:
        words = prompt.text.split()
        if not prompt.unsafe or len(words) == 1:
            found.append(Gap(words, []))
            continue
        without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
        i = int((clip.encode(without, "longest") @ direction).argmax())
        found.append(Gap(words[:i], words[i + 1 :]))
    return found


def combine(places: Sequence[Gap], words: Sequence[str], count: int, seed: int) -> list[tuple[str, str]]:
    """At most ``count`` prompts with the word that each got, every word equally often (up to one), in random order."""
    rng = np.random.default_rng([seed, CHOICE, 1])
    rows = [[(places[i].filled(word), word) for i in rng.permutation(len(places))] for word in words]
    pairs = dict(row[i] for i in range(len(places)) for row in rows)  # two gaps may make the same prompt
    chosen = list(pairs.items())[:count]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _write(out: Path, prompts: Sequence[Prompt], pairs: Sequence[tuple[str, str]], safe: Sequence[str], unsafe: Sequence[str]) -> None:
    """The prompts with their labels, then the new ones with the word they were made of; and the anchors. The folder appears whole or not at all.

    Raises ``UserError``."""
    temporary = out.with_name(f".{out.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "anchors").mkdir(parents=True)
        with (temporary / "prompts.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["prompt", "unsafe", "word"])
            table.writerows([prompt.text, "" if prompt.unsafe is None else int(prompt.unsafe), ""] for prompt in prompts)
            table.writerows([text, 1, word] for text, word in pairs)
        for name, phrases in (("safe", safe), ("unsafe", unsafe)):
            if phrases:
                (temporary / "anchors" / f"{name}.txt").write_text("".join(f"{phrase}\n" for phrase in phrases), encoding="utf-8")
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): choose another --out, or make room.") from error


def _progress(what: str, done: int, total: int) -> None:
    if sys.stdout.isatty() or done == total:
        print(f"\r{what}: {done:,} of {total:,}", end="" if done < total else "\n", flush=True)
