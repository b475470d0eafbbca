"""Code that is not ours and runs inside a training, such as an environment: its mistakes, in one sentence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
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


def end_copy(owner: int, number: int) -> bool:
    """For a handler that ``owner`` installed: whether this process is a copy of it, as ``multiprocessing`` makes them.

    Copies inherit handlers. SIGTERM ends a copy: whoever made it may wait for that end.
    """
    if os.getpid() == owner:
        return False
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return True


def end_processes(seconds: float) -> list[str]:
    """End the processes of ``multiprocessing`` that are still there after ``seconds``: Python would wait for them for
    ever. Returns their names."""
    until, left = time.monotonic() + seconds, []
    for process in multiprocessing.active_children():
        if not process.daemon:  # Python ends daemons itself
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                left.append(process.name)
    return left


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
