"""Run folders as numbers: found, read, and grouped by what they were asked to do."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.report.numbers import ABSENT
from saddlepoint.train import run as run_folder
from saddlepoint.train.log import scan_metrics
from saddlepoint.train.verdict import PREFIXES
from saddlepoint.types import UserError

SAME_METHOD = run_folder.OPERATIONAL | {
    "env", "seed", "eval_every", "eval_episodes", "log_every", "device", "compile", "env_processes", "track", "binds",
}  # fmt: skip
"""settings that may differ between runs of one method: they do not change what is learnt"""
OWN = frozenset({"seed", "out", "quiet"})
"""settings that every run has for itself"""
BUDGET = "budget"
CLIPS = {".mp4": "video/mp4", ".webp": "image/webp", ".gif": "image/gif"}


@dataclass(frozen=True)
class Run:
    """One run folder as it is now."""

    folder: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    faults: tuple[str, ...] = ()
    """sentences about lines of metrics that cannot be read, which are left out"""

    @property
    def env(self) -> str:
        return self.config["train"]["env"]

    @property
    def system(self) -> str:
        return self.config["system"]

    @property
    def seed(self) -> int:
        return self.config["train"]["seed"]

    @property
    def budgets(self) -> tuple[CostBudget, ...]:
        return run_folder.budgets_of(self.config)

    @property
    def settings(self) -> dict[str, str]:
        """Every setting of the run in words, the budget among them; those of nested configs with dots."""
        budget = "; ".join(budget.describe() for budget in self.budgets)
        flat = _flat(self.config["train"] | self.config["learner"])
        return {name: _words(value) for name, value in flat.items()} | {BUDGET: budget}

    @property
    def binding(self) -> tuple[str, ...]:
        """Prefixes of the metrics of the policies that the budget binds."""
        binds = self.config["train"].get("binds", "both")
        return PREFIXES.get(binds, PREFIXES["both"])

    @property
    def wall_s(self) -> float:
        """Seconds of wall-clock until the newest line of metrics."""
        return float(self.lines[-1]["wall_s"]) if self.lines else 0.0

    @property
    def steps(self) -> int:
        """Environment steps until the newest line of metrics."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def machine(self) -> str:
        """What the run was made with, as far as it says: processor, device, library and commit."""
        made = self.config.get("made_with") or [{}]
        last = made[-1] if isinstance(made, list) and isinstance(made[-1], dict) else {}
        device = self.config["resolved"].get("device") if isinstance(self.config.get("resolved"), dict) else None
        parts = [last.get("machine"), device, f"torch {last['torch']}" if "torch" in last else None]
        parts.append(last.get("commit") or (f"saddlepoint {last['saddlepoint']}" if "saddlepoint" in last else None))
        return ", ".join(str(part) for part in parts if part) or ABSENT

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the evaluations, in the order of steps."""
        return [line for line in self.lines if line["kind"] == "eval"]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps, seconds of wall-clock and finite values of a metric, each (points,); empty where the run has none."""
        rows = [(line["step"], line["wall_s"], line[name]) for line in self.lines if name in line]
        table = np.array(rows, float).reshape(-1, 3)
        table = table[np.isfinite(table[:, 2])]
        return table[:, 0], table[:, 1], table[:, 2]

    def clips(self) -> list[Path]:
        """Films in videos/, that of the latest step last: a copied folder's times say nothing. Links are left out: a folder
        from elsewhere could show any file through one."""
        folder = self.folder / "videos"
        if folder.is_symlink() or not folder.is_dir():
            return []
        found = [path for path in folder.iterdir() if path.suffix in CLIPS and not path.name.startswith(".")]
        whole = [path for path in found if path.is_file() and not path.is_symlink()]
        return sorted(whole, key=lambda path: (_step_of(path), path.stat().st_mtime, path.name))


@dataclass(frozen=True)
class Group:
    """Runs of one method on one environment, which differ in their seeds."""

    label: str
    runs: list[Run]


