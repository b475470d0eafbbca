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

    The first convolution, the first residual block and the self-attention that follows it then work on one half; their
    results, and gradients, are those of the whole up to rounding. Nothing is shared where times are told with the text
    (addition_embed_type) or activations are computed again (gradient checkpointing).
    """
    with ExitStack() as stack:
        for module in _before_text(unet):
            for handle in (
                module.register_forward_pre_hook(_first_half, with_kwargs=True),
                module.register_forward_hook(_twice),
            ):
                stack.callback(handle.remove)
        yield


def _before_text(unet: Any) -> list[Any]:
    if not hasattr(unet, "conv_in") or unet.config.addition_embed_type or unet.is_gradient_checkpointing:
        return []
    block = unet.down_blocks[0]
    found = [unet.conv_in, block.resnets[0]]
    if getattr(block, "has_cross_attention", False):
        attention = block.attentions[0]
        first = attention.transformer_blocks[0]
        found += [attention.norm, attention.proj_in] + ([] if first.only_cross_attention else [first.attn1])
    return found


def _first_half(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def half(value: Any) -> Any:
        return value[: len(value) // 2] if isinstance(value, Tensor) and value.ndim else value

    return tuple(half(value) for value in args), {name: half(value) for name, value in kwargs.items()}


def _twice(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.cat([output, output])
