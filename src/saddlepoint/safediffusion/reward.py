"""Rewards and costs of pictures. Steering: reward(x, p) = z(x) . z~(p), with z~(p) the prompt's embedding moved along
one safety direction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saddlepoint.foreign import first_line, foreign, load
from saddlepoint.safediffusion.clip import CLIPEncoder, read_phrases
from saddlepoint.safediffusion.config import SafeDiffusionConfig, SteeringMode
from saddlepoint.types import ForeignFault, NonFiniteError, UserError


class Score(Protocol):
    """A reward, a cost or a measure of pictures: anything that can be called like this, a network or an exact
    checker."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch, 3, height, width) float32 in [0, 1] and the prompts they were made for -> (batch,), finite."""
        ...


class Scores(NamedTuple):
    """What a run asks of its pictures."""

    reward: Score
    cost: Score | None
    """unsafety, >= 0; a detector that answers 0 or 1 makes its mean the share of unsafe pictures"""
    utility: Score
    second: Score | None = None
    """a reward beside the first"""


def safety_direction(safe: Tensor, unsafe: Tensor) -> Tensor:
    """v_safe = normalise(mean z(safe) - mean z(unsafe)); (phrases, dim) each -> (dim,).  SafeDiffusion-R1.

    Rows are brought to unit norm first. ``safe`` may have no rows (the unsafe-only anchors): then v_safe =
    normalise(-mean z(unsafe)).
    """
    away = -normalize(unsafe, dim=-1).mean(0)
    return normalize(away + normalize(safe, dim=-1).mean(0) if len(safe) else away, dim=-1)


def steer(text: Tensor, direction: Tensor, alpha: float, mode: SteeringMode = "translation") -> Tensor:
    """z~ = normalise(z + alpha v) (translation), or normalise(z - (z.v) v + alpha v) (projection), with z =
    normalise(text).  SafeDiffusion-R1.

    (..., dim) and a unit vector (dim,) -> (..., dim).
    """
    unit = normalize(text, dim=-1)
    if mode == "translation":
        return normalize(unit + alpha * direction, dim=-1)
    if mode == "projection":
        own = (unit * direction).sum(-1, keepdim=True)
        return normalize(unit - own * direction + alpha * direction, dim=-1)
    raise ValueError(f"mode must be translation or projection, not {mode!r}")


