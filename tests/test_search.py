"""[search] in a sweep's file: what it may say, what Optuna is told, when a point is given up, and going on after a stop."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saddlepoint.cli import main
from saddlepoint.sweep.command import conduct
from saddlepoint.sweep.outcome import Outcome
from saddlepoint.sweep.plan import read
from saddlepoint.sweep.points import Evaluated, Point, best, measure, verdict
from saddlepoint.sweep.progress import Progress
from saddlepoint.sweep.search import Searching, propose
from saddlepoint.sweep.space import SearchFlags
from saddlepoint.sweep.worker import INTERRUPTED, Ending, Job
from saddlepoint.types import UserError

FILE = """
out = "search"
environments = ["saddlepoint/Toy-v0"]
seeds = [0, 1]
[common]
total_steps = 1000
warmup_steps = 60
compile = "off"
[algorithms.sac-lag]
[search]
trials = 16
seed = 5
prune_from = 0.3
[search.flags]
multiplier = { low = 0.01, high = 10.0, log = true }
cost_steps = { low = 1, high = 9, step = 2 }
[algorithms.sac-lag.search]
critic_hidden = { choices = [[16], [16, 16]] }
"""


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated runs have no config.json to agree with; tests/test_sweep.py has real ones."""
    monkeypatch.setattr("saddlepoint.sweep.search.require_agreement", lambda trial, settled: None)


def write(tmp_path: Path, text: str = FILE) -> Path:
    path = tmp_path / "file.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("trials = 16\n", "", "needs the number of points"),
        ("trials = 16", "trials = 0", "at least 1, not 0"),
        ("trials = 16", "trials = 1.5", "whole number"),
        ("seed = 5", "sede = 5", "no key 'sede'"),
        ("seed = 5", 'prune = ["luck"]', "some of budget, return"),
        ("prune_from = 0.3", "prune_from = 2", "share of the steps"),
        ("seed = 5", "prune_over = 0.5", "at least 1"),
        ("log = true", "log = 1", "log must be true or false"),
        ("low = 0.01", "low = 0.0", "above 0"),
        ("low = 0.01", "low = 20.0", "below its high"),
        ("step = 2", "step = 3", "whole number of steps"),
        ("step = 2", "step = 0.5", "step must be above 0, and whole"),
        ("step = 2", "stop = 2", "no key 'stop'"),
        ("{ low = 1, high = 9, step = 2 }", "3", "must be such as"),
        ("[[16], [16, 16]]", "[[16]]", "at least two choices"),
        ("[[16], [16, 16]]", "[[16], [16]]", "twice"),
        ("[search.flags]", "[grid]\nrisk_std = [0.0]\n[search.flags]", "do not go together"),
        ("multiplier =", "seed =", "seed cannot be searched"),
    ],
)
def test_a_faulty_table_is_one_sentence(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in FILE
    with pytest.raises(UserError, match=words):
        read(write(tmp_path, FILE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("multiplier =", "multiplyer =", "no flag --multiplyer"), ("low = 1,", "low = -1,", "--cost-steps must be greater than 0"),
     ("[16, 16]", "[16, 0]", "--critic-hidden needs")],
)  # fmt: skip
def test_every_end_is_checked_before_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str) -> None:
    path = write(tmp_path, FILE.replace(old, new))
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_optuna_it_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "optuna" else object())
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", str(write(tmp_path)), "--out", str(tmp_path / "out")]) == 2
    assert "pip install saddlepoint[search]" in capsys.readouterr().err


class Simulated:
    """A pool whose runs write one evaluation at every look, by ``outcome(flags, share of the run) -> (return, cost)``."""

    EVALUATIONS = 5

    def __init__(self, outcome: Callable[[dict[str, float], float], tuple[float, float]]) -> None:
        self.outcome = outcome
        self.open: dict[int, tuple[Path, dict[str, float], int]] = {}
        self.cancelled: set[int] = set()
        self.runs = 0

    def submit(self, job: Job) -> int:
        folder = Path(job.args[-1])
        words = [word.removeprefix("--").split("=") for word in job.args if "=" in word]
        flags = {name: float(value) for name, value in words if name in ("multiplier", "cost-steps")}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").touch()
        metrics = folder / "metrics.jsonl"
        assert ("--resume" in job.args) == metrics.exists()
        self.runs += 1
        self.open[self.runs] = folder, flags, len(metrics.read_text().splitlines()) if metrics.exists() else 0
        return self.runs

    def wait(self, seconds: float) -> list[tuple[int, Ending]]:
        ended = []
        for handle, (folder, flags, made) in list(self.open.items()):
            if made == self.EVALUATIONS or handle in self.cancelled:
                ended.append((handle, Ending(0 if made == self.EVALUATIONS else INTERRUPTED, 1.0, "")))
                del self.open[handle]
                continue
            value, cost = self.outcome(flags, (made + 1) / self.EVALUATIONS)
            line = {"step": 200 * (made + 1), "wall_s": 1.0, "kind": "eval"}
            for prefix in ("eval", "eval/stochastic"):
                line |= {f"{prefix}/return_mean": value, f"{prefix}/cost_mean": cost}
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.open[handle] = folder, flags, made + 1
        return ended

    def cancel(self, handle: int) -> None:
        self.cancelled.add(handle)

    def stop(self) -> None:
        self.cancelled |= self.open.keys()


