"""Code that is not ours and runs inside a training: an environment, a reward, a detector. Its mistakes, in one sentence."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from saddlepoint.types import ForeignFault, UserError

T = TypeVar("T")


def foreign(name: str, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """``call(*arguments, **named)``, which belongs to ``name``.

    Raises ``ForeignFault``, with the line, for whatever it raises but a ``UserError``: what is learnt can then be kept.
    """
    try:
        return call(*arguments, **named)
    except UserError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")
        raise ForeignFault(f"{name} raised {what} ({Path(last.filename).name}, line {last.lineno}, in {last.name}): correct it.") from error
