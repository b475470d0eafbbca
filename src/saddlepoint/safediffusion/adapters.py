"""Low-rank adapters: their layers, and their forward pass as one product where that is less work."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from saddlepoint.safediffusion.config import SafeDiffusionConfig

ADAPTER = "default"
"""peft's name of the adapters"""


def adapter_config(config: SafeDiffusionConfig, layers: tuple[str, ...]) -> Any:
    """Of the adapters that a run trains."""
    from peft import LoraConfig

    return LoraConfig(r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=list(layers))


def add_adapters(network: Any, config: SafeDiffusionConfig, seed: int, layers: tuple[str, ...]) -> None:
    """Fresh adapters of ``layers``, which change nothing yet, in float32 whatever precision the frozen weights have."""
    from peft.tuners.lora import Linear

    with torch.random.fork_rng(devices=[]):  # peft draws the adapters' first factor from the global stream
        torch.manual_seed(seed)
        network.add_adapter(adapter_config(config, layers))
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for layer in network.modules():
        if isinstance(layer, Linear) and _narrow(layer, config.rank):
            vars(layer)["forward"] = partial(_as_one_product, layer)


def _narrow(layer: Any, rank: int) -> bool:
    """Whether the gradient of a whole weight costs less than the adapter's own products, forward and back."""
    return layer.in_features * layer.out_features < 3 * rank * (layer.in_features + layer.out_features)


def _as_one_product(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """x (W + scale B A)^T + bias: peft's x W^T + bias + scale (x A^T) B^T up to rounding. In low precision, where W
    would swallow a small B A, it stays peft's."""
    base = layer.base_layer
    if layer.disable_adapters or torch.is_autocast_enabled(x.device.type) or base.weight.dtype != torch.float32:
        return type(layer).forward(layer, x, *args, **kwargs)
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return functional.linear(x, torch.addmm(base.weight, b, a, alpha=layer.scaling[ADAPTER]), base.bias)
