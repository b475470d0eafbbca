"""`saddlepoint red-team PIPELINE ...`: words that make a pipeline draw unsafe pictures and that no prompt of a file
has, and prompts and anchors with them.

Post-training removes what its prompts call for and little more. The safety direction of the reward knows further words:
those of the CLIP's own vocabulary whose addition moves prompts furthest to the unsafe side. The pipeline then draws
prompts with each of them, and those stay whose pictures are unsafe: twice as many pictures, from fresh noise, decide on
the words that look so, for among many words some do by chance. Anchors need them as much as prompts do: projected off a
direction that knows signs alone, "with warning tape" keeps its tape, and pictures with one are rewarded for it. Each
phrase of the anchors counts alike, so many found words turn the direction towards what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from saddlepoint.flags import parse
from saddlepoint.memory import keep_freed_memory
from saddlepoint.options import require_at_least, require_seed, shown
from saddlepoint.safediffusion.checks import COST_MOST
from saddlepoint.safediffusion.clip import CLIPEncoder, check_clip, read_phrases
from saddlepoint.safediffusion.drawn import Drawn, Found
from saddlepoint.safediffusion.extras import quiet_libraries, require_extra
from saddlepoint.safediffusion.families import Request
from saddlepoint.safediffusion.pipeline import load_pipeline, open_source, source_files
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
from saddlepoint.safediffusion.rollout import Noise, Studio, build_studio
from saddlepoint.safediffusion.start import resolve_precision
from saddlepoint.safediffusion.words import choose_carriers, combine, fresh_words, gaps, progress, shortlist
from saddlepoint.train.threads import use_threads
from saddlepoint.types import UserError

NOISE = 104
"""the stream of its pictures' noise, apart from those of training and evaluation"""
ROOM = 8
"""tokens that a prompt must leave free for a word: what lies beyond a text encoder's limit is cut off unseen"""
MARKS = 2
"""tokens of a text encoder that mark a prompt's beginning and end"""
ERRORS = 2
"""standard errors that the excess of a kept word must pass"""


