"""TD-MPC2's chunks: imitations of the layout that tensordict pickles, read without tensordict; and files that are to
be refused."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from saddlepoint.cli import main
from saddlepoint.envs import env_spec
from saddlepoint.mbdpo.tasks import Task
from saddlepoint.offline.chunk import read_chunk
from saddlepoint.offline.convert import EPISODES_AT_ONCE, convert
from saddlepoint.offline.dataset import Dataset
from saddlepoint.offline.task_sets import SETS, known_task
from saddlepoint.types import UserError

ROWS, OBSERVATION, ACTION = 7, 5, 3
DIMS = {0: (3, 2), 1: (5, 3)}
"""observation and action entries that each task uses"""


class Saving:
    """Classes under the names that tensordict has, while a chunk is written: the pickle refers to them by name, as a
    real one does."""

    def __init__(self, module: str, dict_class: bool) -> None:
        self.modules = {
            "tensordict": ModuleType("tensordict"),
            module: ModuleType(module),
            "tensordict.utils": ModuleType("tensordict.utils"),
        }
        self.tensor_dict = type("TensorDict", (), {"__module__": module, "__getstate__": lambda d: d.state})
        vars(self.modules[module])["TensorDict"] = self.tensor_dict
        self.entries = type("_StringOnlyDict", (dict,), {"__module__": "tensordict.utils"}) if dict_class else dict
        vars(self.modules["tensordict.utils"])["_StringOnlyDict"] = self.entries

    def write(self, path: Path, entries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
        saved = self.tensor_dict()
        saved.state = {
            "_tensordict": self.entries(entries), "_batch_size": torch.Size([len(entries["reward"]), ROWS]), "_is_shared": False, "_is_memmap": False,
            "_device": torch.device("cpu"), "_is_locked": False, "_td_dim_names": None, "_lock_id": set(), "_locked_tensordicts": [],
        }  # fmt: skip
        with monkeypatch.context() as patch:
            for name, module in self.modules.items():
                patch.setitem(sys.modules, name, module)
            torch.save(saved, path)
        return path


OLD, NEW = Saving("tensordict.tensordict", True), Saving("tensordict._td", False)


def entries(tasks: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """What TD-MPC2 stores: the first action and reward of each episode are nan, what a task does not use is 0."""
    rng = np.random.default_rng(seed)
    obs, action = rng.normal(size=(len(tasks), ROWS, OBSERVATION)), rng.uniform(-1, 1, (len(tasks), ROWS, ACTION))
    for i, task in enumerate(tasks):
        obs[i, :, DIMS[task][0] :], action[i, :, DIMS[task][1] :] = 0, 0
    reward = rng.normal(size=(len(tasks), ROWS))
    action[:, 0], reward[:, 0] = np.nan, np.nan
    made = {
        name: torch.tensor(part, dtype=torch.float32)
        for name, part in (("obs", obs), ("action", action), ("reward", reward))
    }
    return made | {"task": torch.tensor(tasks)[:, None].expand(-1, ROWS).clone()}


@pytest.mark.parametrize("saving", [OLD, NEW])
def test_episodes_of_chunks(saving, tmp_path, monkeypatch):
    parts = [entries([0, 1, 1]), entries([1, 0], seed=1)]
    paths = [saving.write(tmp_path / f"chunk_{i}.pt", part, monkeypatch) for i, part in enumerate(parts)]
    assert "tensordict" not in sys.modules
    data = convert(paths, tmp_path / "data", ("slow", "fast"))
    assert data.tasks == (
        Task("slow", "slow", 3, (-1.0,) * 2, (1.0,) * 2, ROWS - 1), Task("fast", "fast", 5, (-1.0,) * 3, (1.0,) * 3, ROWS - 1)
    )  # fmt: skip
    whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    for number in range(5):
        stored = data.episode(number)
        np.testing.assert_array_equal(stored["observation"], whole["obs"][number])
        np.testing.assert_array_equal(stored["action"], whole["action"][number, 1:])
        np.testing.assert_array_equal(stored["reward"], whole["reward"][number, 1:])
        assert not stored["terminated"].any()
        assert stored["task"] == whole["task"][number, 0]


def test_the_command_line_in_several_portions(tmp_path, monkeypatch, capsys):
    """More episodes than are held at once; named after a set of TD-MPC2's."""
    path = OLD.write(tmp_path / "chunk.pt", entries([0, 1] * EPISODES_AT_ONCE), monkeypatch)
    assert main(["convert", str(path), "--out", str(tmp_path / "data"), "--tasks", "mt30"]) == 0
    assert "512 episodes and 3,072 steps of 30 tasks" in capsys.readouterr().out
    assert [len(names) for names in SETS.values()] == [30, 80]
    data = convert([path], tmp_path / "other")
    assert [task.name for task in data.tasks] == ["task-0", "task-1"]
    walker = Dataset(tmp_path / "data").tasks[0]
    assert (walker.name, walker.env, walker.episode_length) == ("walker-stand", "dmc/walker-stand", 500)
    assert main(["convert", "--out", "x"]) == 2
    assert main(["convert", str(path)]) == 2
    assert "give --out" in capsys.readouterr().err


