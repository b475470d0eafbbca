"""The processes that ``accelerate launch`` started, joined into one group."""

from __future__ import annotations

import atexit
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from accelerate import Accelerator


def join_processes(device: Literal["auto", "cpu", "cuda"]) -> Accelerator:
    """The accelerator of this process. What it joins is left when the interpreter ends, in order: gloo's threads, still running when C++ takes
    its statics apart, abort the process ("terminate called without an active exception"), now and then, after all its work is done.

    Those threads end with the group's last reference, and ``torch.distributed.nn.functional``, which making an optimiser imports, keeps ten of them
    (as defaults of its functions) where it is imported after the group was made. So it is imported first.
    """
    from accelerate import Accelerator

    import_module("torch.distributed.nn.functional")
    accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
    atexit.unregister(leave_processes)
    atexit.register(leave_processes)
    return accelerator


def leave_processes() -> None:
    """Leave the group and end its threads, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
