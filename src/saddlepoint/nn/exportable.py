"""What a system offers of its policy to be written as an ONNX file."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

ExportMode = Literal["deterministic", "stochastic"]


class Exportable(NamedTuple):
    """A policy as one function of tensors: everything it needs is inside or an input."""

    module: nn.Module
    """called with the inputs in their order, returns the action (batch, action) in the environment's own units"""
    inputs: dict[str, Tensor]
    """example inputs, ``observation`` (batch, observation) first; the leading axis of each is the batch"""
    noise: str
    """one sentence on the input ``noise``, which is standard normal; empty when there is none"""