def test_every_task_of_the_sets_is_an_environment_of_ours_with_episodes_of_that_length():
    """By their numbers in mt80, which the first chunks of the data show: 30 of DMControl, then Meta-World's in its
    own order."""
    names = SETS["mt80"]
    assert (len(set(names)), names[:30]) == (80, SETS["mt30"])
    assert [names[i] for i in (0, 29, 30, 65, 79)] == [
        "walker-stand",
        "pendulum-spin",
        "mw-assembly",
        "mw-reach",
        "mw-hand-insert",
    ]
    for name in names:
        env, steps, *_ = known_task(name)
        assert env == (f"mw/{name[3:]}" if name.startswith("mw-") else f"dmc/{name}")
        assert env_spec(env).horizon == steps
    assert known_task("reach") is known_task("mw/reach") is None


def test_a_goal_at_height_0_is_an_entry_of_meta_worlds_observations(tmp_path):
    rng, rows = np.random.default_rng(0), 101
    observation, action = (torch.tensor(rng.uniform(-1, 1, (2, rows, width)), dtype=torch.float32) for width in (50, 6))
    observation[..., 38:], action[..., 4:] = 0, 0
    number = SETS["mt80"].index("mw-plate-slide")
    chunk = {
        "obs": observation,
        "action": action,
        "reward": torch.zeros(2, rows),
        "task": torch.full((2, rows), number),
    }
    torch.save(chunk, tmp_path / "chunk.pt")
    task = convert([tmp_path / "chunk.pt"], tmp_path / "data", ("mt80",)).tasks[number]
    assert task == Task("mw-plate-slide", "mw/plate-slide", 39, (-1.0,) * 4, (1.0,) * 4, 100)
    observation[..., 45] = 1.0  # no entry of Meta-World's
    torch.save(chunk, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match="mw-plate-slide has 39 observations and the chunks use 46"):
        convert([tmp_path / "wrong.pt"], tmp_path / "none", ("mt80",))
    observation[..., 39:], action[1, :, 5] = 0, 0.5  # of the data's own widths, and so another task's
    torch.save(chunk | {"obs": observation[..., :39]}, tmp_path / "walker.pt")
    with pytest.raises(UserError, match="mw-plate-slide has 4 actions and the chunks use 6"):
        convert([tmp_path / "walker.pt"], tmp_path / "none", ("mt80",))


class Payload:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Evaluated(Payload):
    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("kind", [Payload, Evaluated])
@pytest.mark.parametrize("inside", [True, False])
def test_a_malicious_chunk_is_not_run(kind, inside, tmp_path, monkeypatch):
    target, path = tmp_path / "touched", tmp_path / "chunk.pt"
    if inside:
        OLD.write(path, entries([0]) | {"extra": kind(target)}, monkeypatch)
    else:
        torch.save(kind(target), path)
    with pytest.raises(UserError, match=r"names .*(Path|eval).*nothing of it was run"):
        convert([path], tmp_path / "data")
    assert not target.exists()
    assert not (tmp_path / "data").exists()
    if not inside:
        torch.load(path, weights_only=False)
        assert target.exists()  # the payload works where it is let


