"""Checkpoints: what is loaded is what was saved, and what is not whole is never loaded."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saddlepoint.train.checkpoint import Checkpoint, latest, load, save
from saddlepoint.types import UserError


def sample(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, generator=generator)
    state = {
        "count": step, "wall_s": 0.1 + step, "none": None, "text": "ä\n",
        "nested": [{"big": 2**120 + step}, [1.5, True]],
        "rng": generator.get_state().numpy(), "float32": np.float32(0.1) * np.ones((2, 0, 3), np.float32),
    }  # fmt: skip
    replay = {"rows": weight.clone(), "empty": torch.empty(0, 2)}
    return Checkpoint(step, {"weight": weight, "view": weight.T}, replay, state)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor | np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and a == b


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    folder = save(tmp_path, sample(7), keep=2)
    assert folder == tmp_path / "checkpoints" / "7"
    assert latest(tmp_path) == (folder, None)
    got, wanted = load(folder), sample(7)
    assert got.step == 7
    assert same(got.learner, wanted.learner)
    assert same(dict(got.replay), wanted.replay)
    assert same(got.state, wanted.state)


def test_the_newest_are_kept_by_number(tmp_path: Path) -> None:
    for step in (5, 90, 100, 1000):
        save(tmp_path, sample(step), keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["100", "1000"]
    assert latest(tmp_path)[0].name == "1000"


def truncate(folder: Path) -> None:
    path = folder / "replay.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def flip(folder: Path) -> None:
    path = folder / "learner.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def foreign(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save({"weights": 1}, folder / "policy.pt")


def other_format(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"format": 99, "step": 20, "files": {}}))


def nonsense(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2")


def empty_entries(folder: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]  # a manifest of an older version has none
    path.write_text(json.dumps(content | {"files": {name: {} for name in content["files"]}}))


def renamed(folder: Path) -> None:
    shutil.rmtree(folder.with_name("30"), ignore_errors=True)
    folder.rename(folder.with_name("30"))


def no_arrays(folder: Path) -> None:
    (folder / "arrays.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [(truncate, "bytes instead of"), (flip, "has changed"), (foreign, "no manifest.json"),
     (other_format, "another program"), (nonsense, "damaged"),
     (empty_entries, "says nothing whole of learner.safetensors"), (renamed, "does not describe"), (no_arrays, "is missing")],
)  # fmt: skip
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, damage: Any, words: str) -> None:
    good = save(tmp_path, sample(10), keep=5)
    damage(save(tmp_path, sample(20), keep=5))
    folder, warning = latest(tmp_path)
    assert folder == good
    assert warning is not None
    assert words in warning
    assert "\n" not in warning
    again = save(tmp_path, sample(20), keep=5)  # the run goes on and reaches that step once more
    assert load(again).step == 20
    assert load(save(tmp_path, sample(21), keep=1)).step == 21  # damaged ones do not count
    shutil.rmtree(tmp_path / "checkpoints" / "21")
    assert not good.exists()
    again, good = save(tmp_path, sample(20), keep=5), save(tmp_path, sample(10), keep=5)
    shutil.rmtree(good)
    damage(again)
    with pytest.raises(UserError, match=words):
        latest(tmp_path)


def test_a_half_written_one_is_no_candidate_and_is_swept(tmp_path: Path) -> None:
    good = save(tmp_path, sample(10), keep=5)
    half = tmp_path / "checkpoints" / ".writing-20"
    half.mkdir()
    (half / "learner.safetensors").write_bytes(b"x")
    good.rename(good.with_name(".old-10"))  # killed between the two renames of a repeated step
    save(tmp_path, sample(30), keep=5)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "30"]


def test_no_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        latest(tmp_path)


def test_a_full_disk_leaves_the_older_one(tmp_path: Path) -> None:
    good = save(tmp_path, sample(10), keep=1)
    large = Checkpoint(20, {}, {"rows": torch.zeros(1_000_000)}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"step 20 could not be written .*older ones are untouched"):
            save(tmp_path, large, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]
    assert latest(tmp_path) == (good, None)


def test_a_disk_found_full_by_the_flush_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, sample(10), keep=1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(tmp_path, sample(20), keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]


def test_nothing_that_needs_pickling_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pickling"):
        save(tmp_path, Checkpoint(1, {}, {}, {"odd": np.array([object()])}), keep=1)