def scored(score: Score, flag: str, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """``score(images, prompts)`` as float32 on the images' device, once it is what a score must be.

    A score that is a network need not care for gradients, and each has pictures of its own to change.
    Raises ``ForeignFault`` or ``NonFiniteError`` naming ``flag``.
    """
    # Ours change nothing, and know a batch again that they have embedded.
    own = images if isinstance(score, CLIP_SCORES) else images.clone()
    with torch.no_grad():
        values = foreign(flag, lambda: torch.as_tensor(score(own, prompts)).detach().to(images.device, torch.float32))
    if values.shape != (len(images),):
        raise ForeignFault(
            f"{flag} returned numbers of shape {tuple(values.shape)} for {len(images)} images: it must return one for"
            " each."
        )
    if not bool(values.isfinite().all()):
        raise NonFiniteError(f"{flag} returned a number that is not finite.")
    if flag == "--cost" and bool((values < 0).any()):
        raise ForeignFault("--cost returned a negative number: a cost is 0 or more.")
    return values


def featured(encoder: Callable[[Tensor], Any], flag: str, images: Tensor) -> Tensor:
    """``encoder(images)`` as (batch, dim) float64 on the CPU, guarded as ``scored`` guards a score. Raises ``ForeignFault`` or ``NonFiniteError``."""
    with torch.no_grad():
        features = foreign(flag, lambda: torch.as_tensor(encoder(images.clone())).detach().to("cpu", torch.float64))
    if features.ndim != 2 or len(features) != len(images) or not features.shape[1]:
        raise ForeignFault(
            f"{flag} returned numbers of shape {tuple(features.shape)} for {len(images)} images: it must return a row of"
            " features for each."
        )
    if not bool(features.isfinite().all()):
        raise NonFiniteError(f"{flag} returned a number that is not finite.")
    return features


@dataclass(frozen=True)
class Alignment:
    """z(x) . z(p): how well a picture fits its prompt."""

    clip: CLIPEncoder

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (self.clip.images(images) * self.clip.phrases(prompts)).sum(-1)


@dataclass(frozen=True)
class SteeredAlignment:
    """z(x) . z~(p): how well a picture fits its prompt moved towards the safe side."""

    clip: CLIPEncoder
    direction: Tensor
    alpha: float
    mode: SteeringMode
    when: Literal["always", "unsafe"]
    """steer every prompt, or those with z(p) . v < 0"""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        text = self.clip.phrases(prompts)
        wanted = steer(text, self.direction, self.alpha, self.mode)
        if self.when == "unsafe":
            wanted = torch.where((text @ self.direction < 0)[:, None], wanted, text)
        return (self.clip.images(images) * wanted).sum(-1)


@dataclass(frozen=True)
class UnsafeCoordinate:
    """1 - z(x) . v, between 0 and 2: large where a picture lies on the unsafe side."""

    clip: CLIPEncoder
    direction: Tensor

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        # a rounding error must not make a cost negative
        return (1 - self.clip.images(images) @ self.direction).clamp(min=0)


@dataclass(frozen=True)
class UnsafeProbability:
    """CLIP's zero-shot probability of unsafe against safe, each class the mean of its anchors: sigmoid(scale * z(x) .
    (unsafe - safe)), the picture's coordinate along v on CLIP's own scale. Between 0 and 1, so that a budget reads as a
    share."""

    clip: CLIPEncoder
    safe: Tensor
    unsafe: Tensor

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.sigmoid(self.clip.scale * (self.clip.images(images) @ (self.unsafe.mean(0) - self.safe.mean(0))))


CLIP_SCORES = (Alignment, SteeredAlignment, UnsafeCoordinate, UnsafeProbability)


def read_anchors(name: str) -> tuple[list[str], list[str]]:
    """Safe and unsafe anchor phrases of a named set or a folder; there may be no safe ones. Raises ``UserError``."""
    home = (
        files("saddlepoint.safediffusion") / "anchors" / name
        if name in ("compact", "scaled", "unsafe-only")
        else Path(name)
    )
    safe, unsafe = (read_phrases(home / f"{part}.txt") for part in ("safe", "unsafe"))
    if not unsafe:
        raise UserError(
            f"--anchors {name} is no set of anchors: give compact, scaled, unsafe-only, or a folder with phrases in"
            " unsafe.txt."
        )
    return safe, unsafe


def require_anchors(name: str, cost: str) -> None:
    """Raises ``UserError`` when there are no such anchors, or not those that ``cost`` needs."""
    safe, _ = read_anchors(name)
    if cost == "probability" and not safe:
        raise UserError(
            f"--cost probability weighs safe against unsafe anchors and --anchors {name} has no safe ones: use --cost"
            " coordinate."
        )


class Anchors(NamedTuple):
    """The embedded anchor phrases and the direction from unsafe to safe."""

    safe: Tensor  # (phrases, dim), possibly none
    unsafe: Tensor  # (phrases, dim)
    direction: Tensor  # (dim,)


def embed_anchors(clip: CLIPEncoder, name: str) -> Anchors:
    """Those of a named set or a folder. Raises ``UserError``."""
    phrases = read_anchors(name)
    unsafe = clip.phrases(phrases[1])
    safe = clip.phrases(phrases[0]) if phrases[0] else unsafe[:0]
    return Anchors(safe, unsafe, safety_direction(safe, unsafe))


def anchored_costs(clip: CLIPEncoder, anchors: Anchors) -> dict[str, Score]:
    """The costs that the anchors make, by the name that ``--cost`` gives them."""
    return {
        "coordinate": UnsafeCoordinate(clip, anchors.direction),
        "probability": UnsafeProbability(clip, anchors.safe, anchors.unsafe),
    }


def load_plugin(flag: str, name: str) -> Any:
    """The callable ``module:name``; a class is built without arguments. Raises ``UserError`` when there is none."""
    found = load(flag, name)
    if inspect.isclass(found):
        try:
            found = foreign(f"{flag} {name}", found)
        except ForeignFault as error:
            if isinstance(error.__cause__, TypeError):
                said = first_line(error.__cause__)
                raise UserError(
                    f"{flag} {name}: this class cannot be built without arguments ({said}): give a function, or"
                    " another class."
                ) from error
            raise
    if not callable(found):
        raise UserError(f"{flag} {name} cannot be called: give a function, or a class with __call__.")
    return found


def named_scores(config: SafeDiffusionConfig) -> dict[str, str]:
    """What each score's flag names."""
    return {
        "--reward": config.resolved_reward,
        "--second-reward": config.second_reward,
        "--cost": config.cost,
        "--utility": config.utility,
    }


def check_scores(config: SafeDiffusionConfig) -> None:
    """Raises ``UserError`` for anchors or own scores that cannot be had; loads no model of ours."""
    if config.uses_anchors:
        require_anchors(config.anchors, config.cost)
    for flag, name in named_scores(config).items():
        if ":" in name:
            load_plugin(flag, name)


def build_scores(config: SafeDiffusionConfig, device: torch.device, clip_revision: str | None = None) -> Scores:
    """The reward, cost and utility that ``config`` names; the CLIP is loaded once, one of the hub as it was at ``clip_revision``. Raises ``UserError``."""
    own = {name: load_plugin(flag, name) for flag, name in named_scores(config).items() if ":" in name}
    known: dict[str, Score] = dict(own)
    if config.uses_clip:
        clip = CLIPEncoder(config.clip, device, clip_revision)
        known["alignment"] = Alignment(clip)
        if config.uses_anchors:
            anchors = embed_anchors(clip, config.anchors)
            known |= anchored_costs(clip, anchors) | {
                "steered": SteeredAlignment(clip, anchors.direction, config.alpha, config.steering, config.steer)
            }
    return Scores(
        known[config.resolved_reward], known.get(config.cost), known[config.utility], known.get(config.second_reward)
    )
