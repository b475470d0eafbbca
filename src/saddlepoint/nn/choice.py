"""A part chosen by name: one of ours, or ``module:name`` for one of the user's own, which is held to what it must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from saddlepoint.foreign import foreign, load
from saddlepoint.types import ForeignFault, UserError


def choose(name: str, ours: Mapping[str, Any], flag: str) -> Any:
    """The entry ``name`` of ``ours``, or what ``module:name`` imports. Raises ``UserError`` naming the ``flag`` and the known entries."""
    if name in ours:
        return ours[name]
    if ":" not in name:
        raise UserError(f"{flag} has no choice {name!r}: take {', '.join(ours)}, or module:name for one of your own.")
    return load(flag, name)


def made(what: str, kind: Any, wanted: type[Any], *sizes: Any) -> Any:
    """``kind(*sizes)``, a part of the user's own. Raises ``UserError`` that calls it ``what``, unless that is a ``wanted``."""
    found = foreign(what, kind, *sizes) if callable(kind) else kind
    if not isinstance(found, wanted):
        raise UserError(f"{what} makes no {wanted.__name__}: derive your class from {wanted.__module__}.{wanted.__name__}.")
    return found


def require_answer(what: str, shape: tuple[int, ...], call: Callable[..., Any], *arguments: Any) -> Tensor:
    """What a part of the user's own answers. Raises ``ForeignFault`` that calls it ``what``, unless that is a tensor of this shape with a gradient."""
    answer = foreign(what, call, *arguments)
    if not isinstance(answer, Tensor) or answer.shape != shape:
        got = f"numbers of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ForeignFault(f"{what} returned {got} where a tensor of shape {shape} is wanted: correct it.")
    if torch.is_grad_enabled() and not answer.requires_grad:  # a policy may be loaded where none are recorded
        raise ForeignFault(f"{what} returned numbers without a gradient, so nothing would be learnt from them: keep to differentiable operations.")
    return answer
