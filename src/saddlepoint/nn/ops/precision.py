"""The type of matrix products: ``--precision``."""

from __future__ import annotations

import functools
import logging
from typing import Literal

import torch

from saddlepoint.nn.ops.native.support import available, bfloat16_products
from saddlepoint.types import UserError

Precision = Literal["auto", "float32", "bfloat16"]
logger = logging.getLogger(__name__)


def resolve_precision(name: str, device: str | torch.device = "cpu") -> torch.dtype:
    """The type of products that ``name`` asks for: auto, float32 or bfloat16. Raises ``UserError`` for other names.

    ``auto`` is bfloat16 where it was measured to be faster: on CPUs that multiply it in hardware (AMX, AVX512-BF16), by the native operations.
    Elsewhere it is float32. bfloat16 on a CPU without such products is slower than float32, which a warning says once.
    """
    on_cpu = torch.device(device).type == "cpu"
    if name == "auto":
        return torch.bfloat16 if on_cpu and bfloat16_products() and available() else torch.float32
    if name == "float32":
        return torch.float32
    if name != "bfloat16":
        raise UserError(f"the precision is auto, float32 or bfloat16, not {name!r}.")
    if on_cpu and not (bfloat16_products() and available()):
        _warn_of_emulation()
    return torch.bfloat16


@functools.cache
def _warn_of_emulation() -> None:
    logger.warning(
        "this processor has no fast bfloat16 products: with --precision bfloat16 updates and plans take about 4 times as long as with float32. "
        "--precision auto takes the faster of the two."
    )
