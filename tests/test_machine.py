"""What the machine gives: memory within nested control groups of both versions, cores under affinity, and faults in
one sentence."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saddlepoint.faults import explain, is_out_of_memory
from saddlepoint.machine import cpus, free_memory
from saddlepoint.policies import load_policy
from saddlepoint.train.run import read, sealed
from saddlepoint.types import UserError
from tests.faults.readers import trained

GB = 10**9


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A /proc and /sys of 20 GB of available memory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 1 kB\nMemAvailable: 20000000 kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


NESTED_2 = {
    "slurm/memory.max": "max\n", "slurm/memory.current": "700000000\n",
    "slurm/job/memory.max": "600000000\n", "slurm/job/memory.current": "100000000\n",
    "slurm/job/step/memory.max": "max\n", "slurm/job/step/memory.current": "100000000\n",
}  # fmt: skip
V1 = {"memory/slurm/job/memory.limit_in_bytes": "600000000\n", "memory/slurm/job/memory.usage_in_bytes": "100000000\n"}
NO_LIMIT = {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "5\n"}
CONTAINER_1 = {"memory/memory.limit_in_bytes": "600000000\n", "memory/memory.usage_in_bytes": "100000000\n"}


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("0::/slurm/job/step\n", NESTED_2, 0.5 * GB),
        ("0::/other\n", NESTED_2, 20.48 * GB),
        ("0::/slurm/job/step\n", {f"unified/{name}": text for name, text in NESTED_2.items()}, 0.5 * GB),
        ("0::/\n", {"memory.max": "600000000", "memory.current": "100000000"}, 0.5 * GB),
        ("0::/../..\n", {"memory.max": "600000000", "memory.current": "100000000"}, 0.5 * GB),
        ("9:cpuset:/a\n4:memory:/slurm/job/step\n0::/\n", V1 | NO_LIMIT, 0.5 * GB),
        ("4:hugetlb,memory:/docker/0123\n", CONTAINER_1, 0.5 * GB),
        ("4:memory:/elsewhere\n", V1 | NO_LIMIT, 20.48 * GB),
        ("0::/a\n", {"a/memory.max": "600000000", "a/memory.current": "590000000", "a/memory.stat": "anon 5\ninactive_file 490000000\n"}, 0.5 * GB),
        ("0::/a\n", {"a/memory.max": "600000000", "a/memory.current": "700000000"}, 0),
        ("nonsense\n", {"memory.max": "nonsense", "memory.current": "1"}, 20.48 * GB),
    ],
)  # fmt: skip
def test_memory_is_what_the_tightest_group_above_the_process_leaves(tmp_path, cgroup, files, left):
    assert free_memory(system(tmp_path, cgroup, files)) == left


def test_a_system_that_says_nothing(tmp_path):
    assert free_memory(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_of_the_affinity():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert cpus() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert cpus() == len(mine)


def test_allocations_that_fail_are_one_sentence_with_the_checkpoint():
    for allocate in (
        lambda: np.empty(2**60),
        lambda: torch.empty(2**50),
        lambda: torch.empty(2**62, 2),
        lambda: bytearray(2**60),
    ):
        with pytest.raises((MemoryError, RuntimeError, ValueError)) as caught:
            allocate()
        sentence = explain(caught.value, "the last good checkpoint is of step 40")
        assert sentence is not None
        assert sentence.startswith("there is not enough memory")
        assert sentence.endswith("; the last good checkpoint is of step 40.")
        assert "\n" not in sentence
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("a"), KeyError("a")):
        assert not is_out_of_memory(other)
        assert explain(other) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "the file a/b cannot be read or written (No space left on device): make room on it."),
        (OSError(errno.EMFILE, "Too many open files"), "the system refused an operation (Too many open files): raise the limit on open files"),
        (OSError(errno.EROFS, "Read-only file system", b"a"), "the file a cannot be read or written (Read-only file system): choose a folder"),
        (OSError(errno.ENFILE, "Too many open files in system"), "the system refused an operation (Too many open files in system): close other"),
    ],
)  # fmt: skip
def test_files_and_limits_have_advice_of_their_own(error, words):
    assert explain(error).startswith(words)


@pytest.mark.parametrize(
    "error", [OSError("AF_UNIX path too long"), TimeoutError("no answer"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")]
)
def test_what_no_file_caused_is_not_blamed_on_the_disk(error):
    def robot() -> None:
        raise error

    with pytest.raises(OSError, match=r".") as caught:
        robot()
    line = robot.__code__.co_firstlineno + 1
    wanted = f"an operation failed with {type(error).__name__}: {error} (test_machine.py, line {line}, in robot): look at what raised it; x."
    assert explain(caught.value, "x") == wanted


def test_policies_act_and_environments_are_listed_without_fcntl_sigpipe_and_poll(tmp_path):
    run = trained(tmp_path / "run")
    code = (
        "import sys, signal, select, os\n"
        "sys.modules['fcntl'] = None\n"
        "del signal.SIGPIPE, select.poll, os.sched_getaffinity, signal.SIGHUP\n"
        "import saddlepoint, saddlepoint.envs, saddlepoint.cli\n"
        "policy = saddlepoint.load_policy(sys.argv[1])\n"
        "print(policy.act([0.0] * policy.shape.observation))\n"
        "code = saddlepoint.cli.main(['train', 'sac', '--env', 'saddlepoint/Toy-v0', '--out', sys.argv[1] + '2'])\n"
        "sys.exit(10 * code + saddlepoint.cli.main(['envs']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert done.returncode == 20, done.stderr
    assert "saddlepoint/Toy-v0" in done.stdout
    assert done.stdout.startswith("[")
    assert "cannot lock files" in done.stderr


def test_a_compiler_cache_that_cannot_be_written_is_one_warning(tmp_path):
    run = trained(tmp_path / "run")
    (tmp_path / "file").touch()
    for code in (
        "import sys, saddlepoint.cli; sys.exit(saddlepoint.cli.main(['train', '--resume', sys.argv[1], '--total-steps', '90']))",
        "import sys, saddlepoint.cli; sys.exit(saddlepoint.cli.main(['evaluate', sys.argv[1], '--episodes', '10']))",
        "import saddlepoint.safediffusion, torch; torch.optim.AdamW([torch.zeros(1)])",
    ):
        environ = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "cache")}
        done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, env=environ)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("file/cache, which cannot be used (Not a directory): the temporary folder is used") == 1
        assert "Traceback" not in done.stderr


def test_a_run_of_networks_that_no_memory_holds_is_one_sentence(tmp_path):
    run = trained(tmp_path / "run")
    content = read(run)
    content["learner"]["critic_hidden"] = [10**30]
    (run / "config.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(UserError, match="there is not enough memory"):
        load_policy(run)
