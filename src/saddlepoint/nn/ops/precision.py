"""The type of matrix products: ``--precision``."""

from __future__ import annotations

import functools
import logging
from typing import Literal, get_args

import torch

from saddlepoint.nn.ops.native.support import bfloat16_products, native_supported
from saddlepoint.types import UserError

Precision = Literal["auto", "float32", "bfloat16"]
logger = logging.getLogger(__name__)


def resolve_precision(name: str, device: str | torch.device = "cpu") -> torch.dtype | None:
    """The type of products that ``name`` asks for, auto, float32 or bfloat16; None: that of the inputs. Raises
    ``UserError`` for other names.

    ``auto`` is bfloat16 where that was measured to be faster: on CPUs that multiply it in hardware (AMX, AVX512-BF16)
    and have native operations.
    bfloat16 on a CPU without such products is slower than float32, which a warning says once. Builds nothing.
    """
    if name not in get_args(Precision):
        raise UserError(f"the precision is auto, float32 or bfloat16, not {name!r}.")
    on_cpu = torch.device(device).type == "cpu"
    fast = on_cpu and native_supported() and bfloat16_products()
    if name == "bfloat16" and on_cpu and not fast:
        _warn_of_emulation()
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and fast) else None


@functools.cache
def _warn_of_emulation() -> None:
    logger.warning(
        "this processor has no fast bfloat16 products: with --precision bfloat16 updates and plans take about 4 times"
        " as long as with float32. --precision auto takes the faster of the two."
    )
