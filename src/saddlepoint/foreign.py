"""Code that is not ours and runs inside a training, such as an environment: its mistakes, in one sentence."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from saddlepoint.faults import describe
from saddlepoint.types import ForeignFault, UserError

T = TypeVar("T")


def foreign(name: str, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """``call(*arguments, **named)``, which belongs to ``name``.

    Raises ``ForeignFault``, with the line, for whatever it raises but a ``UserError`` and Ctrl-C: what is learnt can
    then be kept. ``sys.exit`` counts as an error.
    """
    try:
        return call(*arguments, **named)
    except BaseException as error:
        raise blame(name, error) from error


def load(flag: str, name: str) -> Any:
    """What ``module:name``, the value of ``flag``, imports. Raises ``UserError`` where there is none, with the line where the module itself fails."""
    module, _, attribute = name.partition(":")
    if not module or module.startswith(".") or not attribute:
        raise UserError(
            f"{flag} {name}: give the module's full name and a name in it, such as my_package.scores:brightness."
        )
    try:
        loaded = foreign(f"{flag} {name}", import_module, module)
    except ForeignFault as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        raise UserError(
            f"{flag} {name}: the module cannot be imported ({first_line(error.__cause__)}): is it on the Python path?"
        ) from error
    if attribute not in vars(loaded):
        raise UserError(f"{flag} {name}: {module} has no {attribute!r}.")
    return vars(loaded)[attribute]


def blame(name: str, error: BaseException) -> ForeignFault:
    """The fault that ``error``, raised in code of ``name``, is; raises ``error`` itself where it is not that code's."""
    if isinstance(error, UserError) or (isinstance(error, KeyboardInterrupt) and _from_the_keyboard(error)):
        raise error
    return ForeignFault(f"{name} raised {describe(error)}: correct it.")


def first_line(error: BaseException) -> str:
    """What a library says of a fault, short enough to stand within a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _from_the_keyboard(error: KeyboardInterrupt) -> bool:
    """Whether Ctrl-C may have raised it: only where a handler of signals raises, and in the main thread.

    While a run trains, its own handler takes SIGINT as a wish, and in worker processes it is ignored; a
    KeyboardInterrupt there was raised by the environment itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    if type(error) is not KeyboardInterrupt or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name == "signals.py"
