"""Optuna through the sweep: it proposes the flags of a point, the pool trains each seed of it, and what the runs found
tells it the next.

The objective is the return at the end of the runs, among points that keep the budget. Everything that Optuna knows is in
search.json, and each proposal has a random generator of its own: after the same results comes the same point, however
often the search was stopped in between.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from saddlepoint.files import is_sealed, read_json, sealed, write_json
from saddlepoint.sweep.check import Settled, require_agreement, settle_one
from saddlepoint.sweep.outcome import Outcome
from saddlepoint.sweep.plan import Plan, Search, Study, Trial, command_line
from saddlepoint.sweep.points import Evaluated, Point, best, evaluations, measure, verdict
from saddlepoint.sweep.space import Choices, Domain
from saddlepoint.train.log import METRICS
from saddlepoint.types import UserError

FORMAT = 1


def require_optuna() -> None:
    """Raises ``UserError`` when Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("[search] needs Optuna, which is an extra: pip install saddlepoint[search].")


class Searching:
    """The source of a search's runs (``command.Source``): what starts next, what is given up, and what was found."""

    def __init__(self, plan: Plan, outcome: Outcome) -> None:
        """Take up the folder's search.json, if there is one; points that had failed are tried again. Raises
        ``UserError`` when it is damaged, or the file asks for another search than it did."""
        assert plan.search is not None
        self.plan, self.search, self.outcome = plan, plan.search, outcome
        self.path = plan.out / "search.json"
        self._settled: dict[str, Settled] = {}
        self._homes: dict[str, tuple[Study, Point]] = {}
        """by a run's name"""
        self._sizes: dict[str, int] = {}
        """bytes of a running one's metrics when they were last looked at"""
        self.points: dict[str, list[Point]] = {study.name: [] for study in self.search.studies}
        self.points |= _read(self.path, self.search)
        for study, point in self._all():
            if point.state == "failed":
                self._try(study, point)
            else:
                self._enter(study, point)

    @property
    def runs(self) -> int:
        """How many runs there are at most."""
        return sum(self.search.flags.trials * len(study.seeds) for study in self.search.studies)

    def next(self) -> Trial | None:
        """The run that starts next: of a point that is open, else of the study that has the fewest points."""
        for study, point in self._all():
            for trial in self._trials(study, point) if point.state == "open" else ():
                if self.outcome.records[trial.name].state == "waiting":
                    return trial
        for study in sorted(self.search.studies, key=lambda study: len(self.points[study.name])):
            while len(self.points[study.name]) < self.search.flags.trials:
                point = self._propose(study)
                if point.state == "open":
                    return self._trials(study, point)[0]
        return None

    def given_up(self, trial: Trial) -> bool:
        """Whether a running one is to be stopped, by what the runs of its point have found so far."""
        study, point = self._homes[trial.name]
        if point.state == "open" and self._has_news(trial):
            runs = self._look(study, point)
            steps = self._settled[trial.name].config.total_steps
            point.state = verdict(point, runs, self.points[study.name], steps, self.search.flags)
        return point.state != "open"

    def ended(self, trial: Trial) -> None:
        """A run was finished, given up, or failed for the last time."""
        study, point = self._homes[trial.name]
        self._look(study, point)
        record = self.outcome.records[trial.name]
        if point.state == "open" and record.state == "failed":
            point.state, point.sentence = "failed", record.sentence
        states = {self.outcome.records[other.name].state for other in self._trials(study, point)}
        if point.state == "open" and states == {"finished"}:
            point.state = "finished"
        self.save()

    def save(self) -> None:
        """Write search.json."""
        studies = {}
        for name, points in self.points.items():
            found = best(points)
            studies[name] = {"best": None if found is None else found.number, "points": [asdict(point) for point in points]}
        write_json(self.path, sealed({"format": FORMAT, "asked": _asked(self.search), "studies": studies}))

    def words(self) -> list[str]:
        """What was found, study by study."""
        return [_in_words(study, self.points[study.name], self.plan.out) for study in self.search.studies]

    def _all(self) -> Iterator[tuple[Study, Point]]:
        for study in self.search.studies:
            for point in self.points[study.name]:
                yield study, point

    def _trials(self, study: Study, point: Point) -> list[Trial]:
        return study.trials(point.number, point.values)

    def _propose(self, study: Study) -> Point:
        """The study's next point. One with flags that cannot be trained with has failed already."""
        points = self.points[study.name]
        point = Point(len(points), propose(study, points, self.search.flags.seed))
        points.append(point)
        self._try(study, point)
        self.save()
        return point

    def _try(self, study: Study, point: Point) -> None:
        """Open the point; with flags that cannot be trained with it has failed."""
        point.state, point.sentence = "open", ""
        try:
            self._enter(study, point)
        except UserError as error:
            point.state, point.sentence = "failed", str(error)

    def _enter(self, study: Study, point: Point) -> None:
        """Make the point's runs known. Raises ``UserError`` for flags that cannot be trained with, or that contradict
        what was run."""
        for trial in self._trials(study, point):
            self._homes[trial.name] = study, point
            if point.state != "open":
                self.outcome.keep(trial)
                continue
            found = self._settled[trial.name] = settle_one(self.plan, trial)
            if (trial.folder / "config.json").exists():
                require_agreement(trial, found)
            self.outcome.take(trial, found.config.total_steps)

    def _has_news(self, trial: Trial) -> bool:
        path = trial.folder / METRICS
        size = path.stat().st_size if path.exists() else 0
        before, self._sizes[trial.name] = self._sizes.get(trial.name, 0), size
        return size != before

    def _look(self, study: Study, point: Point) -> list[list[Evaluated]]:
        """What the point's runs have found, one list a seed, entered in the point too."""
        settled = [(trial.folder, self._settled[trial.name]) for trial in self._trials(study, point)]
        runs = [evaluations(folder, found.budgets, found.config.binds) for folder, found in settled]
        measure(point, runs, self.search.flags.evaluations)
        return runs