@dataclass(frozen=True)
class Environment:
    """All that there is about one environment."""

    name: str
    groups: list[Group]
    differing: list[str]
    """settings in which the runs differ"""

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs that ``paths`` are or hold, at any depth, each once.

    Raises ``UserError`` for a path without any, and for a run that is not one of reinforcement learning.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        found = _search(path)
        if not found:
            raise UserError(f"{path} holds no run (a folder with config.json and metrics.jsonl): give run folders, or a folder of them.")
        folders |= {folder.resolve(): folder for folder in found}
    return [_read(folder) for folder in folders.values()]


def group_runs(runs: Sequence[Run]) -> list[Environment]:
    """Runs by environment, then by method: the system and those settings in which its runs differ on some environment.

    A label names the same settings on every environment, so that a method is called the same throughout.
    """
    by_env: dict[str, list[Run]] = {}
    for run in runs:
        by_env.setdefault(run.env, []).append(run)
    named: dict[str, set[str]] = {}  # system -> settings in its labels
    for own in by_env.values():
        for system in {run.system for run in own}:
            of_system = [run for run in own if run.system == system]
            named.setdefault(system, set()).update(set(differing(of_system)) - SAME_METHOD - {BUDGET})
    environments = []
    for env, own in sorted(by_env.items()):
        several_budgets = len({run.settings[BUDGET] for run in own}) > 1
        groups: dict[str, list[Run]] = {}
        for run in sorted(own, key=lambda run: run.seed):
            shown = sorted(named[run.system]) + [BUDGET] * several_budgets
            groups.setdefault(_label(run, shown), []).append(run)
        listed = [Group(label, groups[label]) for label in sorted(groups)]
        environments.append(Environment(env, listed, differing(own)))
    return environments


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings, but for those of ``OWN``, that are not the same in all runs of the systems which have them.

    In a system that has a setting, a run without it, such as one made before the option existed, differs from the others.
    """
    values: dict[str, set[str]] = {}
    for system in dict.fromkeys(run.system for run in runs):
        own = [run.settings for run in runs if run.system == system]
        for name in dict.fromkeys(name for settings in own for name in settings):
            values.setdefault(name, set()).update(settings.get(name, ABSENT) for settings in own)
    return [name for name, seen in values.items() if len(seen) > 1 and name not in OWN]


def _label(run: Run, shown: list[str]) -> str:
    values = run.settings | {BUDGET: ", ".join(f"{budget.limit:g}" for budget in run.budgets)}
    return " ".join([run.system, *(f"{name.replace('_', '-')}={values.get(name, ABSENT)}" for name in shown)])


def _read(folder: Path) -> Run:
    for name in ("config.json", "metrics.jsonl"):
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name} is a link, and a report reads only files of the run itself: leave that folder out.")
    config = run_folder.read(folder)
    if "budgets" not in config:
        raise UserError(f"{folder} is a run of {config['system']}, which has no environment with a cost budget: leave it out.")
    if "tasks" in config:
        raise UserError(f"{folder} learnt several tasks from stored episodes, and a report compares runs on one environment: leave it out.")
    lines, faults = scan_metrics(folder)
    return Run(folder, config, lines, tuple(faults))


def _search(path: Path) -> list[Path]:
    found = []
    for folder, inner, files in os.walk(path):
        parts = {"config.json", "metrics.jsonl", "checkpoints"} & {*files, *inner}
        if len(parts) > 1:  # one of which a part is gone is named, not passed over
            found.append(Path(folder))
            inner.clear()  # nothing below a run is another run
        inner.sort()
    return found


def _step_of(clip: Path) -> int:
    """The step that a film's name begins with; -1 where it is not one of ``evaluate``'s."""
    found = re.match(r"[0-9]{1,18}(?=[-.])", clip.name)
    return int(found[0]) if found else -1


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = _flat(value) if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}" if key else name: own for key, own in inner.items()}
    return flat


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
