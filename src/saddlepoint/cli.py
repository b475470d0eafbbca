"""`saddlepoint <verb> ...`. What is slow to import is imported by the verb that needs it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TextIO

from saddlepoint import __version__
from saddlepoint.faults import explain, of_handler
from saddlepoint.streams import drop_output, hold_streams, kept_streams, open_closed_streams

THREAD_SECONDS = 5.0
"""how long a process or thread that is not ours may go on after a command"""
BROKEN_PIPE = int(getattr(signal, "SIGPIPE", 13))  # Windows has no such signal
USAGE = """\
usage: saddlepoint VERB ...

  train SYSTEM    train algd, sac, sac-lag, sac-pid, cal or mbdpo on an environment, safediffusion on a text-to-image pipeline, or a
                  system of your own, MODULE:NAME; `train --resume RUN` goes on where a run stopped
  evaluate RUN    whole episodes of a trained policy, and a video; or pictures of a text-to-image run, folder or hub id, measured
  report RUN...   one page that compares runs
  landscape RUN   the energy over the actions of chosen states, with the denoising paths
  sweep FILE      algorithms x environments x seeds, which go on after any interruption
  export RUN      the policy as an ONNX file, or a text-to-image model as a diffusers pipeline
  red-team PIPELINE  words that make a text-to-image pipeline draw unsafe pictures, and prompts with them to post-train on
  collect RUN...  a data set of several tasks from runs' replays, or from new episodes of their policies
  convert FILE... such a data set from the chunks of TD-MPC2's mt30 and mt80
  pretrain mbdpo  learn a world model of several tasks from a data set; `train mbdpo --start-from RUN` goes on online
  envs [WORD...]  the environments that come with saddlepoint, or those with these words
  examples [NAME...]  programs, sweeps and a tiny text-to-image world that come with saddlepoint, copied to where you are

`saddlepoint VERB --help` lists the flags of a verb; `--import MODULE` with any verb imports a module first, from the working directory too,
that registers environments or systems; `saddlepoint --version` prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C, 141 when what reads its output has ended."""
    open_closed_streams()
    if argv is not None:
        return _answer(list(argv))
    code = _answer(sys.argv[1:])  # of the program, which ends now
    _end_strays(code)
    return code


def _answer(args: list[str]) -> int:
    """What ``main`` does, for ``args``."""
    try:
        try:
            with kept_streams():
                return _run(args)
        finally:
            sys.stdout.flush()  # while an error can still be told
    except KeyboardInterrupt as interrupt:
        with contextlib.suppress(OSError):  # a terminal that was closed hears nothing
            print(f"\nsaddlepoint: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except (Exception, SystemExit) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + BROKEN_PIPE  # what a shell makes of a program that ends by this signal
        if isinstance(error, OSError) and error.filename is None and _output_fails():
            error = OSError(error.errno, error.strerror, "<standard output>")
        sentence = of_handler(error) or explain(error)
        if sentence is None:  # a fault of ours
            raise
        return _complain(sentence)


def _run(args: list[str]) -> int:
    odd = next((arg for arg in args if any("\ud800" <= letter <= "\udfff" for letter in arg)), None)  # Python's stand-ins for odd bytes
    if odd is not None:
        return _complain(f"the argument {odd!r} is not UTF-8: give names and paths in that encoding.")
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if args else 2
    if args[0].split("=")[0] == "--import" and len(args) > 1 + ("=" not in args[0]):  # before the verb
        at = 1 if "=" in args[0] else 2
        args = [args[at], *args[:at], *args[at + 1 :]]
    if args[0] == "--version":
        print(f"saddlepoint {__version__}")
        return 0
    if args[0] not in VERBS:
        return _complain(f"there is no verb {args[0]!r}: use one of {', '.join(VERBS)}.")
    from saddlepoint.types import UserError

    _SHOWN.clear()
    warnings.showwarning = _show_warning
    with suppress(OSError):  # a folder that was removed
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # where the user's own modules may be: --env my_module:My-v0
    try:
        args = _import_modules(args)
        module, function = VERBS[args[0]]
        vars(import_module(module))[function](args[1:])
    except UserError as error:
        return _complain(str(error))
    return 0


def _import_modules(args: list[str]) -> list[str]:
    """Import what each --import names, and return the other arguments."""
    left: list[str] = []
    words = iter(args)
    for word in words:
        if word.split("=")[0] != "--import":
            left.append(word)
            continue
        from saddlepoint.systems import import_user_module

        import_user_module(word.partition("=")[2] or next(words, ""))
    return left


VERBS: dict[str, tuple[str, str]] = {
    "train": ("saddlepoint.commands", "train_command"),
    "evaluate": ("saddlepoint.evaluate", "evaluate_command"),
    "envs": ("saddlepoint.commands", "envs_command"),
    "examples": ("saddlepoint.examples", "examples_command"),
    "report": ("saddlepoint.report.command", "report_command"),
    "landscape": ("saddlepoint.landscape", "landscape_command"),
    "sweep": ("saddlepoint.sweep", "sweep_command"),
    "export": ("saddlepoint.export", "export_command"),
    "red-team": ("saddlepoint.safediffusion.red_team", "red_team_command"),
    "collect": ("saddlepoint.offline.collect", "collect_command"),
    "convert": ("saddlepoint.offline.convert", "convert_command"),
    "pretrain": ("saddlepoint.offline.command", "pretrain_command"),
}
"""where each verb's function is; it takes the arguments after the verb"""


_SHOWN: set[str] = set()


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:  # fmt: skip
    """A warning as one sentence, once; those of libraries to their developers with their line, as Python has them."""
    if str(message) in _SHOWN:  # every evaluation makes its environments anew
        return
    _SHOWN.add(str(message))
    hold_streams()
    place = "" if issubclass(category, UserWarning) else f"{filename}:{lineno}: {category.__name__}: "
    print(f"warning: {place}{message}", file=sys.stderr)


def _nobody_reads() -> bool:
    """Whether standard output leads nowhere, as in ``saddlepoint envs | head -1``; it is then closed, so that Python's end is quiet too."""
    if not hasattr(select, "poll"):
        return False
    poll, out = select.poll(), sys.stdout.fileno()
    poll.register(out, 0)  # errors are always told
    if not poll.poll(0):
        return False
    drop_output()
    return True


def _output_fails() -> bool:
    """Whether standard output cannot be written, as on a full disk; the rest is then dropped, so that Python's end is quiet too."""
    with contextlib.suppress(ValueError):  # some stand-ins for it have no number
        number = sys.stdout.fileno()
        try:
            os.write(number, b"\n")
        except OSError:
            drop_output()
            return True
    return False


def _end_strays(code: int) -> None:
    """End the program where a simulator left a process or a thread that would keep it from ending."""
    if "multiprocessing.process" in sys.modules:
        from saddlepoint.foreign import end_processes

        for name in end_processes(THREAD_SECONDS):
            _show_warning(f"the process {name} was left running, and ends with the command", UserWarning, "", 0)
    until = time.monotonic() + THREAD_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                _show_warning(f"the thread {thread.name} was left running, and ends with the command", UserWarning, "", 0)
                sys.stdout.flush()
                os._exit(code)


def _complain(sentence: str) -> int:
    print(f"saddlepoint: error: {' '.join(sentence.splitlines())}", file=sys.stderr)  # names may have line ends
    return 2


if __name__ == "__main__":
    sys.exit(main())
