"""A sweep's TOML file to its trials, each of them an ordinary run of `saddlepoint train`.

```toml
out = "runs/sweep"
environments = ["saddlepoint/Toy-v0"]
seeds = [0, 1, 2]
gpus = 0                                          # optional: GPUs, or a share of one, for each trial
common = { total_steps = 10000 }                  # optional: flags of `saddlepoint train`, with underscores
[environment."saddlepoint/Toy-v0"]                # optional: flags for one environment
total_steps = 5000
[algorithms.algd]                                 # a label; the system is the label unless it is named
[algorithms.algd-plain]
system = "algd"
energy = "plain"
[grid]                                            # optional: every combination, for all algorithms ...
gamma = [0.98, 0.99]
[algorithms.algd.grid]                            # ... or for one
rho = [0.1, 1.0]
```
Of a flag that is set twice, the later of common, environment, algorithm and grid counts. With a table [search]
(``saddlepoint.sweep.space``) Optuna chooses the flags instead.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from saddlepoint.files import read_toml
from saddlepoint.options import as_flags
from saddlepoint.sweep.space import Domain, SearchFlags, read_domains, read_search
from saddlepoint.types import UserError

TOP = frozenset({"out", "environments", "seeds", "gpus", "common", "environment", "algorithms", "grid", "search"})
MOST_TRIALS = 5_000
"""trials of one file: each has a folder and is checked before the first starts"""
MOST_BYTES = 200
"""of a folder's name, beside which stand files of that name and a suffix"""
OURS = {
    "env": "it comes from environments", "seed": "it comes from seeds", "out": "each trial has a folder of its own",
    "resume": "a trial that was begun is resumed anyway", "quiet": "trials write logs",
    "config": "write its settings here instead",
}  # fmt: skip
"""flags that a sweep sets itself, and why they may not be given"""


@dataclass(frozen=True)
class Trial:
    """One run of the sweep."""

    environment: str
    label: str
    system: str
    seed: int
    settings: dict[str, Any]
    """flags of `saddlepoint train`, with underscores; all but those in ``OURS``"""
    folder: Path

    @property
    def name(self) -> str:
        """Environment, label and seed, as in the folder's path."""
        return "/".join(self.folder.parts[-3:])

    def flags(self) -> list[str]:
        """The run's settings as `saddlepoint train SYSTEM` takes them."""
        return ["--env", self.environment, "--seed", str(self.seed), *command_line(self.settings)]

    def train(self, resume: bool = False) -> list[str]:
        """What follows `saddlepoint` on the command line. A resumed run takes its preset from its folder."""
        if not resume:
            return ["train", self.system, *self.flags(), "--quiet", "--out", str(self.folder)]
        settings = {name: value for name, value in self.settings.items() if name != "preset"}
        return ["train", self.system, *command_line(settings), "--quiet", "--resume", str(self.folder)]

    def command(self) -> str:
        """A shell's line that makes this run alone."""
        return f"OMP_NUM_THREADS={self.threads} {shlex.join(['saddlepoint', *self.train()])}"

    @property
    def threads(self) -> int:
        return max(int(self.settings["threads"]), 1)


@dataclass(frozen=True)
class Study:
    """One algorithm on one environment, whose flags are searched."""

    seeds: tuple[Trial, ...]
    """its run of each seed, without the flags that are searched"""
    domains: dict[str, Domain]

    @property
    def name(self) -> str:
        """Environment and label, as in the folder's path."""
        return "/".join(self.seeds[0].folder.parts[-3:-1])

    def trials(self, number: int, values: dict[str, Any]) -> list[Trial]:
        """The runs of the point ``number``, whose searched flags have these ``values``."""
        return [self._trial(seed, number, values) for seed in self.seeds]

    def _trial(self, seed: Trial, number: int, values: dict[str, Any]) -> Trial:
        home = seed.folder.parent
        folder = home.with_name(f"{home.name}-{number:03d}") / seed.folder.name
        return replace(seed, label=f"{seed.label}-{number:03d}", settings=seed.settings | values, folder=folder)