def landscape(flags: dict[str, float], share: float) -> tuple[float, float]:
    """The return rises with the multiplier's distance from 10; the toy's budget of 1 is kept from a multiplier of 0.3 on."""
    return share * (10.0 - flags["multiplier"] + flags["cost-steps"]), 0.5 if flags["multiplier"] >= 0.3 else 9.0


def search(path: Path, out: Path, until: int | None = None, slots: int = 1) -> tuple[list[Point], Simulated, Searching]:
    """The points of a search, which is stopped after ``until`` runs were begun."""
    plan = read(path, out)
    out.mkdir(exist_ok=True)
    outcome = Outcome(plan, {})
    source, pool = Searching(plan, outcome), Simulated(landscape)
    with Progress("search", outcome.records.values(), quiet=True, total=source.runs) as progress:
        conduct(source, outcome, pool, slots, 0, progress, lambda: until is not None and pool.runs >= until)
    return source.points["Toy-v0/sac-lag"], pool, source


def test_it_finds_the_best_within_the_budget_and_gives_others_up(tmp_path: Path) -> None:
    points, pool, source = search(write(tmp_path), tmp_path / "out")
    states = [point.state for point in points]
    assert len(points) == 16
    assert set(states) <= {"finished", "over", "behind"}
    assert {"over", "behind"} <= set(states)
    dear = {point.number for point in points if point.values["multiplier"] < 0.3}
    assert {point.number for point in points if point.state == "over"} <= dear
    assert not {point.number for point in points if point.state == "finished"} & dear
    found = best(points)
    assert found is not None
    ends = [landscape({"multiplier": point.values["multiplier"], "cost-steps": point.values["cost_steps"]}, 1.0) for point in points]
    assert found.value == pytest.approx(max(value for (value, cost), point in zip(ends, points) if cost <= 1 and point.state == "finished"))
    assert found.spent == 0.5
    over = points[states.index("over")]
    assert over.curve[-1][0] == 600  # two evaluations in a row from 30 % on: at 400 and at 600 steps
    assert not (tmp_path / "out" / f"Toy-v0/sac-lag-{over.number:03d}" / "seed-1").exists()  # its other seed never began
    assert pool.runs < 32
    words = source.words()[0]
    assert f"the best within the budget is point {found.number}" in words
    assert f"--multiplier={found.values['multiplier']}" in words
    written = json.loads((tmp_path / "out" / "search.json").read_text())["studies"]["Toy-v0/sac-lag"]
    assert written["best"] == found.number
    states_of_runs = json.loads((tmp_path / "out" / "sweep.json").read_text())["states"]
    assert states_of_runs["pruned"] == sum(state in ("over", "behind") for state in states)


def test_stopped_and_started_again_it_asks_for_the_same_points(tmp_path: Path) -> None:
    once, _, _ = search(write(tmp_path), tmp_path / "once")
    search(write(tmp_path), tmp_path / "twice", until=7)
    search(write(tmp_path), tmp_path / "twice", until=4)
    again, pool, _ = search(write(tmp_path), tmp_path / "twice")
    assert again == once
    more, pool, _ = search(write(tmp_path, FILE.replace("trials = 16", "trials = 18")), tmp_path / "twice")
    assert more[:16] == once
    assert {path.parent.name for path in (tmp_path / "twice").glob("Toy-v0/*/seed-0")} >= {"sac-lag-016", "sac-lag-017"}
    assert pool.runs in (2, 3, 4)  # of the two new points alone
    with pytest.raises(UserError, match="raise trials"):
        search(write(tmp_path, FILE.replace("trials = 16", "trials = 3")), tmp_path / "twice")
    with pytest.raises(UserError, match="other settings"):
        search(write(tmp_path, FILE.replace("seed = 5", "seed = 6")), tmp_path / "twice")