def propose(study: Study, points: Sequence[Point], seed: int) -> dict[str, Any]:
    """What Optuna's TPE gives after ``points``: the value of each flag. Points that are still open are kept away from."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    domains = {name: _distribution(domain) for name, domain in study.domains.items()}
    stream = np.random.SeedSequence([seed, zlib.crc32(study.name.encode()), len(points)])
    sampler = optuna.samplers.TPESampler(seed=int(stream.generate_state(1)[0]))
    known = optuna.create_study(direction="maximize", sampler=sampler)
    for point in points:
        known.add_trial(_as_trial(study, point, domains))
    params = known.ask(fixed_distributions=domains).params
    return {name: _value(domain, params[name]) for name, domain in study.domains.items()}


def _as_trial(study: Study, point: Point, domains: dict[str, Any]) -> Any:
    """A point as Optuna knows it: over the budget is a constraint, behind is pruned."""
    import optuna

    states = optuna.trial.TrialState
    params = {name: _param(domain, point.values[name]) for name, domain in study.domains.items()}
    measured = point.value is not None and point.spent is not None
    if point.state == "open" or not measured:
        state = states.RUNNING if point.state == "open" else states.FAIL
        return optuna.trial.create_trial(state=state, params=params, distributions=domains)
    state = {"behind": states.PRUNED, "failed": states.FAIL}.get(point.state, states.COMPLETE)
    return optuna.trial.create_trial(
        state=state, value=None if state == states.FAIL else point.value, params=params, distributions=domains,
        intermediate_values={int(step): value for step, value in point.curve}, constraints={"budget": (point.spent or 0.0) - 1},
    )  # fmt: skip


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choices):
        return CategoricalDistribution(range(len(domain.values)))
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


def _param(domain: Domain, value: Any) -> Any:
    """A flag's value as Optuna has it: of choices, the number."""
    return domain.values.index(value) if isinstance(domain, Choices) else value


def _value(domain: Domain, param: Any) -> Any:
    """Undo ``_param``."""
    return domain.values[param] if isinstance(domain, Choices) else param


def corners(study: Study) -> Iterator[Trial]:
    """Runs that show before the first starts whether the flags can be trained with: every end of a range and every
    choice, beside the first of the other flags."""
    first = {name: domain.ends()[0] for name, domain in study.domains.items()}
    for name, domain in study.domains.items():
        for value in domain.ends():
            yield study.trials(0, first | {name: value})[0]


def _asked(search: Search) -> dict[str, Any]:
    """What a search may not change under way: all but the number of points, in words that are read back alike."""
    studies = {study.name: {"seeds": [seed.seed for seed in study.seeds], "system": study.seeds[0].system,
                            "environment": study.seeds[0].environment, "flags": command_line(study.seeds[0].settings),
                            "domains": {name: asdict(domain) for name, domain in study.domains.items()}}
               for study in search.studies}  # fmt: skip
    flags = {name: value for name, value in asdict(search.flags).items() if name != "trials"}
    return json.loads(json.dumps({"flags": flags, "studies": studies}))


def _read(path: Path, search: Search) -> dict[str, list[Point]]:
    """The points that an earlier start knew, by study."""
    if not path.exists():
        return {}
    advice = "start a new search with --out"
    content = read_json(path, "the record of a search", advice=advice)
    if not is_sealed(content) or content.get("format") != FORMAT:
        raise UserError(f"{path} has changed since it was written, or is of another version: {advice}.")
    if content["asked"] != _asked(search):
        raise UserError(f"{path.parent} holds a search with other settings; only its trials may be raised: restore the file, or {advice}.")
    points = {name: [Point(**point) for point in study["points"]] for name, study in content["studies"].items()}
    if (most := max(map(len, points.values()), default=0)) > search.flags.trials:
        raise UserError(f"{path.parent} has {most} points already: raise trials of [search] to at least that, or {advice}.")
    return points


def _in_words(study: Study, points: Sequence[Point], out: Path) -> str:
    counts = Counter[str](point.state for point in points)
    titles = {"finished": "finished", "over": "given up over the budget", "behind": "given up for their return", "failed": "failed"}
    parts = ", ".join(f"{counts[state]} {title}" for state, title in titles.items() if counts[state])
    found = best(points)
    if found is None:
        failed = next((f"; the first failure: {point.sentence}" for point in points if point.state == "failed"), "")
        return f"{study.name}: {parts}; no point was within the budget to its end{failed}"
    folder = study.trials(found.number, found.values)[0].folder.parent
    return (
        f"{study.name}: {parts}; the best within the budget is point {found.number}: return {found.value:.4g}, cost"
        f" {found.spent:.2f} budgets, {' '.join(command_line(found.values))}; its runs are in {folder}"
    )
