"""benchmarks/scaling.py without its trainings, and benchmarks/plans.py on fewer plans, against what it recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from saddlepoint.cli import main
from saddlepoint.commands import fresh_run, parse_training
from saddlepoint.systems import SYSTEMS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module
    for name in ("scaling", "plans", "learning"):
        sys.modules.pop(name, None)


@pytest.fixture
def scaling(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """One task and one seed; its folders in ``tmp_path``."""
    module: ModuleType = load("scaling")
    monkeypatch.setattr(module, "RUNS", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setitem(module.FORMS, "least", module.Form(60, 3, 20, 2, ("walker-walk",), (0,)))
    return module


@pytest.mark.parametrize("form", ["short", "least"])
def test_the_command_line_takes_every_training_of_scaling(scaling: ModuleType, form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr("saddlepoint.offline.command.pretrain", lambda config, learner, resume: asked.append(learner.width) or config.out)
    for name, stage in scaling.stages(form).items():
        verb, *words = stage.command(tmp_path / name)
        if verb == "pretrain":
            assert main([verb, *words]) == 0
        elif verb == "train":
            if "--start-from" in words:  # a model that is not there
                at = words.index("--start-from")
                words[at : at + 4] = ["--preset", "small"]
            run, _, _ = fresh_run(parse_training(words[0], words[1:]), SYSTEMS[words[0]])
            assert run.out == tmp_path / name
    assert asked == [80, 192, 416]


def test_stages_run_once_go_on_where_they_stopped_and_are_collected(scaling: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    returns, made, stopped = {"0.3M": 100.0, "1M": 250.0, "5M": 500.0}, [], []

    def command(words: list[str], check: bool) -> SimpleNamespace:
        """Leaves what the command would; stops the first time that it starts from the stored model."""
        folder = Path(words[words.index("--out" if "--out" in words else "--resume") + 1])
        made.append((folder.name, "--resume" in words))
        folder.mkdir(exist_ok=True)
        (folder / "config.json").touch()
        if folder.name == "online-0" and not stopped:
            stopped.append(folder)
            return SimpleNamespace(returncode=130)
        if folder.name != "data":
            size = returns.get(folder.name.removeprefix("offline-"), 0.0)
            numbers = {"eval/dmc/walker-walk/return_mean": size, "eval/return_mean": 7.0, "eval/return_max": 9.0}
            lines = [{"step": step, "wall_s": step / 10, "kind": "eval", **numbers} for step in (10, 20)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(scaling, "commit", lambda: "abc")
    monkeypatch.setattr(scaling.subprocess, "run", command)
    with pytest.raises(SystemExit) as ended:
        scaling.run("least", None)
    assert ended.value.code == 130
    with pytest.raises(SystemExit, match="not finished: online-0, scratch-0"):
        scaling.collect("least")
    scaling.run("least", None)
    before = ["data-walker-walk", "data", "offline-0.3M", "offline-1M", "offline-5M", "online-0"]
    assert made == [*((name, False) for name in before), ("online-0", True), ("scratch-0", False)]
    kept = json.loads(scaling.collect("least").read_text())
    assert kept["normalised"] == {size: {"walker-walk": pytest.approx(value / 1000)} for size, value in returns.items()}
    assert (kept["stages"]["online-0"]["resumed"], kept["stages"]["scratch-0"]["resumed"]) == (True, False)
    assert kept["stages"]["scratch-0"]["wall_s"] == 2.0
    assert (tmp_path / "scaling-least.png").stat().st_size > 0


def test_the_paper_estimate_counts_the_parameters_that_a_model_has(scaling: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    scaling.paper()  # asserts that its count is the model's
    assert "days for 10,000,000 updates" in capsys.readouterr().out


@pytest.fixture
def plans(load: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: ModuleType = load("plans")
    monkeypatch.setattr(module, "BATCH", 4)
    return module


def test_few_plans_reach_and_come_near_as_the_recorded_ones_do(plans: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = json.loads((BENCHMARKS / "results" / "plans.json").read_text())
    monkeypatch.setattr(plans, "CONFIGS", {"small": plans.SMALL})
    for name, found, error in (("reach", plans.reach(), 0.03), ("near", plans.near(), 0.03)):
        for of, numbers in found.items():
            assert numbers == pytest.approx(recorded[name][of], abs=error), (name, of)


def test_actions_are_uniform_held_or_planned_and_returns_are_summed(plans: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    held = plans.actions_of("held", 3, 2)
    first = held(0)
    assert set(first.flatten().tolist()) <= {-1.0, 1.0}
    assert all((held(step) == first).all() for step in range(1, plans.HELD_STEPS))
    for kind in ("uniform", "small, from noise", "first small, from the last"):
        action = plans.actions_of(kind, 3, 2)(0)
        assert action.shape == (3, 2)
        assert (abs(action) <= 1).all()

    class Envs:
        def __init__(self, name: str, count: int, **_: Any) -> None:
            assert name == "dmc/task"

        def reset(self, seed: int) -> None:
            pass

        def step(self, action: Any) -> SimpleNamespace:
            return SimpleNamespace(reward=action[:, 0])

        def close(self) -> None:
            pass

    monkeypatch.setattr(plans, "EnvBatch", Envs)
    monkeypatch.setattr(plans, "DECISIONS", 3)
    earned = plans.returns("task", 2, lambda step: torch.tensor([[1.0], [10.0]]).numpy() * step)
    assert earned.tolist() == [3.0, 30.0]
