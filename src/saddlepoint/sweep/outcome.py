"""sweep.json: which trials there are, how far they came, and what made them. Written anew, atomically, at every
change."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import saddlepoint
from saddlepoint.files import SEAL, is_sealed, read_json, sealed, write_json
from saddlepoint.sweep.plan import Plan, Trial
from saddlepoint.types import UserError

FORMAT = 1
KINDS: dict[str, type] = {"seed": int, "total_steps": int, "attempts": int, "wall_s": float, "commits": list}
"""of a record's entries that are no texts"""
UNKNOWN = "unknown"
"""a source that nothing says more of: an installed package, or that of a record which was older than
``Record.commits``"""
State = Literal["waiting", "running", "interrupted", "finished", "failed", "pruned"]
"""``pruned``: given up by a search"""


@dataclass
class Record:
    """One trial in sweep.json."""

    environment: str
    label: str
    system: str
    seed: int
    folder: str
    command: str
    total_steps: int
    state: State = "waiting"
    attempts: int = 0
    """attempts of the sweep's newest start; a failed trial is tried again when the sweep is started again"""
    wall_s: float = 0.0
    """seconds of all attempts, imports and evaluations included"""
    sentence: str = ""
    """what went wrong last"""
    commits: list[str] = field(default_factory=list)
    """the sources that made what is in its folder, as ``commit`` names them and the newest last; empty in records
    that are older than this field"""

    @property
    def name(self) -> str:
        return "/".join(Path(self.folder).parts[-3:])


class Outcome:
    """The records of a sweep, old ones that its file no longer names included."""

    def __init__(self, plan: Plan, total_steps: dict[str, int]) -> None:
        """Take up the folder's sweep.json, if there is one, for the plan's trials. Raises ``UserError`` when it is
        damaged or of another version."""
        self.path = plan.out / "sweep.json"
        self.file = plan.file
        saved = _read(self.path)
        self._wall_before = saved.wall_s
        self._started = time.monotonic()
        self.earlier = {record.name: record for record in saved.trials}
        """those that the file no longer names"""
        self.records: dict[str, Record] = {}
        for trial in plan.trials:
            self.take(trial, total_steps[trial.name])
        self.made_by = {"saddlepoint": saddlepoint.__version__, "commit": commit(), "machine": _machine()}
        """of the sweep's newest start; each trial's record has its own commits"""

    def take(self, trial: Trial, total_steps: int) -> None:
        """Enter a trial that is to be run. Raises ``UserError`` where its folder has more steps."""
        self.records[trial.name] = _take_up(trial, self.earlier.pop(trial.name, None), total_steps)

    def keep(self, trial: Trial) -> None:
        """Enter a trial that is done with, as it was left."""
        if (record := self.earlier.pop(trial.name, None)) is not None:
            self.records[trial.name] = record

    def begin(self, name: str, resuming: bool) -> None:
        """Enter a trial's next attempt, with the source that it is about to be made by."""
        record = self.records[name]
        record.attempts += 1
        record.state = "running"
        source, before = commit() or UNKNOWN, (record.commits or [UNKNOWN]) if resuming else []
        record.commits = before if source in before[-1:] else [*before, source]

    def save(self) -> None:
        """Write sweep.json."""
        trials = [*self.records.values(), *self.earlier.values()]
        states = [record.state for record in trials]
        write_json(self.path, sealed({
            "format": FORMAT,
            "file": str(self.file),
            **self.made_by,
            "wall_s": round(self._wall_before + time.monotonic() - self._started, 1),
            "states": {state: states.count(state) for state in sorted(set(states))},
            "trials": [asdict(record) for record in trials],
        }))  # fmt: skip


def _take_up(trial: Trial, before: Record | None, total_steps: int) -> Record:
    """The trial's record: what was run stays known; a finished run of which more steps are now asked is begun, not
    done."""
    record = Record(
        trial.environment, trial.label, trial.system, trial.seed, str(trial.folder), trial.command(), total_steps
    )
    if before is None:
        return record
    record.wall_s, record.commits = before.wall_s, before.commits
    whole = before.state == "finished" and (trial.folder / "config.json").exists()
    if whole and total_steps < before.total_steps:
        raise UserError(
            f"{trial.folder} has already made {before.total_steps} steps, and the file now asks for {total_steps}:"
            " restore total_steps, or start a new sweep with --out."
        )
    if whole and total_steps == before.total_steps:
        record.state = "finished"
    return record


class Saved(NamedTuple):
    """What an earlier start left."""

    trials: list[Record]
    wall_s: float


def _read(path: Path) -> Saved:
    if not path.exists():
        return Saved([], 0.0)
    advice = "remove it; the trials below it are then looked at one by one"
    content = read_json(path, "the record of a sweep", advice=advice)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this version of saddlepoint: {advice}.")
    try:
        found = Saved([Record(**entry) for entry in content["trials"]], float(content["wall_s"]))
        whole = all(
            isinstance(value, KINDS.get(name, str)) for record in found.trials for name, value in vars(record).items()
        )
        whole = whole and (SEAL not in content or is_sealed(content))  # older records have no seal
    except (KeyError, TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise UserError(f"{path} has changed since it was written: {advice}.")
    return found


def commit() -> str | None:
    """The commit of saddlepoint's source, ``-dirty`` where files were changed since; None when it is no checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Without this, an installed package would be taken for a part of a repository that merely surrounds it.
        subprocess.run([*git, "ls-files", "--error-unmatch", "plan.py"], check=True, capture_output=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
