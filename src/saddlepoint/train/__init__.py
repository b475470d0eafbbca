"""The training loop and what surrounds it. It knows a system through ``saddlepoint.types.Learner`` only."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Train(ModuleType):
    """This package, callable: ``from saddlepoint import train`` finds it where its one function is meant."""

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        """``saddlepoint.train.start.train``."""
        from saddlepoint.train.start import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Train