def test_other_files_are_refused(tmp_path, monkeypatch):
    good = OLD.write(tmp_path / "good.pt", entries([0, 1]), monkeypatch)
    assert read_chunk(good).obs.shape == (2, ROWS, OBSERVATION)

    def refused(said: str, *paths: Path, names: tuple[str, ...] = ()) -> None:
        with pytest.raises(UserError, match=said):
            convert(list(paths), tmp_path / "data", names)
        assert not (tmp_path / "data").exists()

    half = tmp_path / "half.pt"
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    refused("no whole file", half)
    refused("there is no chunk", tmp_path / "nowhere.pt")
    legacy = tmp_path / "legacy.pt"
    torch.save(entries([0]), legacy, _use_new_zipfile_serialization=False)
    refused("no whole file", legacy)

    def changed(name: str, value: Any) -> Path:
        return OLD.write(tmp_path / f"{name}.pt", entries([0, 1]) | {name: value}, monkeypatch)

    whole = entries([0, 1])
    refused("no tensor reward", OLD.write(tmp_path / "a.pt", entries([0]) | {"reward": [1.0]}, monkeypatch))
    refused("has 4 observations", good, changed("obs", whole["obs"][..., :4].clone()))
    refused("does not fit obs", changed("action", whole["action"][:, :-1].clone()))
    refused("task holds torch.float32", changed("task", whole["task"].float()))
    refused("holds torch.complex64", changed("reward", whole["reward"].to(torch.complex64)))
    refused("not a plain tensor", changed("obs", whole["obs"].to_sparse()))
    refused("not a plain tensor", changed("obs", whole["obs"].to("meta")))
    refused("no episodes, or no observations", changed("obs", whole["obs"][..., :0].clone()))
    refused("only 4 bytes", changed("obs", torch.zeros(1).expand(2, ROWS, OBSERVATION)))
    refused(rf"of task {2**40}, and at most 10,000", changed("task", torch.full((2, ROWS), 2**40)))
    refused("more than one task", changed("task", torch.arange(2 * ROWS).view(2, ROWS)))
    broken = whole["reward"].clone()
    broken[1, 3] = torch.inf
    refused("reward holds values that are not finite", changed("reward", broken))
    refused("outside of", changed("action", whole["action"] * 2))
    refused("hold a task 1 and --tasks names 1", good, names=("one",))


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as parts:
        return {name: parts.read(name) for name in parts.namelist()}


def test_every_flipped_bit_of_the_numbers_is_noticed(tmp_path, monkeypatch):
    path = OLD.write(tmp_path / "chunk.pt", entries([0, 1]), monkeypatch)
    whole, inside = path.read_bytes(), 0
    for content in records(path).values():
        if len(content) > 100:
            start = whole.index(content)
            for at in range(start, start + len(content), 37):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
                inside += 1
                with pytest.raises(UserError, match=r"has changed since|cannot be read"):
                    read_chunk(path)
    assert inside > 20


def test_a_part_that_is_shorter_than_its_tensor_is_refused(tmp_path, monkeypatch):
    path = OLD.write(tmp_path / "chunk.pt", entries([0, 1]), monkeypatch)
    parts = records(path)
    longest = max((name for name in parts if "/data/" in name), key=lambda name: len(parts[name]))
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content[:8] if name == longest else content)
    with pytest.raises(UserError, match=r"longer than its part|cannot be read|only .* bytes"):
        read_chunk(path)


def test_a_compressed_chunk_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = OLD.write(tmp_path / "chunk.pt", entries([0, 1]), monkeypatch)
    parts = records(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    with pytest.raises(UserError, match="is compressed"):
        read_chunk(path)
