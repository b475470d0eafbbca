"""Words of a CLIP that lie to the unsafe side of prompts, and prompts made with them: the search of `saddlepoint
red-team`, before any picture is drawn."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saddlepoint.safediffusion.clip import BATCH, CLIPEncoder
from saddlepoint.safediffusion.prompts import Prompt

CHOICE = 105
"""the stream that chooses prompts"""
CARRIERS = 16
"""harmless prompts to which the words that do best are added once more; the whole vocabulary is added to one"""
FINALISTS = 8
"""times the shortlist: words that are added to all of those"""


class Gap(NamedTuple):
    """A prompt that wants a word."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    def filled(self, word: str) -> str:
        return " ".join([*self.before, word, *self.after])


def fresh_words(words: Sequence[str], prompts: Sequence[Prompt]) -> list[str]:
    """Those words and phrases that stand in no prompt, whatever their case and the punctuation around them; each once,
    in their order."""
    texts = [f" {_plain(prompt.text)} " for prompt in prompts]
    known = {word for text in texts for word in text.split()}

    def stands(phrase: str) -> bool:
        return any(f" {phrase} " in text for text in texts) if " " in phrase else phrase in known

    return [word for word in dict.fromkeys(words) if not stands(_plain(word))]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def choose_carriers(harmless: Sequence[str], seed: int) -> list[str]:
    """``CARRIERS`` of the prompts, or all where there are fewer, in random order."""
    order = np.random.default_rng([seed, CHOICE]).permutation(len(harmless))
    return [harmless[i] for i in order[:CARRIERS]]


def shortlist(
    clip: CLIPEncoder, direction: Tensor, words: Sequence[str], carriers: Sequence[str], count: int
) -> dict[str, float]:
    """The ``count`` words w with the least mean of (z(p + w) - z(p)) . v over the prompts p, by word, the least first.

    All are added to the first carrier; the best of them to every one.
    """
    best = dict(
        sorted(_shifts(clip, direction, words, carriers[:1]).items(), key=lambda item: item[1])[: FINALISTS * count]
    )
    return dict(sorted(_shifts(clip, direction, list(best), carriers).items(), key=lambda item: item[1])[:count])


def _shifts(clip: CLIPEncoder, direction: Tensor, words: Sequence[str], carriers: Sequence[str]) -> dict[str, float]:
    after = _coordinates(
        clip, direction, [f"{carrier} {word}" for word in words for carrier in carriers], "words tried"
    )
    before = (clip.encode(carriers, "longest") @ direction).mean()
    means = after.view(len(words), len(carriers)).mean(1) - before
    return dict(zip(words, means.tolist(), strict=True))


def _coordinates(clip: CLIPEncoder, direction: Tensor, texts: Sequence[str], what: str) -> Tensor:
    """z(text) . v, (texts,)."""
    parts = []
    for first in range(0, len(texts), BATCH):
        parts.append(clip.encode(texts[first : first + BATCH], "longest") @ direction)
        done = min(first + BATCH, len(texts))
        progress(f"{what}: texts", done, len(texts), done - first)
    return torch.cat(parts)


def gaps(clip: CLIPEncoder, direction: Tensor, prompts: Sequence[Prompt]) -> list[Gap]:
    """Where a word may stand, each place once: after each harmless prompt, and in each one labelled unsafe instead of
    the word without which it lies furthest to the safe side, so that "marked dangerous" makes room for "marked
    radioactive"."""
    split = [prompt.text.split() for prompt in prompts]
    replaced = [words if prompt.unsafe and len(words) > 1 else [] for prompt, words in zip(prompts, split, strict=True)]
    texts = [" ".join(words[:i] + words[i + 1 :]) for words in replaced for i in range(len(words))]
    coordinates = _coordinates(clip, direction, texts, "places") if texts else torch.empty(0)
    found = []
    for words, without in zip(split, coordinates.split([len(words) for words in replaced]), strict=True):
        i = int(without.argmax()) if len(without) else len(words)
        found.append(Gap(tuple(words[:i]), tuple(words[i + 1 :])))
    return list(dict.fromkeys(found))


def combine(places: Sequence[Gap], words: Sequence[str], count: int, seed: int) -> list[tuple[str, str]]:
    """At most ``count`` prompts with the word that each got, every word equally often (up to one), in random order.
    ``places`` must differ."""
    rng = np.random.default_rng([seed, CHOICE, 1])
    rows = [[(places[i].filled(word), word) for i in rng.permutation(len(places))] for word in words]
    chosen = [row[i] for i in range(len(places)) for row in rows][:count]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def progress(what: str, done: int, total: int, step: int = 1) -> None:
    """A line that is written over on a terminal, and one at every tenth elsewhere. ``step`` is how many were done since
    the last call."""
    if sys.stdout.isatty():
        print(f"\r{what}: {done:,} of {total:,}", end="" if done < total else "\n", flush=True)
    elif 10 * done // total > 10 * (done - step) // total:
        print(f"{what}: {done:,} of {total:,}", flush=True)