@dataclass(frozen=True)
class RedTeamFlags:
    """Find words that make a pipeline's pictures unsafe, and write prompts and anchors with them, to be post-trained
    on."""

    prompts: Path | None = None
    """the prompts that there are: .csv (columns prompt and, optionally, unsafe), .txt or .jsonl; words are added to
    those not labelled unsafe, and put in the place of others in those that are"""
    clip: str = "openai/clip-vit-large-patch14"
    """the CLIP whose words are tried, and of the safety direction: a folder or a hub id"""
    anchors: str = "compact"
    """phrases of the safety direction: compact, scaled, unsafe-only, or a folder with unsafe.txt and optionally
    safe.txt"""
    cost: str = "probability"
    """what judges the pictures: probability, coordinate, or module:name of a detector, as of `saddlepoint train
    safediffusion`"""
    words: Path | None = None
    """a text file of words or phrases to try, one a line, instead of the CLIP's vocabulary, whose entries that end a
    word may be parts of one"""
    shortlist: int = 32
    """words that are drawn: those that move prompts furthest to the unsafe side of the direction"""
    pictures: int = 16
    """pictures of each of them; twice as many, from other noise, of those that pass"""
    least: float = 0.1
    """a word stays when the mean cost of its pictures lies at least this far above that of the same prompts without it,
    in both draws, and in the second by more than two standard errors. On the cost's own scale: that of coordinate is
    finer"""
    count: int = 0
    """prompts to write beside those that there are; 0 writes as many as those"""
    steps: int = 50
    """denoising steps"""
    guidance: float = 5.0
    """classifier-free guidance; 1 or less is none"""
    height: int = 0
    """of the pictures in pixels; 0 takes the pipeline's own"""
    width: int = 0
    """of the pictures in pixels; 0 takes the pipeline's own"""
    text_tokens: int | None = None
    """tokens that a T5 reads; None takes the family's"""
    batch: int = 16
    """pictures drawn at once"""
    seed: int = 0
    """of the noise and of the choice of prompts"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the network's products; auto takes bfloat16 on CUDA where the device has it"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the models live; auto takes CUDA if there is one"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""
    out: Path | None = None
    """folder to write, which must not exist yet: prompts.csv for --prompts, with the column word beside prompt and
    unsafe, anchors for --anchors, and words.csv with what was drawn"""

    def validate(self) -> None:
        """Raises ``UserError`` for what needs no model to be seen."""
        if self.prompts is None or self.out is None:
            raise UserError(
                "red-team needs prompts to start from and a folder to write: give --prompts FILE and --out FOLDER."
            )
        if self.out.exists():
            raise UserError(f"{self.out} exists: choose another --out.")
        require_at_least(self, {"shortlist": 1, "pictures": 2, "batch": 1})
        if self.height < 0 or self.width < 0 or (self.text_tokens or 0) < 0:
            raise UserError("--height, --width and --text-tokens must not be negative.")
        if self.count < 0 or self.threads < 0 or not 0 <= self.guidance < float("inf"):
            raise UserError("--count, --threads and --guidance must be finite and not negative.")
        require_seed(self.seed)
        if not 0 < self.least < float("inf"):
            raise UserError(f"--least must be finite and greater than 0, not {self.least}.")
        if self.least >= COST_MOST.get(self.cost, float("inf")):
            raise UserError(
                f"--least {self.least:g} leaves every word out: a {self.cost} is never above {COST_MOST[self.cost]:g}."
                " Give less."
            )
        if self.cost not in ("probability", "coordinate") and ":" not in self.cost:
            raise UserError(
                f"--cost must be probability, coordinate or the module:name of your own, not {self.cost!r}."
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto.")


def red_team_command(args: list[str]) -> None:
    """`saddlepoint red-team PIPELINE ...`. Raises ``UserError``."""
    helping = args[:1] in (["-h"], ["--help"])
    if not args or (args[0].startswith("-") and not helping):
        raise UserError(
            "red-team needs the pipeline first: `saddlepoint red-team PIPELINE --prompts FILE --out FOLDER`."
        )
    flags = parse(RedTeamFlags, RedTeamFlags(), args if helping else args[1:], "saddlepoint red-team PIPELINE").values
    quiet_libraries()
    keep_freed_memory()
    use_threads(flags.threads)
    try:
        red_team(args[0], flags)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from what was drawn") from interrupt
    own = f"--prompts {flags.out / 'prompts.csv'}", f"--anchors {flags.out / 'anchors'}"
    where = f"{own[0]}, and {own[1]} where the reward or the cost has them"
    print(f"written: {flags.out}; read it, then train with {where}")


def red_team(pipeline: str, flags: RedTeamFlags) -> list[Found]:
    """Search, draw and write ``flags.out``; an interrupted search goes on from what it has drawn. Returns the words
    that were drawn.

    Raises ``UserError``, before a model is loaded where that can be.
    """
    require_extra()
    flags.validate()
    assert flags.prompts is not None
    assert flags.out is not None
    prompts = read_prompts(flags.prompts)
    if not any(not prompt.unsafe for prompt in prompts):
        raise UserError(f"all prompts of {flags.prompts} are labelled unsafe: red-team adds words to harmless ones.")
    check_clip(flags.clip)
    require_anchors(flags.anchors, flags.cost)
    safe, unsafe = read_anchors(flags.anchors)
    own: Score | None = load_plugin("--cost", flags.cost) if ":" in flags.cost else None
    candidates = None if flags.words is None else read_phrases(flags.words)
    if candidates == []:
        raise UserError(f"the file {flags.words} of --words cannot be found or holds no word: give one a line.")
    source, request = open_source(pipeline), Request(flags.steps, flags.height, flags.width, flags.text_tokens)
    source.check(request)
    device = torch.device(
        "cuda" if flags.device == "cuda" or (flags.device == "auto" and torch.cuda.is_available()) else "cpu"
    )
    with Drawn(flags.out) as drawn:
        clip = CLIPEncoder(flags.clip, device)
        anchors = embed_anchors(clip, flags.anchors)
        cost = own or anchored_costs(clip, anchors)[flags.cost]
        fresh = fresh_words(candidates or clip.words(), prompts)
        if not fresh:
            raise UserError(f"{flags.prompts} has every word that there is to try: give others with --words.")
        long = next((word for word, length in zip(fresh, clip.lengths(fresh), strict=True) if length > ROOM), None)
        if long is not None:
            raise UserError(
                f"{shown(long)} of --words is longer than {ROOM} tokens, which is more than prompts leave room for: shorten it."
            )
        loaded = load_pipeline(source).to(device)
        lengths = zip(clip.lengths([prompt.text for prompt in prompts]), prompts, strict=True)
        limit = min(clip.limit, *(most for _, _, most in source.family.limits(loaded, request)))
        roomy = [prompt for length, prompt in lengths if prompt.unsafe or length + MARKS + ROOM <= limit]
        harmless = [prompt.text for prompt in roomy if not prompt.unsafe]
        if not harmless:
            raise UserError(
                f"no harmless prompt of {flags.prompts} leaves {ROOM} of the {limit} tokens free for a word: give shorter"
                " ones."
            )
        carriers = choose_carriers(harmless, flags.seed)
        shifts = shortlist(clip, anchors.direction, fresh, carriers, flags.shortlist)

        low_precision = resolve_precision(flags.precision, device)
        studio = build_studio(loaded, request, flags.guidance, 0.0, device, low_precision)
        chosen: dict[str, Any] = {
            name: str(value)
            for name, value in asdict(flags).items()
            if name not in ("least", "count", "out", "threads", "batch")
        }
        chosen |= {"weights": [source_files(place) for place in (pipeline, flags.clip)], "safe": safe, "unsafe": unsafe}
        drawn.begin(
            {
                "pipeline": pipeline,
                **chosen,
                "carriers": carriers,
                "words": list(shifts),
                "low_precision": str(low_precision),
            }
        )
        found = draw_words(studio, cost, shifts, carriers, flags, drawn)
        for each in sorted(found, key=lambda each: -each.excess):
            print(
                f"{each.word:<20} shift {each.shift:+.3f}   cost of its pictures {each.excess:+.3f} ±"
                f" {each.error:.3f}{'' if each.kept else '   left out'}"
            )
        words = [each.word for each in found if each.kept]
        if not words:
            raise UserError(
                f"no word makes the pictures unsafe by --least {flags.least:g}, so nothing is written: lower it, or raise"
                " --shortlist or --pictures."
            )
        pairs = combine(gaps(clip, anchors.direction, roomy), words, flags.count or len(prompts), flags.seed)
        own_gaps = gaps(clip, anchors.direction, [Prompt(phrase, True) for phrase in unsafe])
        more = [gap.filled(word) for word in words for gap in own_gaps]
        drawn.finish(found, prompts, pairs, safe, list(dict.fromkeys([*unsafe, *more])))
        return found


def draw_words(
    studio: Studio, cost: Score, shifts: dict[str, float], carriers: Sequence[str], flags: RedTeamFlags, drawn: Drawn
) -> list[Found]:
    """What the pipeline draws for prompts with each word, beside what it draws without, from the same noise; what looks
    unsafe twice, the second time in twice as many pictures from other noise."""
    found = []
    for word, (excess, error) in _draw(studio, cost, list(shifts), carriers, flags, drawn, 0).items():
        found.append(Found(word, shifts[word], excess, error, excess >= flags.least))
    again = _draw(studio, cost, [each.word for each in found if each.kept], carriers, flags, drawn, 1)
    return [each if each.word not in again else _decided(each, *again[each.word], flags.least) for each in found]


def _decided(each: Found, excess: float, error: float, least: float) -> Found:
    return each._replace(excess=excess, error=error, kept=excess >= least and excess > ERRORS * error)


def _draw(
    studio: Studio,
    cost: Score,
    words: Sequence[str],
    carriers: Sequence[str],
    flags: RedTeamFlags,
    drawn: Drawn,
    draw: int,
) -> dict[str, tuple[float, float]]:
    """Excess and standard error of the words' pictures in the first (0) or the second (1) draw; those that ``drawn``
    has are not drawn again."""
    pictures = flags.pictures * (draw + 1)
    paths = [(flags.seed, NOISE, draw, i) for i in range(pictures)]

    def costs(ending: str) -> Tensor:
        texts = [carriers[i % len(carriers)] + ending for i in range(pictures)]
        values = []
        for first in range(0, pictures, flags.batch):
            part = slice(first, first + flags.batch)
            images = studio.render(texts[part], Noise(paths[part], paths[part], studio.shape, studio.device))
            values.append(scored(cost, "--cost", images, texts[part]).double().cpu())
        return torch.cat(values)

    without = costs("") if any(not drawn.has(draw, word) for word in words) else None
    for number, word in enumerate(words, 1):
        if without is not None and not drawn.has(draw, word):
            more = costs(f" {word}") - without
            drawn.add(draw, word, float(more.mean()), float(more.std() / pictures**0.5))
        progress(f"words drawn{' again' * draw}", number, len(words))
    return {word: drawn.of(draw, word) for word in words}
