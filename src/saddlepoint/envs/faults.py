"""An environment's own mistake, in one sentence."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from saddlepoint.types import EnvironmentFault, UserError

T = TypeVar("T")


def guarded(name: str, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """``call(*arguments, **named)``, a method of the environment ``name``.

    Raises ``EnvironmentFault``, with the line, for whatever it raises but a ``UserError``: a checkpoint can then be written.
    """
    try:
        return call(*arguments, **named)
    except UserError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")
        where = f"{Path(last.filename).name}, line {last.lineno}"
        raise EnvironmentFault(f"{name} raised {what} in {call.__name__.lstrip('_')}() ({where}): correct the environment.") from error