@dataclass(frozen=True)
class Search:
    """What a file with a table [search] asks for."""

    flags: SearchFlags
    studies: tuple[Study, ...]


@dataclass(frozen=True)
class Plan:
    """What a sweep's file asks for."""

    file: Path
    out: Path
    gpus: float
    trials: tuple[Trial, ...]
    """in the order in which they start: the first seed of all, then the second; none of a search"""
    search: Search | None = None


def read(path: Path, out: Path | None = None) -> Plan:
    """The trials of the file ``path``, below ``out`` or the folder that the file names. Raises ``UserError``.

    Whether `train` takes the flags is for ``saddlepoint.sweep.check`` to say.
    """
    return _Reader(path, read_toml(path, "the file of a sweep", advice="correct it, or give another")).plan(out)


class _Reader:
    """The checks that a file's own structure needs; every sentence names the file."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    def plan(self, out: Path | None) -> Plan:
        content = self.content
        for key in content.keys() - TOP:
            self._refuse(f"there is no key {key!r}: use {', '.join(sorted(TOP))}")
        named = content.get("out", "")
        if not isinstance(named, str) or (out is None and not named):
            self._refuse('it needs a folder, such as out = "runs/sweep", or --out')
        gpus = content.get("gpus", 0)
        if isinstance(gpus, bool) or not isinstance(gpus, int | float) or not 0 <= gpus < float("inf"):
            self._refuse(f"gpus must be a number of at least 0, not {gpus!r}")
        home = out or Path(named)
        trials: dict[Path, Trial] = {}
        for trial in self._trials(home, float(gpus)):
            if trials.setdefault(trial.folder, trial) is not trial:
                self._refuse(
                    f"two trials would share the folder {trial.folder}: give one of their labels or environments"
                    " another name"
                )
        found = tuple(trials.values())
        if "search" in content:
            return Plan(self.path, home, float(gpus), (), self._search(found))
        return Plan(self.path, home, float(gpus), found)

    def _search(self, trials: tuple[Trial, ...]) -> Search:
        """``trials`` are those of the file without its search: each label of each environment is a study."""
        table, algorithms = self._table(self.content, "search"), self._table(self.content, "algorithms")
        if any(self._grid_of(label, algorithms) for label in algorithms):
            self._refuse("a grid and [search] do not go together: give the grid's values as choices of [search.flags]")
        flags = read_search(table, self._refuse)
        common = read_domains(self._table(table, "flags"), "[search.flags]", self._refuse)
        studies: dict[Path, list[Trial]] = {}
        for trial in trials:
            studies.setdefault(trial.folder.parent, []).append(trial)
        return Search(flags, tuple(Study(tuple(seeds), self._domains(seeds[0], common)) for seeds in studies.values()))

    def _domains(self, trial: Trial, common: dict[str, Domain]) -> dict[str, Domain]:
        title = f"[algorithms.{trial.label}.search]"
        own = self._table(self.content["algorithms"][trial.label], "search")
        domains = common | read_domains(own, title, self._refuse)
        if not domains:
            self._refuse(f"{trial.label} has no flag to search: name some in [search.flags] or {title}")
        for name in domains.keys() & OURS.keys():
            self._refuse(f"{name} cannot be searched: {OURS[name]}")
        return domains

    def _trials(self, home: Path, gpus: float) -> Iterator[Trial]:
        content = self.content
        environments, seeds = self._list("environments", str), self._list("seeds", int)
        if min(seeds) < 0:
            self._refuse("seeds must not be negative")
        algorithms = self._table(content, "algorithms")
        if not algorithms:
            self._refuse("it needs at least one algorithm, such as [algorithms.algd]")
        overrides = self._table(content, "environment")
        for name in overrides.keys() - set(environments):
            self._refuse(f"[environment.{name!r}] is not one of environments")
        common = self._settings(content, "common")
        grids = {label: self._grid_of(label, algorithms) for label in algorithms}
        count = len(seeds) * len(environments) * sum(math.prod(map(len, grid.values())) for grid in grids.values())
        if count > MOST_TRIALS:
            self._refuse(
                f"it asks for {count:,} trials, and at most {MOST_TRIALS:,} are taken: shorten a list, or make several"
                " sweeps of it"
            )
        for seed, environment, label in itertools.product(seeds, environments, algorithms):
            own = {name: value for name, value in algorithms[label].items() if name not in ("system", "grid", "search")}
            system = algorithms[label].get("system", label)
            # One thread and the CPU unless the file says otherwise: several trials share the machine.
            base = {"threads": 1, "device": "cuda" if gpus else "cpu"} | common | self._settings(overrides, environment)
            for chosen in itertools.product(*grids[label].values()):
                point = dict(zip(grids[label], chosen))
                tail = "".join(f"-{name}={_short(value)}" for name, value in point.items())
                settings = base | self._checked(own, f"[algorithms.{label}]") | point
                folder = home / self._folder(environment) / self._folder(label + tail) / f"seed-{seed}"
                yield Trial(environment, label + tail, str(system), seed, settings, folder)

    def _list(self, key: str, kind: type) -> list[Any]:
        values = self.content.get(key)
        if not isinstance(values, list) or not values or not all(type(value) is kind for value in values):
            what = "texts" if kind is str else "whole numbers"
            self._refuse(f"{key} must be a list of {what}, with at least one")
        if len(set(values)) < len(values):
            self._refuse(f"{key} names one of its entries twice")
        return values

    def _table(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        value = table.get(key, {})
        if not isinstance(value, dict):
            self._refuse(f"{key} must be a table")
        return value

    def _grid_of(self, label: str, algorithms: dict[str, Any]) -> dict[str, list[Any]]:
        own = self._table(algorithms, label)
        return self._grid(self.content, "[grid]") | self._grid(own, f"[algorithms.{label}.grid]")

    def _folder(self, name: str) -> str:
        """A name as one folder: that of an environment loses our own namespace."""
        found = name.removeprefix("saddlepoint/").replace("/", "-").replace(":", "-")
        if found in ("", ".", "..") or not found.isprintable() or len(found.encode()) > MOST_BYTES:
            self._refuse(
                f"{found[:60]!r} cannot be the name of a folder: give a label that is short and printable, and has"
                " fewer values in its grid"
            )
        return found

    def _grid(self, table: dict[str, Any], title: str) -> dict[str, list[Any]]:
        grid = self._checked(self._table(table, "grid"), title)
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                self._refuse(f"{name} of {title} must be a list of at least one value")
        return grid

    def _settings(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        return self._checked(self._table(table, key), f"[{key}]")

    def _checked(self, settings: dict[str, Any], title: str) -> dict[str, Any]:
        settings = {name.replace("-", "_"): value for name, value in settings.items()}
        for name, value in settings.items():
            if name in OURS:
                self._refuse(f"{title} must not set {name}: {OURS[name]}")
            values = value if isinstance(value, list) else [value]
            # A list may hold lists: hidden layers in a grid.
            if not all(isinstance(item, str | int | float | list) for item in values):
                self._refuse(f"{name} of {title} must be a number, a text, true, false or a list of them")
        return settings

    def _refuse(self, words: str) -> NoReturn:
        raise UserError(f"the sweep's file {self.path}: {words}.")


def command_line(settings: dict[str, Any]) -> list[str]:
    """Settings as command-line flags: ``{"batch_size": 64, "compile": "off"}`` to ``--batch-size=64 --compile=off``."""
    return [word for name, value in settings.items() for word in as_flags(name, value)]


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
