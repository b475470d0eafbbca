"""`saddlepoint report RUN... --out page.html`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from saddlepoint.files import atomic_write, beside
from saddlepoint.flags import parse
from saddlepoint.options import require_at_least
from saddlepoint.types import UserError


@dataclass(frozen=True)
class ReportFlags:
    """One self-contained page that compares runs: run folders, or folders that hold some at any depth."""

    out: Path = Path("report.html")
    """the page to write"""
    live: bool = False
    """go on and write the page again and again, until Ctrl-C; the page reloads itself"""
    every: int = 30
    """seconds between two writings with --live"""
    landscapes: bool = True
    """draw the energy landscapes of trained policies, which takes some seconds for each method and environment"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""


def report_command(args: list[str]) -> None:
    """`saddlepoint report RUN... --out page.html [--live]`"""
    runs, rest = split_args(args)
    parsed = parse(ReportFlags, ReportFlags(), rest, "saddlepoint report RUN...")
    flags: ReportFlags = parsed.values
    if not runs:
        raise UserError("report needs run folders, or a folder of them: `saddlepoint report runs/* --out page.html`.")
    require_at_least(flags, {"every": 1, "threads": 0})
    if "every" in parsed.given and not flags.live:
        raise UserError("--every does nothing without --live: leave it out, or add that.")
    write_page(flags.out, None)
    from saddlepoint.report.stats import require_rliable

    require_rliable()
    from saddlepoint.train.threads import use_threads

    use_threads(flags.threads)
    follow(runs, flags)


def follow(paths: list[Path], flags: ReportFlags, sleep: Callable[[float], None] = time.sleep) -> None:
    """Write the page once, or with ``live`` until Ctrl-C and then a last time as a page that stands still."""
    from saddlepoint.report.media import Landscapes
    from saddlepoint.report.numbers import plural
    from saddlepoint.report.page import build_page
    from saddlepoint.report.runs import find_runs

    landscapes = Landscapes() if flags.landscapes else None
    try:
        while flags.live:
            write_page(flags.out, build_page(find_runs(paths), landscapes, flags.every, flags.out))
            print(f"{time.strftime('%H:%M:%S')} {flags.out} written; Ctrl-C ends", flush=True)
            sleep(flags.every)
    except KeyboardInterrupt:
        print()
    runs = find_runs(paths)
    page = build_page(runs, landscapes, page=flags.out)
    write_page(flags.out, page)
    for fault in (fault for run in runs for fault in run.faults):
        print(f"warning: {fault}")
    print(f"report of {plural(len(runs), 'run')}: {flags.out} ({len(page.encode()) / 1e6:.1f} MB)")


def write_page(path: Path, page: str | None) -> None:
    """Write the page so that a reader sees the old one or the new one; None only tries whether it could be written.

    Raises ``UserError`` when it cannot.
    """
    try:
        if path.is_dir():
            raise UserError(f"--out {path} is a folder: give the name of a file in it, such as {path / 'report.html'}.")
        if path.suffix.lower() not in (".html", ".htm"):  # it may be a run's own file
            raise UserError(f"--out {path} is not named as a page: let it end in .html.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if page is not None:
            atomic_write(path, page)
        else:  # before minutes of work, whether a file can be written there
            trial = beside(path)
            trial.touch(exist_ok=False)
            trial.unlink()
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror or error}): choose another place.") from error


def split_args(args: list[str]) -> tuple[list[Path], list[str]]:
    """Run folders and flags apart, in whatever order they come."""
    valued = {f"--{field.name}" for field in fields(ReportFlags) if field.type != "bool"}
    runs, rest = [], []
    after_flag = False
    for arg in args:
        if arg.startswith("-") or after_flag:
            rest.append(arg)
        else:
            runs.append(Path(arg))
        after_flag = arg in valued
    return runs, rest
