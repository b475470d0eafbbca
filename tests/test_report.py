"""Runs are found, grouped and named; each mistake is one sentence; ``--live`` follows what grows."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.report.command import ReportFlags, follow, report_command, split_args
from saddlepoint.report.compared import common_step, compare
from saddlepoint.report.curves import group_curves
from saddlepoint.report.media import MOST_BYTES
from saddlepoint.report.page import build_page
from saddlepoint.report.runs import Group, find_runs, group_runs
from saddlepoint.report.stats import Interval
from saddlepoint.report.tables import interval_table, settings_tables
from saddlepoint.train.run import SEAL
from saddlepoint.types import UserError
from tests.report_runs import BUDGET, constant, write_run

pytest.importorskip("rliable")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures, self.charts, self.ids, self.addresses = 0, 0, [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._take(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _take(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.figures += tag == "figure"
        if tag == "svg" and named.get("class") == "chart":
            self.charts += 1
            assert named["aria-label"]
        if tag == "img":
            assert named["alt"]
        self.ids += [named["id"]] if "id" in named else []
        self.addresses += [named[name] for name in ("src", "href", "xlink:href", "content") if name in named]


def page_of(*folders: Path) -> str:
    return build_page(find_runs(folders), None)


def words_of(page: str) -> str:
    """What a reader sees, each run of white space one space."""
    body = re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", " ", body))).replace(" ,", ",")


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a" / "deep" / "0"), write_run(tmp_path / "b", seed=1)
    (tmp_path / "b" / "checkpoints").mkdir()
    found = find_runs([tmp_path, first, tmp_path / "a"])
    assert sorted(run.folder for run in found) == [first, second]


@pytest.mark.parametrize("way", ["gone", "a folder"])
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_run_that_lost_a_file_is_named_and_not_passed_over(tmp_path: Path, name: str, way: str) -> None:
    write_run(tmp_path / "0")
    damaged = write_run(tmp_path / "1", seed=1)
    (damaged / "checkpoints").mkdir()
    (damaged / name).unlink()
    if way == "a folder":
        (damaged / name).mkdir()
    with pytest.raises(UserError, match=rf"{damaged}.*{name}"):
        find_runs([tmp_path])


def test_seeds_are_grouped_and_labels_say_what_differs(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"plain{seed}", seed=seed, energy="plain", last=3000 + 1000 * seed)
        write_run(tmp_path / f"augmented{seed}", seed=seed)
        write_run(tmp_path / f"other{seed}", "tests/B-v0", seed)
        write_run(tmp_path / f"sac{seed}", "tests/B-v0", seed, system="sac", last=5000)
    environments = group_runs(find_runs([tmp_path]))
    assert [env.name for env in environments] == ["tests/A-v0", "tests/B-v0"]
    labels = [[(group.label, [run.seed for run in group.runs]) for group in env.groups] for env in environments]
    assert labels[0] == [("algd energy=augmented", [0, 1]), ("algd energy=plain", [0, 1])]
    # The same method has the same name where nothing but it was run; longer runs are the same method.
    assert labels[1] == [("algd energy=augmented", [0, 1]), ("sac", [0, 1])]
    assert environments[0].differing == ["total_steps", "energy"]


def test_a_setting_that_older_runs_have_not_makes_groups_and_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "new")
    write_run(tmp_path / "sac", system="sac")
    path = write_run(tmp_path / "old", seed=1) / "config.json"
    content = json.loads(path.read_text())
    del content["learner"]["nonnegative_costs"], content["train"]["env_processes"], content[SEAL]  # older runs had none
    path.write_text(json.dumps(content))
    (env,) = group_runs(find_runs([tmp_path]))
    assert env.differing == ["env_processes", "nonnegative_costs"]
    # Processes do not change what is learnt, and what another system has makes no difference within this one.
    assert [group.label for group in env.groups] == ["algd nonnegative-costs=True", "algd nonnegative-costs=–", "sac"]
    (old,) = env.groups[1].runs
    assert f"<th scope=\"row\">{old.folder}</th><td>algd</td><td>1</td><td>–</td><td>–</td>" in settings_tables(env)


def test_other_budgets_are_other_groups_and_are_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", budget=CostBudget(20.0, horizon=100))
    (env,) = group_runs(find_runs([tmp_path]))
    assert [group.label for group in env.groups] == ["algd budget=10", "algd budget=20"]
    assert "different cost budgets" in page_of(tmp_path)


def test_runs_of_different_length_are_compared_at_a_common_step_and_it_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "short", last=2000)
    for seed in (1, 2):
        write_run(tmp_path / f"long{seed}", seed=seed, last=4000)
    (env,) = group_runs(find_runs([tmp_path]))
    compared = compare(env)
    assert compared.step == 2000
    assert [line["eval/return_mean"] for _, line in compared.rows["algd"]] == [2000, 2000, 2000]
    sentence = common_step(env, compared)
    assert f"Compared at step 2,000, where {tmp_path / 'short'} ended. 2 runs went further, up to step 4,000" in sentence
    assert "leave the short ones out" in sentence
    text = words_of(page_of(tmp_path))
    assert sentence in text
    assert "2,000 ± 0" in text
    assert "noise-free 3 of 3 within" in text  # cost 5 of a budget of 10


def test_the_verdict_is_per_seed_and_per_policy(tmp_path: Path) -> None:
    for seed, cost in enumerate((5.0, 5.0, 20.0)):
        write_run(tmp_path / f"a{seed}", seed=seed, cost=cost)
        write_run(tmp_path / f"b{seed}", seed=seed, energy="plain", cost=5.0, returns=constant(7.0))
    text = words_of(page_of(tmp_path))
    assert "algd energy=plain is the only one within the budget in every seed: return 7 (mean of 3 seeds)" in text
    assert text.index("✓ within budget") < text.index("◐ 2 of 3 seeds within")
    assert "cost, noise-free 10.0 of 10" in text  # the mean of 5, 5 and 20
    assert "Learning curves" in text[text.index("2 of 3 seeds within") :]  # the verdict comes first


def test_two_seeds_get_no_interval_anywhere(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", seed=seed, returns=constant(100.0 + seed))
        write_run(tmp_path / f"b{seed}", seed=seed, energy="plain", returns=constant(50.0 + seed))
    page = page_of(tmp_path)
    text = words_of(page)
    assert 'class="band' not in page
    assert "±" not in text.replace("Mean ± standard deviation", "")
    assert "95 %" not in text
    assert "100 · 101" in text
    assert text.count("Fewer than 3 seeds") == 1
    assert "Intervals at step" not in text


def test_calibration_is_shown_where_a_run_measured_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    assert "Calibration" not in page_of(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "eval":
            for name in ("cost", "cost_1"):  # of one constraint, and of the second of several
                line |= {f"eval/calibration/{name}_{part}": value for part, value in (("predicted", 1.5), ("measured", 2.25), ("correlation", 0.5))}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = words_of(page_of(run))
    assert "Calibration of the critics" in text
    assert text.count("algd 0 1.50 2.25 0.50") == 2
    assert "Cost of constraint 1" in text
    assert "measured 2.25, predicted 1.5" in text  # of a dot, in words


def test_all_evaluations_are_a_csv_file_within_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "=a", last=2000)
    (address,) = [a for a in Page(page_of(tmp_path)).addresses if a.startswith("data:text/csv;base64,")]
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(address.split(",")[1]).decode())))
    assert [(row["method"], row["seed"], row["step"], row["eval/return_mean"]) for row in rows] == [
        ("algd", "0", "1000", "1000.0"), ("algd", "0", "2000", "2000.0"),
    ]  # fmt: skip


def test_no_link_of_a_run_folder_is_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"none of the page's business")
    run = write_run(tmp_path / "runs" / "a")
    (run / "videos").mkdir()
    (run / "videos" / "1.gif").symlink_to(secret)
    text = page_of(run)
    assert base64.b64encode(secret.read_bytes()).decode() not in text
    assert "1.gif" not in text
    elsewhere = tmp_path / "films"
    elsewhere.mkdir()
    (elsewhere / "2.gif").write_bytes(secret.read_bytes())
    other = write_run(tmp_path / "runs" / "b", seed=1)
    (other / "videos").symlink_to(elsewhere)
    assert "2.gif" not in page_of(other)
    metrics = other / "metrics.jsonl"
    metrics.rename(tmp_path / "moved")
    metrics.symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match="is a link"):
        page_of(other)


def test_few_seeds_are_single_lines_and_more_have_a_band(tmp_path: Path) -> None:
    for seed, level in enumerate((1.0, 2.0, 6.0)):
        write_run(tmp_path / str(seed), seed=seed, returns=constant(level), last=2000 + 2000 * (seed == 2))
    runs = find_runs([tmp_path])

    def name(run: object) -> str:
        return "eval/return_mean"

    two = group_curves(Group("m", runs[:2]), name, 0, "steps", 1.0)
    assert [(curve.label, curve.seed, curve.band) for curve in two] == [("m, seed 0", 0, None), ("m, seed 1", 1, None)]
    mean, *seeds, rest = group_curves(Group("m", runs), name, 0, "steps", 1.0)
    assert [(curve.seed, curve.rank, curve.beside_mean) for curve in seeds] == [(0, 0, True), (1, 1, True), (2, 2, True)]
    assert mean.band is not None
    np.testing.assert_allclose(mean.x, [1000, 2000])
    np.testing.assert_allclose(mean.y, 3.0)
    np.testing.assert_allclose(mean.band[1], 3 + 4.3027 * np.std([1, 2, 6], ddof=1) / 3**0.5)
    np.testing.assert_allclose(rest.x, [2000, 3000, 4000])  # what only the longest run has
    wall = group_curves(Group("m", runs[:1]), name, 0, "wall", 60.0)[0]
    np.testing.assert_allclose(wall.x, [10 / 60, 20 / 60])


def test_the_newest_clip_is_that_of_the_latest_step_whatever_its_time(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a") / "videos"
    folder.mkdir()
    names = ["own.gif", "500.mp4", "3000-planner=score.mp4", "10000.mp4"]
    for i, name in enumerate(names):
        (folder / name).write_bytes(b"film")
        os.utime(folder / name, (4e9 - i, 4e9 - i))
    (run,) = find_runs([tmp_path])
    assert [path.name for path in run.clips()] == names


def test_the_page_stands_alone_and_is_whole(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed=seed)
        write_run(tmp_path / f"b{seed}", seed=seed, energy="plain", returns=lambda step: -step, cost=20.0)
        write_run(tmp_path / f"c{seed}", "tests/<B>&-v0", seed)
        write_run(tmp_path / f"d{seed}", "tests/<B>&-v0", seed, energy="plain")
    clip = tmp_path / "a0" / "videos" / "3000.mp4"
    clip.parent.mkdir()
    clip.write_bytes(b"film")
    large = tmp_path / "b0" / "videos" / "3000.mp4"
    large.parent.mkdir()
    large.write_bytes(bytes(MOST_BYTES + 1))
    text = page_of(tmp_path)
    page = Page(text)
    assert not re.search(r"https?://", text.replace("http://www.w3.org/", ""))
    here = [address for address in page.addresses if not address.startswith(("#", "data:", "width="))]
    assert all((Path("report.html").resolve().parent / address).exists() for address in here)  # only links to the runs' own files
    assert len(page.ids) == len(set(page.ids))
    # Return, cost and violations from 3 sources each and 2 multipliers, on two axes, for two environments
    assert page.charts == 2 * 2 * 11
    assert "<B>" not in text
    assert "tests/&lt;B&gt;&amp;-v0" in text
    assert "data:video/mp4;base64," in text
    assert "2.0 MB and is not put" in text
    assert "All 2 environments" in text
    words = words_of(text)
    assert "algd energy=augmented > algd energy=plain 1.00 no spread" in words  # 3000 against -3000 in every pair


def test_one_seed_is_said_and_gets_no_interval(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "only"))
    assert "algd</b> keeps its budget (one seed)" in text
    assert "Fewer than 3 seeds" in text
    assert "95 %" not in text


def test_a_repeated_seed_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    assert "several runs of seed 0" in page_of(tmp_path)


def test_a_running_run_may_end_in_half_a_line_or_have_no_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4000, "wall_s": 4')
    fresh = write_run(tmp_path / "fresh", seed=1, last=0)
    text = page_of(tmp_path)
    assert "Evaluation at step 3,000" in text
    assert f"Not evaluated yet, so not compared: {fresh}." in text
    Page(page_of(fresh))


def test_a_value_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[0]["train/multiplier"] = float("nan")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps, _, values = find_runs([run])[0].series("train/multiplier")
    np.testing.assert_allclose(steps, [2000, 3000])
    assert np.isfinite(values).all()
    Page(page_of(run))


def test_runs_and_flags_come_in_any_order() -> None:
    assert split_args(["a", "--out", "p.html", "b", "--live", "c"]) == ([Path("a"), Path("b"), Path("c")], ["--out", "p.html", "--live"])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "needs run folders"),
        (["{tmp}/empty"], "holds no run"),
        (["{tmp}/nowhere"], "holds no run"),
        (["{tmp}/run", "--out", "{tmp}"], "is a folder"),
        (["{tmp}/run", "--out", "{tmp}/run/metrics.jsonl"], "let it end in .html"),
        (["{tmp}/run", "--out", "{tmp}/file/page.html"], "cannot be written"),
        (["{tmp}/run", "--every", "5"], "does nothing without --live"),
        (["{tmp}/run", "--live", "--every", "0"], "must be at least 1"),
        (["{tmp}/run", "--frobnicate"], "has no flag --frobnicate"),
        (["{tmp}/damaged", "--out", "{tmp}/x.html"], "is damaged"),
        (["{tmp}/pictures", "--out", "{tmp}/x.html"], "is a run of safediffusion, which has no environment"),
    ],
)
def test_each_mistake_is_one_sentence(tmp_path: Path, args: list[str], sentence: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (write_run(tmp_path / "damaged") / "config.json").write_text("{")
    pictures = write_run(tmp_path / "pictures") / "config.json"
    pictures.write_text(json.dumps({"format": 1, "system": "safediffusion", "train": {"pipeline": "p", "seed": 0}, "learner": {}, "resolved": {}}))
    with pytest.raises(UserError, match=sentence) as error:
        report_command([arg.replace("{tmp}", str(tmp_path)) for arg in args])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob(".*.writing"))


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_command([str(write_run(tmp_path / "run")), "--out", str(tmp_path / "new" / "page.html"), "--no-landscapes"])
    Page((tmp_path / "new" / "page.html").read_text())
    assert "report of 1 run:" in capsys.readouterr().out


def test_live_follows_and_leaves_a_page_that_stands_still(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", last=1000)
    out = tmp_path / "page.html"
    seen = []

    def sleep(seconds: float) -> None:
        seen.append((seconds, out.read_text()))
        if len(seen) == 2:
            raise KeyboardInterrupt
        write_run(tmp_path / "runs" / "1", seed=1, last=2000)

    follow([tmp_path / "runs"], ReportFlags(out=out, live=True, every=7, landscapes=False), sleep)
    assert [seconds for seconds, _ in seen] == [7, 7]
    first, second = (text for _, text in seen)
    assert '<meta http-equiv="refresh" content="7">' in first
    assert "1 run of 1 method" in first
    assert "2 runs of 1 method" in second
    assert "http-equiv" not in out.read_text()
    assert f"at most {BUDGET.limit:g} an episode" in first


def test_a_column_of_intervals_has_one_number_of_decimals() -> None:
    found = {"algd": Interval(30.04, 28.81, 30.8), "sac": Interval(9.5, -0.02, 12.0)}
    text = interval_table("Return", found, {"algd": 0, "sac": 1}, None)
    assert re.findall(r'<td class="number">(.*?)</td>', text) == ["<b>30.0</b>", "28.8 to 30.8", "<b>9.5</b>", "0.0 to 12.0"]
