"""The one reader and writer of files: whole or not at all, never through a link, and every fault in one sentence."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saddlepoint import files
from saddlepoint.types import UserError

DEEP = "[" * 100_000
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.int64), "c": torch.zeros(0, 4)}


def test_a_file_is_replaced_whole_with_the_umasks_mode(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    files.write_tensors(tmp_path / "a.safetensors", TENSORS)
    assert files.read_json(path, "a test") == {"a": 2}
    umask = os.umask(0)
    os.umask(umask)
    assert {entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()} == {0o666 & ~umask}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    files.atomic_write(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path):  # not a fault of the file: it passes as it is
        _ = 1 / 0
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["a", ".writing-00000000-a"])
def test_links_are_replaced_and_never_written_through(tmp_path, monkeypatch, name):
    names = iter(["00000000", "00000001"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    if name != "a":  # a hostile folder that guesses the name
        with pytest.raises(files.FileFault, match="File exists"):
            files.atomic_write(folder / "a", "new")
    files.atomic_write(folder / "a", "new")
    assert victim.read_text() == "mine"
    assert (folder / "a").read_text() == "new"
    assert not (folder / "a").is_symlink()


@pytest.mark.parametrize("where", ["folder", "missing/a", "/dev/null"])
def test_what_cannot_be_written_is_one_sentence(tmp_path, where):
    (tmp_path / "folder").mkdir()
    with pytest.raises(files.FileFault, match="cannot be written"):
        files.atomic_write(tmp_path / where, "x")


def test_a_lock_has_one_holder_and_is_never_a_link(tmp_path):
    path, victim = tmp_path / ".lock", tmp_path / "victim"
    victim.write_text("mine")
    with files.hold_lock(path):
        with pytest.raises(files.Busy), files.hold_lock(path):
            pass
        path.unlink()  # lets nobody in: the folder is locked as well
        with pytest.raises(files.Busy), files.hold_lock(path):
            pass
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(files.FileFault, match="symbolic links"), files.hold_lock(path):
        pass
    assert victim.read_text() == "mine"


def _make(
    folder: Path, number: int, barrier: multiprocessing.synchronize.Barrier, ended: multiprocessing.queues.Queue
) -> None:
    try:
        with files.new_folder(folder) as temporary:
            (temporary / "number").write_text(str(number))
            barrier.wait()
        ended.put(number)
    except files.FileFault:
        ended.put(-1)


def test_of_two_makers_of_one_folder_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, ended = context.Barrier(2), context.Queue()
    makers = [context.Process(target=_make, args=(tmp_path / "out", number, barrier, ended)) for number in (1, 2)]
    for maker in makers:
        maker.start()
    won = max(ended.get(timeout=60), ended.get(timeout=60))
    for maker in makers:
        maker.join()
    assert (tmp_path / "out" / "number").read_text() == str(won)
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_another_makes_at_the_last_moment_is_named(tmp_path, monkeypatch):
    rename = Path.rename

    def late(self, target):
        (target / "theirs").mkdir(parents=True)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(files.FileFault, match="it exists already"), files.new_folder(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["theirs"]


def test_unfinished_parts_are_removed_and_links_not_followed(tmp_path):
    (tmp_path / "keep").mkdir()
    (tmp_path / ".writing-1-a").symlink_to(tmp_path / "keep")
    (tmp_path / ".writing-2-b").mkdir()
    (tmp_path / ".writing-3-c").write_text("part")
    files.remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["keep"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"), ("{", "Expecting property name"), ("[]", "it is a list, not an object"), ("null", "it is null, not an object"),
        (DEEP, "nested"), ('{"a":' * 150 + "1" + "}" * 150, "nested"), ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        (b'{"a": "\xff"}', "can't decode"), ('{"a": "\\ud800"}', "surrogates"),
    ],
)  # fmt: skip
def test_bad_json_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(files.FileFault) as caught:
        files.read_json(path, "a test", advice="make it again")
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{path} cannot be read as a test (")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_one_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    kinds = {
        "fifo": "not a file",
        ".": "is a folder",
        "none": "No such file",
        "loop": "levels of symbolic links",
        "/dev/zero": "not a file",
    }
    for name, reason in kinds.items():
        for read in (
            files.read_json,
            files.read_toml,
            files.read_arrays,
            files.read_array,
            files.read_tensors,
            files.read_json_lines,
        ):
            with pytest.raises(files.FileFault, match=reason) as caught:
                read(tmp_path / name, "a test")
            assert caught.value.missing == (name == "none")


def test_a_text_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(files.FileFault, match="at most"):
        files.read_json(tmp_path / "large", "a test")


def test_lines_are_read_one_by_one(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\nnonsense \xff\n5\n' + DEEP.encode() + b'\n{"a": 2}\n{"a"')
    lines = files.read_json_lines(path, "lines")
    assert [line.content for line in lines] == [{"a": 1}, None, None, None, {"a": 2}, None]
    assert [bool(line.reason) for line in lines] == [False, True, True, True, False, True]
    assert b"".join(line.raw for line in lines) == path.read_bytes()


def test_tensors_come_back_and_are_copied_in_parts(tmp_path, monkeypatch):
    files.write_tensors(tmp_path / "a", TENSORS)
    monkeypatch.setattr(files.reading, "BLOCK", 16)  # one row and a bit
    stored = files.StoredTensors(tmp_path / "a", "a test")
    assert set(stored) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(stored[name], tensor)
        assert stored[name].dtype == tensor.dtype
    for name in "ac":
        target = torch.full_like(TENSORS[name], 9)
        files.copy_rows(target, stored, name)
        assert torch.equal(target, TENSORS[name])
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    with pytest.raises(files.FileFault):
        stored["a"]


def test_arrays_come_back_and_compressed_or_pickled_ones_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"a": np.arange(3), "b": np.array(1.5), "c": np.zeros((0, 2), np.uint8)}
    files.write_arrays(path, arrays)
    found = files.read_arrays(path, "a test")
    assert {name: (array.tolist(), array.dtype) for name, array in found.items()} == {
        n: (a.tolist(), a.dtype) for n, a in arrays.items()
    }
    np.savez_compressed(path, a=np.zeros(10**7))
    with pytest.raises(files.FileFault, match="compressed"):
        files.read_arrays(path, "a test")
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(files.FileFault, match="allow_pickle"):
        files.read_arrays(path, "a test")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(files.FileFault, match="Object arrays"):
        files.read_array(tmp_path / "a.npy", "a test")


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))
    path.write_bytes(path.read_bytes().replace(b"(3,), }         ", b"(3000000000000,)"[:16]))
    with pytest.raises(files.FileFault):
        files.read_array(path, "a test")


def test_toml_is_read_with_its_faults(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("a = 1\n")
    assert files.read_toml(path, "a test") == {"a": 1}
    for content in (f"a = {DEEP}", "a = ", "a = 1\na = 2", "a = 9999-99-99"):
        path.write_text(content)
        with pytest.raises(files.FileFault):
            files.read_toml(path, "a test")


def test_policies_import_without_fcntl_and_only_locking_needs_it(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from pathlib import Path\nfrom saddlepoint import files\nfrom saddlepoint.types import UserError\n"
        "files.write_json(Path(sys.argv[1]), {})\n"
        "try:\n with files.hold_lock(Path(sys.argv[1])): pass\nexcept UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert "cannot lock files" in done.stdout


def test_a_fault_passes_between_processes(tmp_path):
    import pickle

    with pytest.raises(UserError) as caught:
        files.read_json(tmp_path / "none", "a test")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason, again.missing) == (str(caught.value), caught.value.reason, True)
