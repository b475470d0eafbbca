"""The command's streams and names: closed, full or ASCII output, names that are not UTF-8, and faults of the machine
in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saddlepoint.cli import main
from saddlepoint.train.log import scan_metrics

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize("raised", [ValueError("no answer"), OSError("no answer"), SystemExit(0)])
def test_what_a_handler_of_signals_raises_is_one_sentence(raised, monkeypatch, capsys):
    class Alarm:
        def __call__(self, number: int, frame: object) -> None:
            raised.add_note("go on so")
            raise raised

    def fail(args: list[str]) -> None:
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr("saddlepoint.commands.envs_command", fail)
    before = signal.signal(signal.SIGALRM, Alarm())
    try:
        assert main(["envs"]) == 2
    finally:
        signal.signal(signal.SIGALRM, before)
    error = capsys.readouterr().err
    assert error.startswith(f"saddlepoint: error: a handler of signals raised {type(raised).__name__}: {raised} (test_streams.py, line ")
    assert error.endswith("in __call__): correct it; go on so.\n")


def test_an_interruption_without_words_says_interrupted(monkeypatch, capsys):
    def fail(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saddlepoint.commands.envs_command", fail)
    assert main(["envs"]) == 130
    assert capsys.readouterr().err == "\nsaddlepoint: interrupted\n"


WAYS = {
    "closed": "sys.stdout.close(); sys.stderr.close()",
    "no files": "os.close(1); os.close(2)",
    "both": "sys.stdout.close(); os.close(2)",
    "none": "sys.stdout = sys.stderr = None",
    "objects": "sys.stdout = sys.stderr = object()",
    "detached": "sys.stdout.detach(); sys.stderr.detach()",
    "a closed buffer": "sys.stdout = sys.stderr = io.StringIO(); sys.stdout.close()",
    "elsewhere": "sys.stdout = sys.stderr = io.StringIO()",
    "nowhere": "os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2)",
}


@pytest.mark.parametrize("way", WAYS)
def test_streams_are_afterwards_what_they_were(way):
    """In a process of its own, which may not lose the test's streams."""
    program = f"""
import io, os, sys
from saddlepoint.streams import hold_streams, kept_streams
with kept_streams():
    {WAYS[way]}
    hold_streams()
    print("within")
    opened = os.open(os.devnull, os.O_RDONLY)
print("after")
print("said", opened, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("after\n" if way in ("elsewhere", "nowhere") else "within\nafter\n")
    assert done.stderr.startswith("said ")
    assert int(done.stderr.split()[1]) > 2  # no file that is opened gets a stream's number


@pytest.mark.parametrize("what", ["thread", "process"])
def test_what_is_left_running_does_not_keep_a_command_from_ending(what):
    program = f"""
import sys, multiprocessing, threading, time
from saddlepoint import cli
cli.THREAD_SECONDS = 0.1
{"threading.Thread" if what == "thread" else "multiprocessing.Process"}(target=time.sleep, args=(20,), name="simulator").start()
sys.argv = ["saddlepoint", "--version"]
sys.exit(cli.main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("saddlepoint ")
    assert done.stderr == f"warning: the {what} simulator was left running, and ends with the command\n"


def run_in(folder, program, env):
    """A short training of ``env``, which the file ``program`` in ``folder`` makes."""
    (folder / f"{env.partition(':')[0]}.py").write_text(program)
    args = [
        "train", "sac", "--env", env, "--cost-limit", "5", "--cost-horizon", "12", "--warmup-steps", "60", "--total-steps", "80",
        "--batch-size", "16", "--critic-hidden", "16", "--policy-hidden", "16", "--threads", "1", "--compile", "off", "--out", folder / "run",
    ]  # fmt: skip
    return shell(f'cd {folder} && "$@"', *args, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def test_what_an_environment_does_to_the_streams_hides_no_sentence(tmp_path):
    done = run_in(tmp_path, RUDE, "rude:Rude")
    assert done.returncode == 2
    assert b"rude:Rude raised ValueError: gone" in done.stderr
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "run/checkpoints/40/manifest.json").is_file()


@pytest.mark.parametrize("first", [0, 3])
def test_an_environment_that_closes_all_files_loses_nothing(first, tmp_path):
    done = run_in(tmp_path, CLOSER.replace("FIRST", str(first)), "closer:Closer")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints/80/manifest.json").is_file()
    lines, faults = scan_metrics(tmp_path / "run")
    assert not faults
    assert {(line["step"], line["kind"]) for line in lines} == {(80, "train"), (80, "eval")}


CLOSER = """
import os
from tests.toys import Drift

class Closer(Drift):
    def step(self, action):
        if self.steps == 260:
            os.closerange(FIRST, 4096)
            self.files = [os.open("own.txt", os.O_WRONLY | os.O_CREAT) for _ in range(20)]  # with the numbers of ours
        return super().step(action)
"""

RUDE = """
import io, os, sys
from tests.toys import Drift

class Rude(Drift):
    def step(self, action):
        if self.steps == 230:
            sys.stdout.close()
            os.close(2)
        if self.steps == 240:
            sys.stderr = io.StringIO()
        if self.steps == 260:
            raise ValueError("gone")
        return super().step(action)
"""


@pytest.mark.parametrize("flags", [["--batch-size", "1e25"], ["--critic-hidden", "100000000000000000000"], ["--cost-steps", "9223372036854775808"]])
def test_sizes_that_no_machine_counts_are_one_sentence(flags, tmp_path, capsys):
    steps = ["--warmup-steps", "60", "--total-steps", "80", "--quiet", "--threads", "1", "--compile", "off"]
    assert main(["train", "algd", "--env", TOY, *steps, *flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("saddlepoint: error: there is not enough memory")
    assert error.count("\n") == 1
