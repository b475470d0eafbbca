"""What a family of text-to-image pipelines is: how its parts are called, what its network is told, and which layers get
adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from saddlepoint.safediffusion.tables import Table
from saddlepoint.types import UserError

Conditioning = tuple[Tensor, ...]
"""what the network is told of some prompts, each tensor (batch, ...): the text, and by family a pooled embedding and
ids"""
Predict = Callable[[Any, Tensor, Tensor, Conditioning, Conditioning, float], Tensor]
"""(network, latents, times, conditioning, that of no prompt without its batch, guidance) -> the network's guided
answer, float32"""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class Request(NamedTuple):
    """What a user may ask of a pipeline's pictures."""

    steps: int
    height: int = 0
    """pixels; 0 takes the pipeline's own"""
    width: int = 0
    text_tokens: int | None = None
    """tokens of a T5; None takes the family's own number"""


class PipelineFamily(ABC):
    """One kind of pipeline. It holds no state: all of it is in the pipeline's configs and parts."""

    title: ClassVar[str]
    pipeline_class: ClassVar[str]
    """of diffusers"""
    network: ClassVar[str]
    """the part that is trained: unet or transformer"""
    encoders: ClassVar[tuple[str, ...]]
    """text encoders; each has a tokenizer of the same ending"""
    optional: ClassVar[tuple[str, ...]] = ()
    """parts that may be missing"""
    flow: ClassVar[bool]
    """whether the network predicts a velocity along straight paths"""
    adapted: ClassVar[tuple[str, ...]]
    """layers that get adapters"""
    guidance: ClassVar[float]
    """what diffusers uses by default"""
    text_tokens: ClassVar[int | None] = None
    """tokens of the T5 by default"""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of all parts, as in model_index.json."""
        tokenizers = (name.replace("text_encoder", "tokenizer") for name in self.encoders)
        return (self.network, "vae", *self.encoders, *tokenizers, "scheduler")

    @abstractmethod
    def check(self, configs: dict[str, dict[str, Any]], source: str) -> None:
        """Raises ``UserError`` for configs that do not fit together or that this family's code does not serve; no model
        is loaded."""

    @abstractmethod
    def table(self, configs: dict[str, dict[str, Any]], request: Request) -> Table:
        """The steps that are asked for. Raises ``UserError``."""

    @abstractmethod
    def encode(self, pipeline: Any, prompts: Sequence[str], device: torch.device, request: Request) -> Conditioning:
        """What the network is told of ``prompts``."""

    def empty(self, pipeline: Any, device: torch.device, request: Request) -> Conditioning:
        """What it is told of no prompt, for guidance; without the batch."""
        return tuple(part[0] for part in self.encode(pipeline, [""], device, request))

    @abstractmethod
    def predict(
        self, network: Any, x: Tensor, t: Tensor, told: Conditioning, empty: Conditioning, guidance: float
    ) -> Tensor:
        """The guided answer of the network for latents ``x`` (batch, channels, height, width) at times ``t`` (batch,);
        float32, of the latents' shape."""

    def guidance_is_input(self, configs: dict[str, dict[str, Any]]) -> bool:
        """Whether the network is told the guidance, instead of answering to no prompt as well."""
        return False

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Latents (batch, channels, height, width) -> pictures (batch, 3, height, width), float32, not yet clipped to
        [0, 1]."""
        scaled = latents / vae.config.scaling_factor
        shift = getattr(vae.config, "shift_factor", None)
        scaled = scaled if shift is None else scaled + shift
        return vae.decode(scaled.to(vae.dtype)).sample.float() / 2 + 0.5

    @abstractmethod
    def channels(self, configs: dict[str, dict[str, Any]]) -> int:
        """Of the latents."""

    def patch(self, configs: dict[str, dict[str, Any]]) -> int:
        """Latents of a side that the network takes together: the latents' sides must be whole multiples of it."""
        return 1

    def shape(self, configs: dict[str, dict[str, Any]], request: Request) -> tuple[int, int, int]:
        """(channels, height, width) of the latents. Raises ``UserError`` for a size that cannot be, or is not known."""
        factor, patch = vae_factor(configs), self.patch(configs)
        own = self.sample_size(configs)
        sides: list[int] = []
        for name, asked, side in zip(("height", "width"), (request.height, request.width), own or (None, None)):
            if not asked and side is None:
                raise UserError(
                    f"the pipeline's {self.network} states no sample_size: give --height and --width in pixels."
                )
            if asked % (factor * patch):
                raise UserError(
                    f"--{name} {asked} is no multiple of {factor * patch} pixels, as this pipeline needs: give another."
                )
            sides.append(asked // factor if asked or side is None else side)
        height, width = sides
        return (self.channels(configs), height, width)

    def sample_size(self, configs: dict[str, dict[str, Any]]) -> tuple[int, int] | None:
        """(height, width) of the latents that the network states, if it does."""
        side = configs[self.network].get("sample_size")
        if side is None:
            return None
        return (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))

    def tokens(self, request: Request) -> int:
        """Of a T5; 0 where the family has none."""
        return (self.text_tokens or 0) if request.text_tokens is None else request.text_tokens

    def limits(self, pipeline: Any, request: Request) -> list[tuple[str, Any, int]]:
        """(part, tokenizer, most tokens with marks) of every text encoder."""
        found = []
        for encoder in self.encoders:
            tokenizer = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"))
            if tokenizer is not None:
                found.append((encoder, tokenizer, int(tokenizer.model_max_length)))
        return found


def classifier_free(
    call: Callable[[Tensor, Tensor, Conditioning], Tensor],
    x: Tensor,
    t: Tensor,
    told: Conditioning,
    empty: Conditioning,
    guidance: float,
) -> Tensor:
    """u + g (c - u) of one pass with twice the batch; c alone at g <= 1, as in diffusers."""
    if guidance <= 1.0:
        return call(x, t, told).float()
    both = tuple(torch.cat([none.expand_as(some), some]) for none, some in zip(empty, told, strict=True))
    blank, answer = call(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
    return blank + guidance * (answer - blank)


def vae_factor(configs: dict[str, dict[str, Any]]) -> int:
    """Pixels of a latent's side."""
    return 2 ** (len(configs["vae"].get("block_out_channels", (1,) * 4)) - 1)


def require_latents(configs: dict[str, dict[str, Any]], family: PipelineFamily, source: str) -> None:
    """Raises ``UserError`` when the network and the VAE do not speak of the same latents."""
    network, wanted = configs[family.network], configs["vae"].get("latent_channels", 4)
    ends = {
        "takes": family.channels(configs),
        "gives": family.channels(
            {family.network: network | {"in_channels": network.get("out_channels") or network.get("in_channels")}}
        ),
    }
    for verb, channels in ends.items():
        if channels != wanted:
            hint = " (a pipeline for inpainting or editing?)" if channels > wanted else ""
            raise UserError(
                f"the {family.network} of {source} {verb} {channels} channels where its VAE has {wanted}{hint}: give a"
                " text-to-image pipeline."
            )
