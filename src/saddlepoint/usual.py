"""PyTorch's settings of the whole process, which code that is not ours may have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def usual_torch() -> Iterator[None]:
    """PyTorch as it is when a program starts: gradients are recorded, numbers are float32, tensors made on the CPU.

    A simulator that is written in PyTorch often turns gradients off or chooses a device for all that follows it. Its
    own steps keep that.
    """
    with ExitStack() as undo:
        if torch.is_inference_mode_enabled():
            undo.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            undo.enter_context(torch.enable_grad())
        if (dtype := torch.get_default_dtype()) is not torch.float32:
            torch.set_default_dtype(torch.float32)
            undo.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            undo.enter_context(torch.device("cpu"))
        yield
