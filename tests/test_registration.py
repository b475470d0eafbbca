"""Systems of the user's own: by Python, by module on the command line, by an installed package's entry point; and what registration refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saddlepoint import load_policy, register_system, systems, train
from saddlepoint.cli import main
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.config import TrainConfig
from saddlepoint.types import UserError
from tests.toys import BUDGET, ENV, Tiny, TinyConfig

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_algorithm.py"
FLAGS = ["--env", "saddlepoint/Toy-v0", "--hidden", "16", "--batch-size", "16", "--eval-every", "200", "--checkpoint-every", "60", "--quiet", "--threads", "1",
         "--warmup-steps", "100", "--num-envs", "4"]  # fmt: skip


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory, and no system but our own known; modules imported meanwhile are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(systems, "SYSTEMS", {name: system for name, system in systems.SYSTEMS.items() if name in systems.BUILT_IN})
    for module in ("commands", "evaluate"):
        monkeypatch.setattr(f"saddlepoint.{module}.SYSTEMS", systems.SYSTEMS)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith(("own_", "evil")):
            del sys.modules[name]


def forget(*modules: str) -> None:
    """As a new process would be."""
    for name in [name for name in systems.SYSTEMS if name not in systems.BUILT_IN]:
        del systems.SYSTEMS[name]
    for module in modules:
        sys.modules.pop(module, None)


def test_the_example_trains_resumes_and_evaluates(unknown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 120
    shutil.copy(EXAMPLE, unknown)
    whole = ["train", "own_algorithm:td3-lag", *FLAGS, "--total-steps", "240"]
    assert main([*whole, "--out", "runs/whole"]) == 0
    assert main([*whole[:-1], "180", "--out", "runs/parts"]) == 0
    forget("own_algorithm")
    assert main(["train", "--resume", "runs/parts", "--total-steps", "240"]) == 0
    a, b = (load(latest(Path("runs") / name)[0]) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, b.learner[name]) for name, tensor in a.learner.items())
    assert len(a.learner) > 30
    assert json.loads(Path("runs/parts/config.json").read_text())["module"] == "own_algorithm"
    forget("own_algorithm")
    assert main(["evaluate", "runs/parts", "--seed", "3"]) == 0
    assert "noise-free policy: return" in capsys.readouterr().out
    policy = load_policy("runs/parts")
    assert policy.act(np.zeros(policy.shape.observation, np.float32)).shape == (policy.shape.action,)


def test_the_example_is_exported_reported_and_swept(unknown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(EXAMPLE, unknown)
    assert main(["train", "own_algorithm:td3-lag", *FLAGS, "--total-steps", "120", "--out", "runs/one"]) == 0
    forget("own_algorithm")
    assert main(["export", "runs/one", "policy.onnx"]) == 0
    assert Path("policy.onnx").stat().st_size > 1000
    assert main(["report", "runs", "--out", "report.html"]) == 0
    assert "td3-lag" in Path("report.html").read_text()
    forget("own_algorithm")
    Path("sweep.toml").write_text(
        'out = "swept"\nenvironments = ["saddlepoint/Toy-v0"]\nseeds = [0]\n[algorithms.mine]\nsystem = "own_algorithm:td3-lag"\nhidden = 8\n'
    )
    assert main(["sweep", "sweep.toml", "--dry-run"]) == 0
    assert "train own_algorithm:td3-lag" in capsys.readouterr().out


def test_flags_help_and_wrong_values_are_as_of_any_system(unknown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(EXAMPLE, unknown)
    for args, words in (
        (["train", "own_algorithm:td3-lag", *FLAGS, "--hiden", "3"], "no flag --hiden: did you mean hidden?"),
        (["train", "own_algorithm:td4", *FLAGS], "no system 'td4', and the module own_algorithm registers none"),
        (["train", "own_nowhere:td3", *FLAGS], "no module own_nowhere"),
        (["--import", "own_algorithm", "train", "td3-lag", *FLAGS, "--preset", "best"], "no preset 'best': use one of default"),
        (["train", "td3-lag", "--import=own_algorithm", *FLAGS, "--cost-limit", "-1"], "cost limit must be"),
        (["train", "--resume", "nowhere"], "not a run folder"),
        (["--import", "own nowhere", "envs"], "not the name of a module"),
    ):
        forget("own_algorithm")
        assert main(args) == 2, args
        assert words in capsys.readouterr().err, args
    Path("own_broken.py").write_text("1 / 0")
    assert main(["train", "own_broken:x", *FLAGS]) == 2
    assert "own_broken cannot be imported (ZeroDivisionError" in capsys.readouterr().err


def test_a_module_in_a_run_folder_is_not_imported(unknown: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLE, unknown)
    assert main(["train", "own_algorithm:td3-lag", *FLAGS, "--total-steps", "120", "--out", "run"]) == 0
    content = json.loads(Path("run/config.json").read_text())
    del content["sha256"]
    Path("run/config.json").write_text(json.dumps(content | {"module": "evil", "system": "evil"}))
    Path("run/evil.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(unknown / "run")
    assert main(["evaluate", "."]) == 2
    assert "lies in that folder itself" in capsys.readouterr().err
    assert not Path("executed").exists()


def test_an_installed_package_names_its_systems(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip leaves it: a module, and beside it the metadata with its entry points."""
    about = unknown / "site" / "mine-1.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(EXAMPLE, about.parent)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{systems.GROUP}]\ntd3-lag = own_algorithm\n")
    monkeypatch.syspath_prepend(str(about.parent))
    assert "td3-lag" in systems.system_names()
    assert systems.find_system("td3-lag").config_class().__name__ == "TD3LagConfig"
    forget("own_algorithm")
    assert main(["train", "td3-lag", *FLAGS, "--total-steps", "120", "--out", "run"]) == 0
    forget("own_algorithm")
    assert main(["evaluate", "run"]) == 0


def test_a_config_needs_nothing_but_fields(unknown: Path) -> None:
    @dataclass(frozen=True)
    class Bare:
        rate: float = 0.05
        poison_after: int = -1

    class Mine(Tiny):
        system = "mine"

        def __init__(self, config: Bare, *rest: Any, compile: bool = False) -> None:
            super().__init__(config, *rest, compile=compile)  # type: ignore[arg-type]

    register_system("mine", Mine, Bare, {"fast": Bare(rate=0.5)})
    assert set(systems.find_system("mine").presets()) == {"default", "fast"}
    config = TrainConfig(env=ENV, total_steps=30, num_envs=3, out=unknown / "run", quiet=True)
    folder = train(config, Mine, Bare(), (BUDGET,))
    assert load_policy(folder).step == 30
    folder = train(replace(config, total_steps=60), Mine, Bare(), resume=True)
    assert load_policy(folder).step == 60
    with pytest.raises(UserError, match="rate is no setting of acting of mine: it has none"):
        load_policy(folder, acting={"rate": 1.0})


@pytest.mark.parametrize(
    ("name", "learner", "config", "words"),
    [
        ("algd", Tiny, TinyConfig, "there is a system 'algd' in saddlepoint already"),
        ("a b", Tiny, TinyConfig, "cannot be called 'a b'"),
        ("other", Tiny, TinyConfig, "calls itself 'tiny'"),
        ("tiny", object, TinyConfig, "has no 'system'"),
        ("tiny", Tiny, dict, "must be an instance of a frozen dataclass, not dict"),
    ],
)
def test_what_cannot_be_registered(unknown: Path, name: str, learner: Any, config: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        register_system(name, learner, config)
    assert set(systems.SYSTEMS) <= systems.BUILT_IN
