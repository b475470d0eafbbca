"""PyTorch's settings of the whole process, which code that is not ours may have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

_NOTHING = nullcontext()


def usual_torch() -> AbstractContextManager[None]:
    """PyTorch as it is when a program starts: gradients are recorded, numbers are float32 and stay it, tensors made on
    the CPU.

    A simulator that is written in PyTorch often turns gradients off or chooses a device for all that follows it. Its
    own steps keep that.
    """
    probe = torch.empty(0)  # five times as quick as asking for the default device
    usual = probe.dtype is torch.float32 and probe.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return _NOTHING if usual and not _autocasting() else _restored()


def _autocasting() -> list[str]:
    """The kinds of device on which products are made in fewer bits."""
    return [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]


@contextmanager
def _restored() -> Iterator[None]:
    with ExitStack() as undo:
        if torch.is_inference_mode_enabled():
            undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        for device in _autocasting():
            undo.enter_context(torch.autocast(device, enabled=False))
        undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        undo.enter_context(torch.device("cpu"))
        yield
