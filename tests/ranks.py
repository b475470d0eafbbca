"""Two processes as ``accelerate launch`` starts them.

They are forked from a server that has imported what they need and has run nothing: the tests' own process holds threads
and locks of the tests before, and a fork of it may wait for them for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

LATE = (
    "saddlepoint.safediffusion.start", "accelerate", "peft", "transformers.models.clip.modeling_clip", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl", "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "diffusers.pipelines.flux.pipeline_flux",
)  # fmt: skip
"""what pipelines import late: once in the server, not once a rank"""


def start_two(work: Callable[..., object], *args: Any) -> list[BaseProcess]:
    """``work(*args)`` as rank 0 and as rank 1 of a group on this CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__, *LATE])  # of the first call; one server serves all tests
    ranks: list[BaseProcess] = []
    for rank in ("0", "1"):
        environ = group | {"RANK": rank, "LOCAL_RANK": rank}
        ranks.append(context.Process(target=_work, args=(environ, work, args), daemon=True))
        ranks[-1].start()
    return ranks


def end_well(ranks: list[BaseProcess]) -> None:
    """Wait for both, which must have ended without an error."""
    for rank in ranks:
        rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks] == [0, 0]


def _work(environ: dict[str, str], work: Callable[..., object], args: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environ)
    work(*args)
