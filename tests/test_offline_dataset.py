"""The memory-mapped data set: what goes in comes out, windows stay within episodes and are drawn uniformly, and
damage is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saddlepoint.files import digest, sealed
from saddlepoint.mbdpo.tasks import Task, find_task
from saddlepoint.offline.dataset import ARRAYS, Dataset, Writer
from saddlepoint.types import UserError

TASKS = (
    Task("small", "tests/Small-v0", 2, (-1.0,), (1.0,), 6),
    Task("large", "tests/Large-v0", 4, (-2.0,) * 3, (2.0,) * 3, 9),
)
LENGTHS = ((0, 6), (1, 9), (1, 2), (0, 1), (0, 6))
"""task and steps of each episode"""


def episodes() -> list[tuple[int, list[np.ndarray]]]:
    rng = np.random.default_rng(0)
    made = []
    for task, steps in LENGTHS:
        observation, action = TASKS[task].observation, len(TASKS[task].action_low)
        parts = [
            rng.normal(size=(steps + 1, observation)),
            rng.uniform(-1, 1, (steps, action)),
            rng.normal(size=steps),
            np.eye(steps)[-1],
        ]
        made.append((task, [part.astype(np.float32) for part in parts]))
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Writer(tmp_path / "data", 4, 3) as writer:
        for task, parts in episodes():
            writer.add(np.array([task]), *(part[None] for part in parts))
        writer.tasks = TASKS
    return tmp_path / "data"


def test_episodes_come_back_padded_with_zeros(folder):
    data = Dataset(folder)
    assert (len(data), data.steps, data.tasks) == (5, 24, TASKS)
    for number, (task, parts) in enumerate(episodes()):
        stored = data.episode(number)
        assert stored["task"] == task
        for name, part in zip(ARRAYS, parts, strict=True):
            width = part.shape[1:]
            np.testing.assert_array_equal(stored[name][..., : width[0]] if width else stored[name], part)
            assert not width or not stored[name][..., width[0] :].any()
    assert isinstance(data._arrays["observation"], np.memmap)
    counts = [(task["episodes"], task["steps"]) for task in json.loads((folder / "dataset.json").read_text())["tasks"]]
    assert counts == [(3, 13), (2, 11)]
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_windows_are_those_of_a_plain_list(folder, horizon, generator):
    """Every draw is an index into the list of all windows, in the order of the episodes."""
    data = Dataset(folder)
    every = [(number, start) for number, (_, steps) in enumerate(LENGTHS) for start in range(steps - horizon + 1)]
    state = generator.get_state()
    assert data.windows(horizon) == len(every)
    drawn = data.sample(50, horizon, generator)
    wanted = torch.randint(len(every), (50,), generator=generator.set_state(state)).tolist()
    for column, index in enumerate(wanted):
        number, start = every[index]
        stored = data.episode(number)
        np.testing.assert_array_equal(drawn.observation[:, column], stored["observation"][start : start + horizon + 1])
        for name in ARRAYS[1:]:
            np.testing.assert_array_equal(getattr(drawn, name)[:, column], stored[name][start : start + horizon])
        assert drawn.task[column] == stored["task"]
    assert len(set(wanted)) > len(every) / 2


def test_processes_share_one_draw_and_a_saved_generator_goes_on(folder, generator):
    data = Dataset(folder)
    state = generator.get_state()
    whole = data.sample(12, 2, generator)
    after = data.sample(12, 2, generator)
    for rank in range(3):
        part = data.sample(12, 2, torch.Generator().set_state(state), rank, 3)
        for ours, all_of_it in zip(part[:-1], whole[:-1], strict=True):
            np.testing.assert_array_equal(ours, all_of_it[:, rank::3])
        np.testing.assert_array_equal(part.task, whole.task[rank::3])
    again = torch.Generator().set_state(state)
    Dataset(folder).sample(12, 2, again)
    for ours, theirs in zip(Dataset(folder).sample(12, 2, again), after, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_episodes_shorter_than_the_horizon(folder, generator):
    assert set(Dataset(folder).sample(60, 9, generator).task) == {1}
    with pytest.raises(UserError, match="no episode of 10 steps"):
        Dataset(folder).sample(1, 10, generator)


def test_a_block_of_episodes_is_as_one_by_one(tmp_path):
    rng = np.random.default_rng(1)
    task, parts = (
        np.array([1, 0, 1]),
        [rng.normal(size=shape).astype(np.float32) for shape in ((3, 5, 2), (3, 4, 3), (3, 4), (3, 4))],
    )
    for name, rows in (("block", [slice(0, 3)]), ("single", [slice(i, i + 1) for i in range(3)])):
        with Writer(tmp_path / name, 2, 3) as writer:
            for row in rows:
                writer.add(task[row], *(part[row] for part in parts))
            writer.tasks = TASKS
    for file in (tmp_path / "block").iterdir():
        assert file.read_bytes() == (tmp_path / "single" / file.name).read_bytes()
    assert Dataset(tmp_path / "block").digest() == Dataset(tmp_path / "single").digest()


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), Writer(tmp_path / "data", 2, 1) as writer:
        writer.add(np.array([0]), np.zeros((1, 3, 5)), np.zeros((1, 2, 1)), np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(UserError, match="no episodes"), Writer(tmp_path / "data", 2, 1):
        pass
    assert not list(tmp_path.iterdir())


def test_damage_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        Writer(folder, 4, 3)
    with pytest.raises(UserError, match=r"no dataset\.json"):
        Dataset(tmp_path)

    def refused(name: str, content: bytes | None, said: str) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=said):
            Dataset(folder)
        (folder / name).write_bytes(whole)

    header = (folder / "dataset.json").read_bytes()
    refused("reward.f32", (folder / "reward.f32").read_bytes()[:-4], "should hold 116 bytes and holds 112 bytes")
    refused("action.f32", None, "holds nothing")
    refused("episodes.npy", b"\x93NUMPY", "should hold")
    refused("dataset.json", b"{", "cannot be read as the description of a data set")
    refused("dataset.json", b'{"format": 7}', "not written by this version")
    refused("dataset.json", header.replace(b'"rows": 29', b'"rows": 28'), "has changed since it was written")
    refused("dataset.json", json.dumps(sealed({"format": 2, "rows": 29})).encode(), "is damaged")
    for old, new in (
        (b'"rows": 29', b'"rows": 0'), (b'"rows": 29', b'"rows": Infinity'), (b'"episodes": 5', b'"episodes": "5"'), (b'"tasks": [', b'"tasks": 3, "x": ['),
        (b'"env": "tests/Small-v0"', b'"env": 1'), (b'"action_low"', b'"low"'), (b'"files": {', b'"files": null, "x": {'), (b'"bytes"', b'"size"'),
    ):  # fmt: skip
        assert old in header
        changed = json.loads(header.replace(old, new, 1))
        changed.pop("sha256")
        refused("dataset.json", json.dumps(sealed(changed)).encode(), r"is damaged|says nothing whole")


@pytest.mark.parametrize("name", ["episodes.npy", *(f"{name}.f32" for name in ARRAYS)])
def test_a_flipped_bit_is_noticed(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} has changed since it was written"):
        Dataset(folder)


def test_a_table_that_does_not_fit_is_refused_even_with_the_right_digest(folder):
    header, table = json.loads((folder / "dataset.json").read_text()), np.load(folder / "episodes.npy")
    for row, column, value in ((1, 0, 2), (2, 1, 16), (4, 2, 7), (0, 2, 2**62), (0, 2, -1)):
        odd = table.copy()
        odd[row, column] = value
        np.save(folder / "episodes.npy", odd)
        header["files"]["episodes.npy"]["sha256"] = digest(folder / "episodes.npy")
        header.pop("sha256")
        header = sealed(header)
        (folder / "dataset.json").write_text(json.dumps(header))
        with pytest.raises(UserError, match="does not fit"):
            Dataset(folder)


def test_of_two_writers_one_wins_and_the_other_says_so(tmp_path):
    (task, parts), folder = episodes()[0], tmp_path / "data"
    first, second = Writer(folder, 4, 3), Writer(folder, 4, 3)
    for writer in (first, second):
        writer.tasks = TASKS
        writer.__enter__()
    first.add(np.array([task]), *(part[None] for part in parts))
    second.add(np.array([task]), *(part[None] for part in parts))
    second.__exit__(None, None, None)
    with pytest.raises(UserError, match="it exists already"):
        first.__exit__(None, None, None)
    assert len(Dataset(folder)) == 1
    assert os.listdir(tmp_path) == ["data"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    code = (
        "import sys, resource, signal; from pathlib import Path; sys.path.insert(0, sys.argv[2]); from"
        " tests.test_offline_dataset import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        " with Writer(Path(sys.argv[1]), 4, 3) as writer:\n"
        "  for task, parts in episodes(): writer.add(np.array([task]), *(part[None] for part in parts))\n"
        "  writer.tasks = TASKS\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data"), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
    )
    assert "data cannot be written (File too large)" in done.stdout, done.stderr
    assert not os.listdir(tmp_path)


def test_tasks_are_found_by_name_and_by_environment(tmp_path):
    assert [find_task(TASKS, name, tmp_path) for name in ("small", "tests/Large-v0")] == [0, 1]
    with pytest.raises(UserError, match="has no task 'other': name one with --task: small, large"):
        find_task(TASKS, "other", tmp_path)
    with pytest.raises(UserError, match="has 2 tasks: name one"):
        find_task(TASKS, None, tmp_path)
