"""The command's streams and names: closed, full or ASCII output, names that are not UTF-8, and faults of the machine
in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saddlepoint.cli import main

TOY = "saddlepoint/Toy-v0"
SMALL = [
    "--env", TOY, "--warmup-steps", "60", "--total-steps", "80", "--batch-size", "16", "--critic-hidden", "16", "16", "--policy-hidden", "16",
    "--quiet", "--threads", "1", "--compile", "off",
]  # fmt: skip


def shell(line: str, *args: object, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """``line`` with "$@" for the command with ``args``."""
    words = [sys.executable, "-m", "saddlepoint.cli", *map(os.fspath, map(str, args))]
    return subprocess.run(["sh", "-c", line, "sh", *words], capture_output=True, env=os.environ | environ)


def test_training_ends_well_with_both_streams_closed(tmp_path):
    done = shell('"$@" >&- 2>&-', "train", "algd", *SMALL, "--out", tmp_path / "run")
    assert done.returncode == 0
    assert (tmp_path / "run/checkpoints/80/manifest.json").is_file()


def test_ascii_output_of_other_letters(tmp_path):
    out = tmp_path / "ascii-ü-\U0001f600"
    done = shell('"$@"', "train", "algd", *SMALL, "--out", out, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert rb"ascii-\xfc-\U0001f600" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_is_full_is_named(tmp_path):
    done = shell('"$@" >/dev/full', "envs")
    assert done.returncode == 2
    assert done.stderr.startswith(
        b"saddlepoint: error: the file <standard output> cannot be read or written (No space left on device)"
    )
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "verb", [["train", "algd", *SMALL, "--out"], ["evaluate"], ["report"], ["collect"], ["landscape"], ["export"]]
)
def test_a_name_that_is_not_utf_8_is_one_sentence(verb, tmp_path, capsys):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff")
    assert main([*verb, name]) == 2
    error = capsys.readouterr().err
    assert r"odd\udcff' is not UTF-8" in error
    assert error.count("\n") == 1
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (MemoryError(), "there is not enough memory: lower"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: x"), "there is not enough memory ([enforce"),
        (OSError(24, "Too many open files"), "(Too many open files): raise the limit on open files"),
        (OSError(28, "No space left on device", "a"), "the file a cannot be read or written (No space left on device): make room"),
    ],
)  # fmt: skip
def test_faults_of_the_machine_are_one_sentence(fault, words, monkeypatch, capsys):
    def fail(args: list[str]) -> None:
        raise fault

    monkeypatch.setattr("saddlepoint.commands.envs_command", fail)
    assert main(["envs"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fail(args: list[str]) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("saddlepoint.commands.envs_command", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["envs"])


def test_an_interruption_without_words_says_interrupted(monkeypatch, capsys):
    def fail(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saddlepoint.commands.envs_command", fail)
    assert main(["envs"]) == 130
    assert capsys.readouterr().err == "\nsaddlepoint: interrupted\n"
