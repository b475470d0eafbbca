"""The sweep itself: check everything, then keep the pool busy until every trial is finished or has failed."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from saddlepoint.files import atomic_write
from saddlepoint.flags import parse
from saddlepoint.machine import cpus
from saddlepoint.sweep.check import Settled, require_agreement, settle, settle_one
from saddlepoint.sweep.outcome import Outcome, Record
from saddlepoint.sweep.plan import Plan, Trial, read
from saddlepoint.sweep.pool import Pool, RayPool, require_answer, require_ray
from saddlepoint.sweep.progress import Progress
from saddlepoint.sweep.search import Searching, corners, require_optuna
from saddlepoint.sweep.worker import INTERRUPTED, Ending, Job
from saddlepoint.train import run
from saddlepoint.train.signals import Interrupted, stop_on_signal
from saddlepoint.types import UserError

PAUSE_SECONDS = 5.0
"""before a second attempt, twice that before a third: a full disk or memory may pass, a dying process gives up its
lock"""
WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class SweepFlags:
    """Algorithms x environments x seeds x overrides, as ordinary runs; with [search] in the file, flags that Optuna
    chooses. Started again, it goes on where it stopped."""

    out: Path | None = None
    """folder of the sweep, instead of the one that the file names"""
    jobs: int = 0
    """trials at a time; 0 takes as many as there are CPUs for their threads"""
    address: str | None = None
    """an existing Ray cluster, which must see the same files; by default a Ray of its own on this machine"""
    retries: int = 2
    """how often a failed or killed trial is resumed before it counts as failed"""
    dry_run: bool = False
    """only check everything and print the trials' commands"""
    quiet: bool = False
    """plain lines instead of the live table"""


def sweep(args: list[str]) -> None:
    """`saddlepoint sweep FILE ...`. Raises ``UserError``, also when trials have failed; ``Interrupted`` after
    Ctrl-C."""
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        raise UserError("sweep needs its file first: `saddlepoint sweep FILE.toml`, with --help for its flags.")
    helping = args[0] in ("-h", "--help")
    flags = parse(SweepFlags, SweepFlags(), args if helping else args[1:], "saddlepoint sweep FILE").values
    if flags.jobs < 0 or flags.retries < 0:
        raise UserError("--jobs and --retries must not be negative.")
    if not flags.dry_run:
        require_ray()
        if flags.address:
            require_answer(flags.address)
    plan = read(Path(args[0]), flags.out)
    if plan.search is not None:
        _search(plan, flags)
    else:
        _sweep(plan, flags)


def _sweep(plan: Plan, flags: SweepFlags) -> None:
    settled = settle(plan)
    if flags.dry_run:
        _agree(plan, settled)
        _show(plan.trials, f"{len(plan.trials)} trials")
        return
    with run.only_writer(plan.out):
        _agree(plan, settled)
        outcome = Outcome(plan, {name: found.config.total_steps for name, found in settled.items()})
        outcome.save()
        records = outcome.records
        todo = Listed(trial for trial in plan.trials if records[trial.name].state != "finished")
        if todo.left:
            progress = Progress(f"sweep {plan.out}", records.values(), flags.quiet)
            first = f"{len(todo.left)} of {len(plan.trials)} trials to run"
            _keep_busy(todo, list(todo.left), first, plan, outcome, progress, flags)
        failed = [record for record in records.values() if record.state == "failed"]
        if failed:
            raise UserError(
                f"{len(failed)} of {len(records)} trials failed, the first, {failed[0].name}, because:"
                f" {failed[0].sentence.rstrip('.')};"
                f" its log is {_beside(Path(failed[0].folder), '.log')}; the same command tries them again."
            )
        print(f"finished: {len(records)} trials in {plan.out}; look at them with `saddlepoint report {plan.out}`")


def _search(plan: Plan, flags: SweepFlags) -> None:
    assert plan.search is not None
    require_optuna()
    tried = [trial for study in plan.search.studies for trial in corners(study)]
    for trial in tried:
        settle_one(plan, trial)
    if flags.dry_run:
        _show(tried, f"up to {plan.search.flags.trials} points of {len(plan.search.studies)} searches; the lines above try each end of their flags")
        return
    with run.only_writer(plan.out):
        outcome = Outcome(plan, {})
        source = Searching(plan, outcome)
        source.save()
        outcome.save()
        progress = Progress(f"search {plan.out}", outcome.records.values(), flags.quiet, source.runs)
        first = f"up to {plan.search.flags.trials} points of {len(plan.search.studies)} searches, {source.runs} runs"
        _keep_busy(source, tried, first, plan, outcome, progress, flags)
        print("\n".join(source.words()))


def _show(trials: Sequence[Trial], what: str) -> None:
    print("\n".join(trial.command() for trial in trials))
    print(f"{what}; nothing was run")


