"""How the native operations are built, locked and given up; and what --precision comes to."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from saddlepoint.nn import ops
from saddlepoint.nn.ops import precision
from saddlepoint.nn.ops.native import build, support
from saddlepoint.types import UserError
from tests.ops_cases import NATIVE, Draw, frozen

torch.set_num_threads(1)


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process: nothing is known of a library."""
    monkeypatch.delenv(build.REQUIRED, raising=False)
    build.loaded.cache_clear()
    yield monkeypatch
    build.loaded.cache_clear()


def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))


def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made in it, whoever asks


def no_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_build", lambda library: __import__("torch.no_such_part"))


@NATIVE
@pytest.mark.parametrize("fault", [no_compiler, no_cache, no_import], ids=lambda f: f.__name__)
def test_without_a_library_one_warning_says_what_to_do_and_the_reference_runs(fault, fresh, tmp_path, caplog):
    fault(fresh, tmp_path)
    draw = Draw(1)
    net, s, a = frozen(draw.ensemble(2, 6, (32, 32), "silu")), draw(5, 4), draw(1, 5, 2)
    with caplog.at_level(logging.INFO):
        values = [ops.ensemble_mlp(net, s, a) for _ in range(3)]
    assert torch.equal(values[0], ops.ensemble_mlp(net._replace(packed=None), s, a))
    assert not ops.native_available()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "install a C++ compiler" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text


@NATIVE
@pytest.mark.parametrize("fault", [no_compiler, no_cache, no_import], ids=lambda f: f.__name__)
def test_where_it_is_required_a_broken_backend_is_an_error(fault, fresh, tmp_path):
    fault(fresh, tmp_path)
    fresh.setenv(build.REQUIRED, "1")
    draw = Draw(1)
    with pytest.raises(UserError, match="cannot be built or loaded"):
        ops.ensemble_mlp(frozen(draw.ensemble(2, 6, (32, 32), "silu")), draw(5, 4), draw(1, 5, 2))


def test_other_processors_use_the_reference_without_a_word(fresh, caplog):
    fresh.setattr("platform.machine", lambda: "riscv64")
    with caplog.at_level(logging.INFO):
        assert not ops.native_available()
    assert not ops.native_supported()
    assert not ops.native_wins(32)
    assert not caplog.records
    fresh.setenv(build.REQUIRED, "1")
    build.loaded.cache_clear()
    with pytest.raises(UserError, match="no native operations for this processor"):
        ops.native_available()


@NATIVE
def test_a_damaged_library_is_built_again(fresh, tmp_path):
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = tmp_path / "saddlepoint" / "native" / build._digest() / "saddlepoint_ops.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"half a library")
    built = []
    fresh.setattr(build, "_build", built.append)
    assert ops.native_available()
    assert built == [library]
    assert not library.exists()


def test_checkouts_with_the_same_sources_share_one_library(monkeypatch, tmp_path):
    here = build._digest()
    for name in (*build.SOURCES, *build.HEADERS):
        (tmp_path / name).write_bytes((build.HERE / name).read_bytes())
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert build._digest() == here


STARTER = """
import os, shutil, sys, time
from pathlib import Path
import torch
from saddlepoint.nn.ops.native import build

def slow(library):  # a build of two seconds, of the library that this machine has
    scratch = library.parent / f"build-{os.getpid()}"
    scratch.mkdir()
    with (library.parent / "builders").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    if "hang" in sys.argv:
        time.sleep(600)
    time.sleep(2)
    shutil.copy(sys.argv[1], scratch / library.name)
    torch.ops.load_library(scratch / library.name)
    os.replace(scratch / library.name, library)
    scratch.rmdir()

build._build = slow
build._load()
print(torch.ops.saddlepoint.ensemble_fit)
"""


@NATIVE
def test_of_processes_that_start_at_once_one_builds_and_a_killed_build_is_taken_over(monkeypatch, tmp_path):
    assert ops.native_available()  # on this machine, in the usual place
    there = build._cache() / build._digest() / "saddlepoint_ops.so"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = build._cache() / build._digest()

    def started(*how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", STARTER, str(there), *how]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = started("hang")
    while not list(folder.glob("build-*")):
        assert killed.poll() is None, killed.stderr and killed.stderr.read()
        time.sleep(0.05)
    others = [started(), started()]
    for other in others:  # both are at the lock before the first is killed
        assert other.stderr is not None
        assert "waiting for another process" in other.stderr.readline()
    killed.kill()
    killed.communicate()
    for other in others:
        out, complaint = other.communicate(timeout=300)
        assert other.returncode == 0, complaint
        assert "saddlepoint.ensemble_fit" in out
    assert sorted(path.name for path in folder.iterdir()) == ["builders", "lock", there.name]
    builders = (folder / "builders").read_text().split()
    assert len(builders) == 2
    assert builders[0] == str(killed.pid)


def test_another_processor_or_another_source_is_another_library(monkeypatch, tmp_path):
    here = build._digest()
    other = next(flags for flags in build.FLAGS.values() if flags != build._flags())
    monkeypatch.setattr(build, "_flags", lambda: other)
    assert build._digest() != here
    monkeypatch.undo()
    assert build._digest() == here
    for name in (*build.SOURCES, *build.HEADERS):
        (tmp_path / name).write_bytes((build.HERE / name).read_bytes() + b"//")
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert build._digest() != here


def test_every_source_is_part_of_the_build():
    assert sorted(path.name for path in build.HERE.iterdir() if path.suffix in (".h", ".cpp")) == sorted(
        (*build.SOURCES, *build.HEADERS)
    )


def _hold(path: Path, ready: multiprocessing.synchronize.Event) -> None:
    with build._locked(path):
        ready.set()
        signal.pause()


@NATIVE
def test_one_builds_at_a_time_and_nobody_waits_for_a_killed_one(monkeypatch, tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "lock", ready))
    other.start()
    assert ready.wait(60)
    monkeypatch.setattr(build, "WAIT", 0.0)
    with pytest.raises(TimeoutError, match="another process has been building"), build._locked(tmp_path / "lock"):
        pass
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with build._locked(tmp_path / "lock"):  # the file is still there
        assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("fast", [True, False])
def test_precision(fast, monkeypatch, caplog):
    monkeypatch.setattr(precision, "bfloat16_products", lambda: fast)
    monkeypatch.setattr(precision, "native_supported", lambda: True)
    precision._warn_of_emulation.cache_clear()
    assert ops.resolve_precision("auto") == (torch.bfloat16 if fast else None)
    assert ops.resolve_precision("auto", "cuda") is None
    assert ops.resolve_precision("float32") is None
    assert not caplog.records
    for _ in range(2):
        assert ops.resolve_precision("bfloat16") == torch.bfloat16
    assert ["4 times as long" in record.message for record in caplog.records] == [True] * (not fast)
    with pytest.raises(UserError, match="auto, float32 or bfloat16"):
        ops.resolve_precision("float16")
    precision._warn_of_emulation.cache_clear()


def test_auto_takes_bfloat16_by_the_processors_own_list_alone(monkeypatch):
    for capability, found, wanted in (
        ("AVX512", {"avx512_bf16": True}, True),
        ("AVX512", {"amx_bf16": True}, True),
        ("AVX512", {"avx512_bf16": False}, False),
        ("AVX2", {"avx512_bf16": True}, False),
        ("AVX512", {}, False),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda f=found: f)
        support.bfloat16_products.cache_clear()
        assert support.bfloat16_products() == wanted
    support.bfloat16_products.cache_clear()
