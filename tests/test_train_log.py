"""What a run says: boards, the screen, and the lines of metrics."""

from __future__ import annotations

import io
import json
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.train.boards import plain
from saddlepoint.train.log import MetricsFile, scan_metrics
from saddlepoint.train.screen import Screen
from saddlepoint.train.shown import clock
from saddlepoint.types import UserError
from tests.test_train_loop import CONFIG, go, metrics

TWO = (CostBudget(1.0, horizon=10), CostBudget(45.0, horizon=10))


class FakeWandB(ModuleType):
    """Takes down what a run says to it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> FakeWandB:
        self.started.append(arguments)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_gets_every_line_and_goes_on_as_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", board)
    run = go(tmp_path / "run", track="wandb", total_steps=201)
    go(run, resume=True, track="wandb")
    lines = metrics(run)
    written = {(step, name): value for step, found in board.lines for name, value in found.items()}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "kind"):
                assert written[line["step"], name] == value
    first, second = board.started
    assert (first["id"], first["resume"], second["resume"]) == (second["id"], None, "allow")
    assert first["config"]["system"] == "tiny"
    assert first["config"]["rate"] == 0.05
    assert board.finished == 2


def test_weights_and_biases_is_an_extra_and_may_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install saddlepoint\[wandb\]"):
        go(tmp_path / "run", track="wandb")
    assert not (tmp_path / "run").exists()
    board = FakeWandB()

    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not\nconfigured")

    monkeypatch.setattr(board, "init", refuse, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", board)
    with pytest.raises(UserError, match=r"refuses \(api_key not configured\): log in with `wandb login`, or set WANDB_MODE=offline"):
        go(tmp_path / "other", track="wandb")
    with pytest.raises(UserError, match="--track cannot be 'mlflow': use one of none, wandb"):
        go(tmp_path / "third", track="mlflow")


def test_weights_and_biases_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = go(tmp_path / "run", track="wandb", total_steps=201)
    go(run, resume=True, track="wandb")
    kept = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2
    assert kept[0].name == kept[1].name  # one run, gone on with
    patience = time.monotonic() + 60  # its own process writes the file, some seconds after the run has finished
    while not all(b"eval/return_mean" in file.read_bytes() for file in kept):
        assert time.monotonic() < patience
        time.sleep(0.1)


def test_tensorboard_has_scalars_and_settings(tmp_path: Path) -> None:
    run = go(tmp_path / "run", total_steps=141)
    board = EventAccumulator(str(run / "tb"))
    board.Reload()
    returns = {event.step: event.value for event in board.Scalars("eval/return_mean")}
    wanted = {line["step"]: line["eval/return_mean"] for line in metrics(run) if line["kind"] == "eval"}
    assert returns.keys() == wanted.keys()
    assert all(abs(returns[step] - wanted[step]) < 1e-4 for step in wanted)
    assert any(name.startswith("_hparams_/") for name in board.summary_metadata)


def test_settings_are_flat_for_tensorboard() -> None:
    assert plain({"a": 1, "b": {"c": True, "d": {"e": "x"}}, "f": [1, 2], "g": None}) == {"a": 1, "b.c": True, "b.d.e": "x", "f": "[1, 2]"}


def shown(screen: Screen, now: float, done: float, updates: int) -> str:
    screen._marks.append((screen._started, 0, 0))
    return "\n".join(screen.shown(now, done, updates, "").lines())


def test_the_screen_shows_each_constraint_and_both_policies() -> None:
    screen = Screen(1000, budgets=TWO, quiet=True)
    assert shown(screen, screen._started + 10, 100, 50).startswith("step 100 of 1,000 (10%)  0:00:10 elapsed  5 updates/s  0:01:30 left")
    screen.newest({"train/return_mean": 3.0, "train/cost_0_mean": 27.2, "train/cost_1_mean": 40.9, "train/multiplier_0": 0.5})
    screen.newest({"eval/return_mean": 4.0, "eval/cost_0_mean": 0.1, "eval/cost_1_mean": 0.2})
    screen.newest({"eval/stochastic/return_mean": 5.0, "eval/stochastic/cost_0_mean": 7.0, "eval/stochastic/cost_1_mean": 168.4})
    text = shown(screen, screen._started + 10, 100, 50)
    assert "training return 3.0, cost 27.20 of 1 and cost 40.90 of 45  multiplier_0 0.5" in text
    assert "noise-free return 4.0, cost 0.10 of 1 and cost 0.20 of 45; sampled return 5.0, cost 7.00 of 1 and cost 168 of 45" in text
    assert clock(3723) == "1:02:03"


def test_minutes_without_a_step_do_not_make_the_rest_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 steps in 100 s, then five minutes of updates alone, then one step: as at the end of a warm-up whose updates are made at once."""
    from saddlepoint.train import screen as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    screen = Screen(25_000, quiet=True)
    monkeypatch.setattr(screen._console, "print", lambda *_, **__: None)
    for second in range(0, 401, 10):
        now[0] = float(second)
        screen.progress(min(50 * second, 5000), max(0, second - 100) * 20, "")
    now[0] = 431.0
    screen.progress(5001, 6620, "")
    left = screen.shown(now[0], 5001, 6620, "").left
    assert left is not None
    assert left < 3 * 19_999 / (5_000 / 431)  # three times what the pace since the start comes to; by the last minute alone it would be 14 days
    for second in range(440, 600, 10):  # then the pace of the last minute again: 10 steps a second
        now[0] = float(second)
        screen.progress(5001 + 10 * (second - 431), 6620, "")
    found = screen.shown(590.0, 5001 + 1590, 6620, "").left
    assert found == pytest.approx((25_000 - 6591) / 10, rel=0.05)


