"""The run folder: one writer, looked at under its lock; links; starts that were killed; damage that is noticed."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saddlepoint.report.compared import notes
from saddlepoint.report.runs import find_runs, group_runs
from saddlepoint.train import checkpoint, run
from saddlepoint.train.checkpoint import Checkpoint, latest, load, newest, save
from saddlepoint.train.log import read_metrics, scan_metrics
from saddlepoint.types import UserError
from tests.test_checkpoint import sample
from tests.test_train_loop import assert_same_runs, go, metrics
from tests.toys import Tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with evaluations at steps 132 and 261."""
    return go(tmp_path_factory.mktemp("base") / "run", total_steps=270)


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "run")
    return tmp_path / "run"


# ------------------------------------------------------------------------------------------------ one writer


def test_a_start_that_was_slow_does_not_write_into_another_run(tmp_path: Path) -> None:
    """The other one comes and goes while this one makes its learner."""
    out = tmp_path / "run"

    class Slow(Tiny):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            if not out.exists():
                go(out, total_steps=60, seed=3)

    with pytest.raises(UserError, match="already holds a run"):
        go(out, total_steps=60, learner=Slow)
    assert json.loads((out / "config.json").read_text())["train"]["seed"] == 3
    assert [line["step"] for line in metrics(out)] == [60, 60]


def test_a_resume_that_was_slow_does_not_go_on_from_what_it_saw(copy: Path) -> None:
    class Slow(Tiny):
        been = False

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            if not Slow.been:
                Slow.been = True
                go(copy, resume=True, total_steps=300)

    with pytest.raises(UserError, match=r"another process went on with .* meanwhile: give the command again"):
        go(copy, resume=True, total_steps=290, learner=Slow)
    assert latest(copy)[0].name == "300"


@pytest.mark.parametrize("left", [{".lock"}, {".lock", "metrics.jsonl"}, {".lock", "metrics.jsonl", "config.json"},
                                  {".lock", "metrics.jsonl", "config.json", "checkpoints/.writing-0/x", "tb/events", ".writing-12-config.json"}])  # fmt: skip
def test_a_folder_killed_before_its_first_checkpoint_is_begun_anew(base: Path, tmp_path: Path, left: set[str]) -> None:
    out = tmp_path / "run"
    for name in left:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((base / "config.json").read_text() if name == "config.json" else "")
    if "config.json" in left:
        with pytest.raises(UserError, match=r"holds no checkpoint yet.*the command that started it begins it anew"):
            go(out, resume=True, total_steps=270)
    assert_same_runs(base, go(out, total_steps=270))
    assert not [path for path in out.rglob("*") if ".writing-" in path.name]


