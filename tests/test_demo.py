"""`make demo`: what it sets up, and that it goes on without a video and says why. The training itself is left out here."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from saddlepoint.types import UserError
from tests.report_runs import write_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh checkout, as far as make looks at it."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".venv").mkdir()
    return tmp_path


def steps(checkout: Path, goal: str) -> str:
    """What make would run."""
    return subprocess.run(["make", "-n", goal], cwd=checkout, capture_output=True, text=True, check=True).stdout


def test_the_demo_installs_no_extras_and_the_tests_only_what_it_left_out(checkout: Path) -> None:
    assert "[dev]" not in steps(checkout, "demo")
    assert " -e .\n" in steps(checkout, "demo")
    assert steps(checkout, "test").count("-m venv .venv") == 1
    (checkout / ".venv" / ".core").touch()
    assert "pip" not in steps(checkout, "demo")
    assert '-e ".[dev]"' in steps(checkout, "test")
    assert "torch==" not in steps(checkout, "test")
    os.utime(checkout / ".venv" / ".core", (20, 20))
    (checkout / ".venv" / ".ready").touch()
    os.utime(checkout / ".venv" / ".ready", (10, 10))  # older than .core, as in a checkout that had no .core yet
    assert "pip" not in steps(checkout, "test")
    os.utime(checkout / "pyproject.toml", (30, 30))
    assert "torch==" in steps(checkout, "demo")
    assert "-e .[dev]" in steps(checkout, "test").replace('"', "")


def test_without_a_video_the_demo_says_why_and_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    demo: dict[str, Any] = runpy.run_path(str(ROOT / "examples" / "demo.py"))
    names = demo["main"].__globals__

    def evaluate(args: list[str]) -> None:
        raise UserError("runs/x holds no checkpoint that can be loaded: start the run anew with another --out.")

    monkeypatch.setitem(names, "saddlepoint", lambda args: 0)
    monkeypatch.setitem(names, "evaluate_command", evaluate)
    monkeypatch.setitem(names, "draw", lambda run: run / "curves.png")
    assert demo["main"]() == 0
    out = capsys.readouterr().out
    assert "holds no checkpoint that can be loaded" in out
    assert "EGL" not in out
    assert "curves.png" in out


def test_the_demo_s_curves_are_the_run_s_numbers_and_nothing_overlaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo: dict[str, Any] = runpy.run_path(str(ROOT / "examples" / "demo.py"))
    plt = demo["plt"]
    monkeypatch.setattr(plt, "close", lambda figure: None)
    path = demo["draw"](write_run(tmp_path / "run", cost=20.0))
    assert path.stat().st_size > 10_000
    figure = plt.gcf()
    returns, costs, _ = figure.axes
    assert [line.get_xydata().tolist() for line in returns.lines] == [[[1000, 1000], [2000, 2000], [3000, 3000]]] * 2
    assert {float(value) for line in costs.lines for value in line.get_ydata()} == {20.0, 40.0, 25.0}  # evaluations, training, budget
    boxes = [text.get_window_extent() for axis in figure.axes for text in (axis._left_title, axis.xaxis.label, *axis.texts)]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert costs.texts[0].get_window_extent().x0 > costs.get_window_extent().x1  # the budget's name, where no curve is