def test_a_proposal_depends_on_the_seed_and_on_what_was_found_alone(tmp_path: Path) -> None:
    plan = read(write(tmp_path))
    assert plan.search is not None
    (study,) = plan.search.studies
    values = propose(study, [], seed=0)
    assert values == propose(study, [], seed=0)
    assert values != propose(study, [], seed=1)
    assert values["cost_steps"] in (1, 3, 5, 7, 9)
    assert values["critic_hidden"] in ([16], [16, 16])
    assert 0.01 <= values["multiplier"] <= 10.0


def test_flags_that_do_not_go_together_are_a_failed_point_and_the_search_goes_on(tmp_path: Path) -> None:
    """Each end of the two ranges can be trained with beside the first of the other; not the two high ends together."""
    text = FILE.replace("trials = 16", "trials = 6").replace("seeds = [0, 1]", "seeds = [0]").replace("total_steps = 1000", "")
    more = "warmup_steps = { choices = [60, 900] }\ntotal_steps = { choices = [1000, 500] }\n"
    text = text.replace("[algorithms.sac-lag.search]", f"{more}[algorithms.sac-lag.search]")
    points, *_ = search(write(tmp_path, text.replace("warmup_steps = 60\n", "")), tmp_path / "out")
    failed = [point for point in points if point.values["warmup_steps"] == 900 and point.values["total_steps"] == 500]
    assert failed
    assert [point for point in points if point.state == "failed"] == failed
    assert "leaves nothing" in failed[0].sentence
    assert len(points) == 6
    assert search(write(tmp_path, text.replace("warmup_steps = 60\n", "")), tmp_path / "out")[0] == points


def test_what_the_seeds_found_is_taken_together() -> None:
    """By hand: two seeds, two constraints' costs in budgets, the last two evaluations."""
    first = [Evaluated(100, 0.0, (9.0, 9.0)), Evaluated(200, 2.0, (0.5, 1.0)), Evaluated(300, 4.0, (0.7, 0.6))]
    second = [Evaluated(100, 1.0, (9.0, 9.0)), Evaluated(200, 3.0, (1.5, 0.1)), Evaluated(300, 9.0, (0.9, 0.1))]
    point = Point(0, {})
    measure(point, [first, second], last=2)
    assert point.value == pytest.approx((3.0 + 6.0) / 2)
    assert point.spent == pytest.approx(1.2)
    assert point.curve == [[100, 0.5], [200, 2.5], [300, 6.5]]
    measure(point, [first, second[:2]], last=1)
    assert point.curve == [[100, 0.5], [200, 2.5]]


def test_when_a_point_is_given_up() -> None:
    flags = SearchFlags(trials=9, prune_from=0.5, prune_over=2.0)
    dear = [Evaluated(100, 1.0, (9.0,)), Evaluated(200, 1.0, (3.0,)), Evaluated(300, 1.0, (3.0,))]
    assert verdict(Point(0, {}), [dear[:2]], [], 400, flags) == "open"  # one evaluation from step 200 on
    assert verdict(Point(0, {}), [dear], [], 400, flags) == "over"
    assert verdict(Point(0, {}), [dear], [], 400, replace(flags, prune=("return",))) == "open"
    others = [Point(i, {}, "finished", 5.0, 0.5, [[200, value], [400, 9.0]]) for i, value in enumerate((1.0, 2.0, 3.0, 4.0))]
    cheap = [Evaluated(200, 2.4, (0.1,))]
    slow = Point(4, {}, curve=[[200, 2.4]])
    assert verdict(slow, [cheap], others, 400, flags) == "behind"  # the median of the others is 2.5 there
    assert verdict(replace(slow, curve=[[200, 2.6]]), [cheap], others, 400, flags) == "open"
    assert verdict(slow, [cheap], others[:3], 400, flags) == "open"
    over = [replace(other, spent=1.5) for other in others]  # dear points are no measure of a cautious one
    assert verdict(slow, [cheap], over, 400, flags) == "open"


@pytest.mark.slow
def test_a_search_on_ray_trains_prunes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FILE.replace("trials = 16", "trials = 3\nprune_over = 1.0").replace("seeds = [0, 1]", "seeds = [0]").replace("_from = 0.3", "_from = 0.0")
    text = text.replace("total_steps = 1000", "total_steps = 300\neval_every = 100\nupdates_per_step = 0.1")
    arguments: list[Any] = ["sweep", str(write(tmp_path, text)), "--out", str(tmp_path / "out"), "--quiet", "--jobs", "1"]
    assert main(arguments) == 0
    assert "Toy-v0/sac-lag:" in capsys.readouterr().out
    points = json.loads((tmp_path / "out" / "search.json").read_text())["studies"]["Toy-v0/sac-lag"]["points"]
    assert len(points) == 3
    assert all(point["state"] in ("finished", "over") for point in points)