def test_other_files_are_never_cleared(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    for _ in range(2):
        with pytest.raises(UserError, match="whose checkpoints are gone: choose another --out, or remove it"):
            go(copy, total_steps=270)
        also = ", or evaluate its best/ with --checkpoint best" if (copy / "best").is_dir() else ""
        reads = (lambda run: newest(run, checkpoint.load_learner, checkpoint.LEARNER), lambda run: go(run, resume=True, total_steps=270))
        for read in reads:  # the same is said to all
            with pytest.raises(UserError, match=f"is a run whose checkpoints are gone: restore them{also}, or start it anew with another --out"):
                read(copy)
        shutil.rmtree(copy / "best", ignore_errors=True)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    (tmp_path / "own" / "thesis.tex").touch()
    with pytest.raises(UserError, match="whose checkpoints are gone"):
        go(tmp_path / "own", total_steps=270)
    assert (tmp_path / "own" / "thesis.tex").exists()


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "config.json", "tb", "checkpoints", "best", "checkpoints/201"])
def test_no_link_is_written_through(copy: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    path = copy / name
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("mine")
    before = {p: p.read_bytes() for p in ([outside] if outside.is_file() else outside.rglob("*")) if p.is_file()}
    path.symlink_to(outside)
    with pytest.raises(UserError):
        go(copy, resume=True, total_steps=300)
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_pipe_in_a_run_folder_is_one_sentence_and_no_wait(copy: Path, name: str) -> None:
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    with pytest.raises(UserError, match=f"{name} is neither a file nor a folder: remove it"):
        go(copy, resume=True, total_steps=275)


def test_a_linked_run_folder_is_as_good_as_any(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    go(tmp_path / "link", resume=True, total_steps=300)
    assert latest(copy)[0].name == "300"


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_moved_aside_is_found(copy: Path, base: Path) -> None:
    """Killed between the two renames of a step that is written again, with nothing else there."""
    home = copy / "checkpoints"
    shutil.rmtree(home / "201")
    (home / "270").rename(home / ".old-270")
    assert load(latest(copy)[0]).step == 270
    assert checkpoint.load_learner(latest(copy, checkpoint.LEARNER)[0]).keys() == load(latest(base)[0]).learner.keys()
    go(copy, resume=True, total_steps=300)
    assert sorted(path.name for path in home.iterdir()) == ["270", "300"]


def test_a_config_that_may_not_be_read_is_not_called_missing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def forbidden(path: Any, *flags: Any) -> int:
        if str(path).endswith("config.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *flags)

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(UserError, match="Permission denied") as caught:
        go(copy, resume=True, total_steps=290)
    assert "config.json" in str(caught.value)
    assert "has no config.json" not in str(caught.value)


def test_a_folder_that_is_taken_away_while_it_trains_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"

    class Mover(Tiny):
        def update(self, replay: Any, updates: int) -> Any:
            if out.exists() and self.updates > 40:
                out.rename(tmp_path / "elsewhere")
            return super().update(replay, updates)

    with pytest.raises(UserError, match=re.escape(str(out))) as caught:
        go(out, total_steps=270, learner=Mover)
    assert "\n" not in str(caught.value)
    assert "b'" not in str(caught.value)
    assert go(tmp_path / "elsewhere", resume=True, total_steps=270) == tmp_path / "elsewhere"


@pytest.mark.parametrize("name", [*checkpoint.FILES, checkpoint.MANIFEST])
def test_what_cannot_be_read_is_passed_over_like_what_is_damaged(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector, or no permission."""
    opened = os.open

    def failing(path: Any, *flags: Any) -> int:
        if str(path).endswith(f"270/{name}"):
            raise OSError(5, "Input/output error", str(path))
        return opened(path, *flags)

    monkeypatch.setattr(os, "open", failing)
    folder, note = latest(copy)
    assert folder.name == "201"
    assert "Input/output error" in str(note)


def test_a_flipped_bit_of_the_manifest_is_noticed(copy: Path) -> None:
    path = copy / "checkpoints" / "270" / "manifest.json"
    content = json.loads(path.read_text())
    content["seals"]["config"] = content["seals"]["config"][::-1]
    path.write_text(json.dumps(content))
    folder, note = latest(copy)
    assert folder.name == "201"
    assert "manifest.json has changed" in str(note)


def test_loading_beside_a_writer_that_keeps_one(tmp_path: Path) -> None:
    save(tmp_path, sample(0), keep=1)
    done = threading.Event()

    def write() -> None:
        for step in range(1, 120):
            save(tmp_path, sample(step // 2), keep=1)  # every second one is the same step once more
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    loads, last = 0, -1
    while not done.is_set() or loads < 5:
        content, step, note = newest(tmp_path, checkpoint.load_learner, checkpoint.LEARNER)
        assert note is None
        assert content.keys() == sample(step).learner.keys()
        assert step >= last
        loads, last = loads + 1, step
    writer.join()


def test_weights_may_be_read_by_whoever_may_read_the_rest(tmp_path: Path) -> None:
    folder = save(tmp_path, sample(1), keep=1)
    assert len({path.stat().st_mode & 0o777 for path in folder.iterdir()}) == 1


def test_odd_content_that_is_well_sealed_is_one_sentence(copy: Path) -> None:
    whole = load(latest(copy)[0])
    odd: list[dict[str, Any]] = [
        {"callbacks": 3}, {"sums": [1]}, {"generator": "x"}, {"updates": "x"}, {"evaluated": {"a": {}}}, {"settled": 1.5}, {"metrics": {"loss": []}},
        {"best": {"merit": "high", "step": 3}}, {"finished": whole.state["finished"] | {"costs": np.zeros((2, 7))}}, {"surcharge": np.zeros(9, np.float32)},
        {"observation": np.zeros((1, 1), np.float32)}, {"sums": whole.state["sums"] | {"lengths": np.zeros(9)}},
    ]  # fmt: skip
    for state in ({}, *(whole.state | one for one in odd)):
        save(copy, Checkpoint(270, dict(whole.learner), dict(whole.replay), state, whole.seals), keep=5)
        with pytest.raises(UserError, match="does not hold what a checkpoint"):
            go(copy, resume=True, total_steps=300)


# ------------------------------------------------------------------------------------------------ metrics and config


def flip(path: Path, at: int, bit: int = 128) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def line_start(path: Path, number: int) -> int:
    return sum(len(line) for line in path.read_bytes().splitlines(keepends=True)[: number - 1])


def test_a_bad_line_is_named_and_ends_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "metrics.jsonl"
    before = metrics(copy)
    flip(path, line_start(path, 2) + 5)
    lines, faults = scan_metrics(copy)
    assert [line["step"] for line in lines] == [line["step"] for i, line in enumerate(before, 1) if i != 2]
    assert len(faults) == 1
    assert "line 2 of" in faults[0]
    (found,) = find_runs([copy])
    assert found.evaluations()[-1]["step"] == 270
    assert any("line 2 of" in note for note in notes(group_runs([found])[0]))
    go(copy, resume=True, total_steps=300)
    said = capsys.readouterr().out
    assert "warning: line 2 of" in said
    assert "lacks 1 of its lines" in said
    assert path.read_bytes().count(b"\n") == len(before)  # the two lines of step 270 only an end caused, those of 300 are new


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "lacks 6 of its lines"),
        (lambda path: path.write_bytes(b""), "lacks 6 of its lines"),
        (lambda path: path.write_bytes(b"".join(line for i, line in enumerate(path.read_bytes().splitlines(keepends=True)) if i != 1)), "lacks 1 of its"),
        (lambda path: path.write_bytes(path.read_bytes() + path.read_bytes()), "has 6 lines too many"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b'"train/episodes": ', b'"train/episodes": 1', 1)), "has lines that were changed"),
    ],
)
def test_lost_doubled_and_changed_lines_are_noticed(copy: Path, damage: Any, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(copy / "metrics.jsonl")
    go(copy, resume=True, total_steps=300)
    assert words in capsys.readouterr().out
    go(copy, resume=True, total_steps=306)  # said once: the next checkpoint knows what is there
    assert "as the checkpoint knew it" not in capsys.readouterr().out


@pytest.mark.parametrize("line", ["5", "null", "{}", '{"step": "x", "kind": "eval", "wall_s": 1}', '{"step": 3, "wall_s": 1, "kind": "train", "a": "b"}',
                                  "[" * 100_000, "\xff\xfe", '{"step": 3, "kind": "eval"}'])  # fmt: skip
def test_a_line_that_is_no_line_of_metrics(copy: Path, line: str) -> None:
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    before = len(read_metrics(copy))
    assert before == len(metrics_that_count(copy))
    go(copy, resume=True, total_steps=300)


def metrics_that_count(folder: Path) -> list[dict[str, Any]]:
    found = []
    for raw in (folder / "metrics.jsonl").read_bytes().splitlines():
        try:
            found.append(json.loads(raw))
        except (ValueError, RecursionError):
            continue
    return [line for line in found if isinstance(line, dict) and {"step", "kind", "wall_s"} <= line.keys() and isinstance(line["step"], int)
            and all(not isinstance(value, str) for name, value in line.items() if name != "kind")]  # fmt: skip


def test_any_flip_of_the_config_is_noticed(copy: Path) -> None:
    path = copy / "config.json"
    whole = path.read_bytes()
    noticed, wanted = 0, {name: value for name, value in json.loads(whole).items() if name != "sha256"}
    for at in [*range(3, len(whole) - 3, 31), *range(whole.index(b'"sha256"'), len(whole) - 3, 5)]:
        flip(path, at, 1 << at % 8)
        try:
            content = run.read(copy)
        except UserError:
            noticed += 1
        else:  # blanks of the layout
            assert content == wanted
        path.write_bytes(whole)
    assert noticed > 50


def test_a_config_of_another_run_is_noticed(copy: Path, tmp_path: Path) -> None:
    other = go(tmp_path / "other", total_steps=60, seed=9)
    shutil.copy(other / "config.json", copy / "config.json")
    with pytest.raises(UserError, match=r"config.json is not the one that the checkpoint of step 270 was made with"):
        go(copy, resume=True, total_steps=300, seed=9)


def test_nothing_is_left_open(base: Path, copy: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    go(copy, resume=True, total_steps=300)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_checkpoint_that_is_removed_while_it_lies_aside_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen between two renames, read after it and its successor at that place are gone."""
    home = save(tmp_path, sample(10), keep=1).parent
    (home / "10").rename(home / ".old-10")
    whole = checkpoint.whole

    def late(folder: Path, *rest: Any) -> Any:
        if folder.name == "10":
            shutil.rmtree(home / ".old-10")
            save(tmp_path, sample(20), keep=1)
        return whole(folder, *rest)

    monkeypatch.setattr(checkpoint, "whole", late)
    assert newest(tmp_path, checkpoint.load_learner, checkpoint.LEARNER)[1:] == (20, None)


@pytest.mark.parametrize(
    "change",
    [{"action_low": ["a", -1.0]}, {"action_low": [None, -1.0]}, {"action_low": [[-1.0], -1.0]}, {"action_low": [-1.0]}, {"observation": 3.5},
     {"observation": "3"}, {"constraints": None}, {"image": [3, "x", 4]}, {"action_dtype": "floats"}, {"budget_range": [1.0]}, {"budget_range": [1.0, "2"]},
     {"budget_range": []}, {"budget_range": [0.0, math.inf]}, {"action_low": [math.nan, -1.0]}, {"action_high": [10**400, 1.0]}, {"action_dtype": {"a": 1}}],
)  # fmt: skip
def test_a_damaged_shape_is_one_sentence(change: dict[str, object]) -> None:
    from saddlepoint.train.run import shape_of

    whole = {"observation": 3, "action_low": [-1.0, -1.0], "action_high": [1.0, 1.0], "constraints": 1}
    assert shape_of({"shape": whole}).action == 2
    with pytest.raises(UserError, match="no whole 'shape'"):
        shape_of({"shape": whole | change})


@pytest.mark.parametrize("seed", [None, "3", True, 1.5, [3], -1, 2**31], ids=str)
def test_a_seed_that_is_no_number_is_one_sentence(seed: object, tmp_path: Path) -> None:
    content = {"format": run.FORMAT, "system": "sac", "train": {"seed": seed, "env": "x"}, "learner": {}, "resolved": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no whole 'train'"):
        run.read(tmp_path)