def _agree(plan: Plan, settled: dict[str, Settled]) -> None:
    """Raises ``UserError`` when the file contradicts what was run."""
    for trial in plan.trials:
        if (trial.folder / "config.json").exists():
            require_agreement(trial, settled[trial.name])


def _keep_busy(
    source: Source, like: Sequence[Trial], first: str, plan: Plan, outcome: Outcome, progress: Progress, flags: SweepFlags,
) -> None:  # fmt: skip
    """Open the pool for trials such as those of ``like`` and run all that the source has. Raises ``Interrupted`` when
    asked to stop."""
    threads = max(trial.threads for trial in like)
    jobs = flags.jobs or max(cpus() // threads, 1)
    with RayPool(flags.address, jobs * threads, plan.gpus) as pool:
        slots = flags.jobs or (max(pool.cpus // threads, 1) if flags.address else jobs)
        # After Ray, which has a handler of its own for SIGTERM.
        with stop_on_signal() as stop, progress:
            progress.say(f"{first}, at most {slots} at a time; in {plan.out}")
            conduct(source, outcome, pool, slots, flags.retries, progress, stop)
    if stop():
        raise Interrupted(f"stopped; the same command goes on with {plan.out}")


class Source(Protocol):
    """Where the trials come from."""

    def next(self) -> Trial | None:
        """The trial that starts next; None where there is none now."""
        ...

    def given_up(self, trial: Trial) -> bool:
        """Whether a running one is to be stopped, and not to be started again."""
        ...

    def ended(self, trial: Trial) -> None:
        """A trial was finished, given up, or failed for the last time."""
        ...


class Listed:
    """The trials of a file, in their order."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self.left = deque(trials)

    def next(self) -> Trial | None:
        return self.left.popleft() if self.left else None

    def given_up(self, trial: Trial) -> bool:
        return False

    def ended(self, trial: Trial) -> None:
        pass


def conduct(
    source: Source, outcome: Outcome, pool: Pool, slots: int, retries: int, progress: Progress, stop: Callable[[], bool],
) -> None:  # fmt: skip
    """Run the source's trials, ``slots`` at a time, and keep their records; returns when none runs any more."""
    again: deque[Trial] = deque()
    running: dict[Any, Trial] = {}
    cancelled: set[Any] = set()
    stopping = False
    while True:
        if stop() and not stopping:
            stopping = True
            pool.stop()
            progress.say("stopping: each running trial writes its checkpoint")
        while not stopping and len(running) < slots:
            trial = again.popleft() if again else source.next()
            if trial is None:
                break
            resuming = _is_begun(trial.folder)
            job = _prepare(trial, resuming, PAUSE_SECONDS * outcome.records[trial.name].attempts)
            outcome.begin(trial.name, resuming)
            running[pool.submit(job)] = trial
            outcome.save()
        if not running:
            return
        for handle in [handle for handle in running if handle not in cancelled and source.given_up(running[handle])]:
            cancelled.add(handle)
            pool.cancel(handle)
        for handle, ending in pool.wait(WAIT_SECONDS):
            trial = running.pop(handle)
            record = outcome.records[trial.name]
            _close(record, ending, stop(), handle in cancelled, retries)
            if record.state == "waiting":
                again.appendleft(trial)
            elif record.state != "interrupted":
                source.ended(trial)
            outcome.save()
            progress.changed(record)
        progress.refresh()


def _close(record: Record, ending: Ending, stopping: bool, given_up: bool, retries: int) -> None:
    """Enter how an attempt ended."""
    record.wall_s = round(record.wall_s + ending.seconds, 1)
    record.sentence = ending.sentence
    if ending.code == 0:
        record.state = "finished"
    elif given_up:
        record.state, record.sentence = "pruned", ""
    elif stopping and ending.code in (INTERRUPTED, -signal.SIGTERM):
        record.state = "interrupted"
    elif stopping or record.attempts > retries:
        record.state = "failed"
    else:
        record.state = "waiting"


def _prepare(trial: Trial, resume: bool, pause: float) -> Job:
    """A new run, or the resuming of one that was begun; what a start left that was killed before its first checkpoint does not count."""
    home = trial.folder.parent
    home.mkdir(parents=True, exist_ok=True)
    atomic_write(_beside(trial.folder, ".command"), trial.command() + "\n")
    log = _beside(trial.folder, ".log")
    return Job(tuple(trial.train(resume)), str(log), str(Path.cwd()), trial.threads, pause)


def _is_begun(folder: Path) -> bool:
    """Whether there is something to resume. A run writes its first checkpoint before its first metrics: without both,
    it was killed while it started and left nothing."""
    checkpoints = folder / "checkpoints"
    metrics = folder / "metrics.jsonl"
    return (metrics.exists() and metrics.stat().st_size > 0) or any(
        path.name.isdecimal() for path in (checkpoints.iterdir() if checkpoints.is_dir() else ())
    )


def _beside(folder: Path, suffix: str) -> Path:
    """A file beside the run folder: a new run's own folder must be empty."""
    return folder.with_name(folder.name + suffix)
