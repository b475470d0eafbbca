"""The processes that ``accelerate launch`` started, joined into one group."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from accelerate import Accelerator


def join_processes(device: Literal["auto", "cpu", "cuda"]) -> Accelerator:
    """The accelerator of this process. What it joins is left when the interpreter ends, in order: gloo's threads, still running when C++ takes
    its statics apart, abort the process ("terminate called without an active exception"), now and then, after all its work is done."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
    atexit.unregister(_leave)
    atexit.register(_leave)
    return accelerator


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
