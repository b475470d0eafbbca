"""A part chosen by name: one of ours, or ``module:name`` for one of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from saddlepoint.types import UserError


def choose(name: str, ours: Mapping[str, Any], flag: str) -> Any:
    """The entry ``name`` of ``ours``, or what ``module:name`` imports. Raises ``UserError`` naming the ``flag`` and the known entries."""
    if name in ours:
        return ours[name]
    known = f"take {', '.join(ours)}, or module:name for one of your own"
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UserError(f"{flag} has no choice {name!r}: {known}.")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"{flag} {name}: the module {module} cannot be imported ({error}): {known}.") from error
    except AttributeError as error:
        raise UserError(f"{flag} {name}: the module {module} has no {attribute}: {known}.") from error
