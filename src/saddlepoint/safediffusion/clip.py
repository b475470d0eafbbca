"""A frozen CLIP: unit embeddings of pictures, which stay tensors, and of phrases, each of which is encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from saddlepoint.files import FileFault, read_json
from saddlepoint.safediffusion.extras import NO_WEIGHTS, require_extra
from saddlepoint.safediffusion.pipeline import from_hub, is_hub_id, not_loaded, require_whole, require_words
from saddlepoint.safediffusion.weights import stored_weights
from saddlepoint.types import UserError

BATCH = 64
"""phrases encoded at once"""
WORD_END = "</w>"
"""how CLIP's vocabulary marks a token that ends a word"""


class CLIPEncoder:
    """z(.) of pictures and phrases. Not trained; float32."""

    def __init__(self, source: str, device: torch.device, revision: str | None = None) -> None:
        """``source`` is a folder in transformers' layout or a hub id, at its commit ``revision`` or the newest. Raises ``UserError`` when it holds no CLIP with
        safetensors weights."""
        require_extra()
        from transformers import AutoTokenizer, CLIPModel

        folder = (
            Path(source)
            if Path(source).exists()
            else from_hub("CLIP", source, revision, ["*.json", "*.txt"], ["."])[0]
        )
        try:
            kind: Any = CLIPModel  # with loading info it gives a pair, which its annotation does not say
            model, info = kind.from_pretrained(
                folder, use_safetensors=True, variant=stored_weights(folder, ".").variant, output_loading_info=True
            )
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            pictures = read_json(folder / "preprocessor_config.json", "how a CLIP takes pictures")
            mean, std = (torch.tensor(pictures[name]).float().view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
            if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
                raise ValueError("the image_mean and image_std of its preprocessor_config.json are no means and deviations")
        except UserError:
            raise
        # damaged files, other shapes, settings that are not there: each library raises its own
        except Exception as error:
            raise UserError(f"the CLIP {source} cannot be loaded ({not_loaded(error)}): {NO_WEIGHTS}") from error
        require_whole(info, f"the CLIP {source}")
        require_words(self._tokenizer, model.config.text_config, f"the tokenizer of the CLIP {source}")
        # one that is stored in half would be loaded so
        self._model = model.float().to(device).eval().requires_grad_(False)
        self.device = device
        self.scale = float(self._model.logit_scale.exp())
        """the factor of cosines in CLIP's own logits"""
        self._size = self._model.config.vision_config.image_size
        self._mean = mean.to(device)
        self._std = std.to(device)
        self._phrases: dict[str, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in [0, 1] -> (batch, dim), unit norm. The last batch is remembered: reward and cost
        look at the same pictures."""
        if self._last is None or self._last[0] is not images:
            pixels = images.to(self.device, torch.float32)
            scale = self._size / min(pixels.shape[-2:])
            if scale != 1:
                size = [max(self._size, round(side * scale)) for side in pixels.shape[-2:]]
                pixels = functional.interpolate(
                    pixels, size, mode="bicubic", antialias=True, align_corners=False
                ).clamp(0, 1)
            top, left = ((side - self._size) // 2 for side in pixels.shape[-2:])
            pixels = pixels[..., top : top + self._size, left : left + self._size]
            features = self._model.get_image_features(pixel_values=(pixels - self._mean) / self._std).pooler_output
            self._last = (images, functional.normalize(features, dim=-1))
        return self._last[1]

    def phrases(self, phrases: Sequence[str]) -> Tensor:
        """(batch,) -> (batch, dim), unit norm. They are remembered."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._phrases]
        for first in range(0, len(new), BATCH):
            part = new[first : first + BATCH]
            self._phrases |= zip(part, self.encode(part), strict=True)
        return torch.stack([self._phrases[phrase] for phrase in phrases])

    @torch.no_grad()
    def encode(self, phrases: Sequence[str], padding: Literal["max_length", "longest"] = "max_length") -> Tensor:
        """One batch that is not remembered: (batch,) -> (batch, dim), unit norm. ``padding`` changes the last bits
        only: no token sees those after it.

        "longest" is faster for words; with "max_length" a phrase does not depend on those it is encoded with.
        """
        tokens = self._tokenizer(
            list(phrases), padding=padding, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(self.device)
        features = self._model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return functional.normalize(features, dim=-1)

    @property
    def limit(self) -> int:
        """Tokens of a phrase that are read, its beginning's and its end's marks included."""
        return int(self._model.config.text_config.max_position_embeddings)

    def lengths(self, phrases: Sequence[str]) -> list[int]:
        """Tokens of each phrase, without marks and not cut off."""
        return [
            len(tokens) for tokens in self._tokenizer(list(phrases), add_special_tokens=False, verbose=False).input_ids
        ]

    def cut(self, phrases: Sequence[str]) -> str | None:
        """One sentence when the ends of some phrases are not read."""
        lengths = [length + 2 for length in self.lengths(phrases)]
        long = sum(length > self.limit for length in lengths)
        return (
            f"the CLIP reads {self.limit} tokens and {long} of {len(lengths)} prompts have more: the ends of these are"
            " not seen"
            if long
            else None
        )

    def words(self) -> list[str]:
        """The tokenizer's entries of at least three letters from a to z that end a word, in alphabetical order: words,
        and ends of rarer ones."""
        ends = (token.removesuffix(WORD_END) for token in self._tokenizer.get_vocab() if token.endswith(WORD_END))
        return sorted({word for word in ends if len(word) >= 3 and word.isascii() and word.isalpha()})


def check_clip(source: str) -> None:
    """Raises ``UserError`` when ``source`` is a folder that holds no CLIP; a hub id is looked up when it is loaded."""
    folder = Path(source)
    if not folder.exists():
        if is_hub_id(source):
            return
        raise UserError(f"there is no CLIP folder {source}: give --clip a folder in transformers' layout, or a hub id.")
    try:
        kind = read_json(folder / "config.json", "the configuration of a CLIP").get("model_type")
    except FileFault as error:
        raise UserError(
            f"{source} is not a CLIP in transformers' layout (config.json: {error.reason}): give --clip another folder."
        ) from error
    if kind != "clip":
        raise UserError(f"{source} holds a model of type {kind!r}, not clip: give --clip another folder.")


def read_phrases(file: Traversable) -> list[str]:
    """Phrases for a CLIP from a UTF-8 text file, one a line; none when there is no such file. Raises ``UserError`` when
    it cannot be read."""
    if not file.is_file():
        return []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"the phrases {file} are not UTF-8 text ({error.reason}): save the file as UTF-8.") from error
    except OSError as error:
        raise UserError(
            f"the phrases {file} cannot be read ({error.strerror}): give a text file with one phrase a line."
        ) from error
    return [line.strip() for line in lines if line.strip()]
