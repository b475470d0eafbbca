"""Two processes as ``accelerate launch`` starts them, forked from the tests', which have imported all that they need."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any


def start_two(work: Callable[..., object], *args: Any) -> list[ForkProcess]:
    """``work(*args)`` as rank 0 and as rank 1 of a group on this CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    ranks = []
    for rank in ("0", "1"):
        environ = group | {"RANK": rank, "LOCAL_RANK": rank}
        ranks.append(multiprocessing.get_context("fork").Process(target=_work, args=(environ, work, args), daemon=True))
        ranks[-1].start()
    return ranks


def end_well(ranks: list[ForkProcess]) -> None:
    """Wait for both, which must have ended without an error."""
    for rank in ranks:
        rank.join(timeout=280)
    assert [rank.exitcode for rank in ranks] == [0, 0]


def _work(environ: dict[str, str], work: Callable[..., object], args: tuple[Any, ...]) -> None:
    from accelerate.state import AcceleratorState

    os.environ.update(environ)
    AcceleratorState._reset_state(reset_partial_state=True)  # what the tests' process has joined so far: a group of one
    work(*args)