def test_a_terminal_gets_a_live_panel_and_a_pipe_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from saddlepoint.train import screen as module

    for terminal in (True, False):
        out = io.StringIO()
        monkeypatch.setattr(module, "PatientConsole", lambda out=out, terminal=terminal, **named: _console(out, terminal))
        screen = Screen(10)
        screen.start()
        monkeypatch.setattr(module, "FIRST_PLAIN_SECONDS", 0.0)
        screen._next_plain = 0.0
        screen.progress(1, 0, "")
        screen.stop()
        assert "step 1 of 10" in out.getvalue()
        assert ("\x1b[" in out.getvalue()) is terminal


def test_the_panel_has_a_column_for_each_constraint_and_a_row_for_each_policy() -> None:
    screen = Screen(1000, budgets=TWO, quiet=True)
    screen.newest({"train/return_mean": 3.0, "train/cost_0_mean": 27.2, "train/cost_1_mean": 40.9, "train/multiplier_0": 0.5})
    screen.newest({"eval/return_mean": 4.0, "eval/cost_0_mean": 0.1, "eval/cost_1_mean": 0.2})
    screen._marks.append((screen._started, 0, 0))
    out = io.StringIO()
    _console(out, False).print(screen.shown(screen._started + 10, 100, 50, "").panel())
    rows = [line.strip("│ ").split("  ") for line in out.getvalue().splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["mean of episodes", "return", "cost 0", "cost 1"] in cells
    assert ["training", "3.0", "27.20 of 1", "40.90 of 45"] in cells
    assert ["noise-free", "4.0", "0.10 of 1", "0.20 of 45"] in cells


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from saddlepoint.train import screen as module

    drawn: list[str] = []
    handle = types.SimpleNamespace(update=drawn.append)
    fake = types.SimpleNamespace(HTML=str, display=lambda page, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr(module, "PatientConsole", lambda **named: types.SimpleNamespace(is_jupyter=True, is_terminal=False, print=lambda *a, **n: None))
    screen = Screen(10)
    screen.start()
    screen.newest({"train/multiplier": 0.25})
    screen.progress(5, 0, "<evaluating>")
    assert "&lt;evaluating&gt;" in drawn[-1]
    screen.stop()
    assert 'max="10" value="5.000"' in drawn[-1]
    assert "step 5 of 10 (50%)" in drawn[-1]
    assert "multiplier 0.25" in drawn[-1]


def _console(out: io.StringIO, terminal: bool) -> Any:
    from rich.console import Console

    return Console(file=out, force_terminal=terminal, width=100)


def test_lines_are_written_whole_and_sealed(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path / "metrics.jsonl")
    lines = [{"step": step, "wall_s": 0.5, "kind": "train", "train/x": step / 3} for step in range(5)]
    for line in lines:
        first.write(line, regular=line["step"] % 2 == 0)
    first.close()
    again = MetricsFile(tmp_path / "metrics.jsonl")
    assert again.resume(lambda line: line["step"] < 4, lambda line: line["step"] % 2 == 0, None) == []
    assert [line["step"] for line in scan_metrics(tmp_path)[0]] == [0, 1, 2, 3]
    seal = again.seal()
    assert seal["lines"] == 2
    again.close()
    third = MetricsFile(tmp_path / "metrics.jsonl")
    assert third.resume(lambda line: True, lambda line: line["step"] % 2 == 0, seal) == []
    third.write(lines[4], regular=True)
    third.close()
    assert third.seal() == first.seal()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_run_folders_have_no_colons() -> None:
    from saddlepoint.train.start import default_folder

    name = default_folder(replace(CONFIG, env="my_module:Arm-v0")).name
    assert ":" not in name
    assert name.startswith("my_module-Arm-5-")


def test_a_full_disk_ends_tensorboard_s_curves_with_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """TensorBoard writes in a thread of its own, whose traceback is not shown; the run goes on."""
    from saddlepoint.train.boards import TensorBoard

    board = TensorBoard(tmp_path, {"seed": 0}, None)
    board.write(1, {"eval/return_mean": 1.0})
    board.flush()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    board._writer.file_writer.event_writer._async_writer._writer._writer.write = full  # what the thread calls

    def write_on() -> None:
        for step in range(2, 400):
            board.write(step, {"eval/return_mean": 1.0})
            board.flush()

    with pytest.warns(UserWarning, match="No space left on device.*curves end here"):
        write_on()
    board.close()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("odd", ["x", 3, [1], {"lines": "many"}, {}])
def test_what_a_damaged_manifest_says_of_the_metrics_may_be_anything(odd: Any, tmp_path: Path) -> None:
    (sentence,) = MetricsFile(tmp_path / "metrics.jsonl").resume(lambda line: True, lambda line: True, odd)
    assert "is not as the checkpoint knew it" in sentence
