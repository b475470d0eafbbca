"""What a UNet computes before it is told the text: the same in both halves of a guided batch, and computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def halves_alike(unet: Any) -> Iterator[None]:
    """Within, a batch's second half has the latents and times of the first, and other text.

    All layers up to the first product with the text then work on one half: the first convolution, the first residual
    block, the self-attention that follows it and the queries to the text. Their results, and gradients, are those of
    the whole up to rounding. Nothing is shared where times are told with the text (addition_embed_type) or activations
    are computed again (gradient checkpointing).
    """
    with ExitStack() as stack:
        for first, last in _before_text(unet):
            for handle in (
                first.register_forward_pre_hook(_first_half, with_kwargs=True),
                last.register_forward_hook(_twice),
            ):
                stack.callback(handle.remove)
        yield


def _before_text(unet: Any) -> list[tuple[Any, Any]]:
    """(first, last) of the rows of layers that follow one another; what else is made of their results needs the whole."""
    if not hasattr(unet, "conv_in") or unet.config.addition_embed_type or unet.is_gradient_checkpointing:
        return []
    block = unet.down_blocks[0]
    found = [(unet.conv_in, unet.conv_in), (block.resnets[0], block.resnets[0])]
    if not getattr(block, "has_cross_attention", False):
        return found
    attention = block.attentions[0]
    first = attention.transformer_blocks[0]
    found.append((attention.norm, attention.proj_in))
    plain = first.norm_type == "layer_norm" and first.pos_embed is None  # what the norms give is used as it is
    if plain and not first.only_cross_attention and first.attn2 is not None and first.attn2.is_cross_attention:
        found += [(first.norm1, first.attn1), (first.norm2, first.attn2.to_q)]
    return found


def _first_half(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def half(value: Any) -> Any:
        return value[: len(value) // 2] if isinstance(value, Tensor) and value.ndim else value

    return tuple(half(value) for value in args), {name: half(value) for name, value in kwargs.items()}


def _twice(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.cat([output, output])
