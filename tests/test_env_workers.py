"""Workers under signals, silence and the parent's end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from saddlepoint.envs import EnvBatch
from saddlepoint.envs import workers as module
from saddlepoint.train.signals import Interrupted, stop_on_signal
from saddlepoint.types import ForeignFault
from tests.test_train_loop import assert_same_runs, go
from tests.toys import ENV, Drift, Tiny

STILL = np.zeros((2, 1), np.float32)


class Hanging(Drift):
    """Answers no more once it is told so, by a file."""

    def __init__(self, told: str = "") -> None:
        super().__init__()
        self.told = told

    def step(self, action: np.ndarray) -> Any:
        if self.told and Path(self.told).exists():
            time.sleep(1000)
        return super().step(action)


gym.register("tests/Hanging-v0", Hanging, max_episode_steps=12)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_workers_leave_signals_to_their_parent(name: str) -> None:
    batch = EnvBatch(ENV, 2, seed=0, processes=True)
    batch.reset()
    workers = batch._envs._processes  # type: ignore[attr-defined]
    for worker in workers:
        os.kill(worker.pid, getattr(signal, name))
    for _ in range(3):
        batch.step(STILL)
    batch.close()
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def test_a_silent_worker_is_named_and_given_up_when_somebody_wishes_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("POLL", 0.02), ("SILENCE", 0.2), ("PATIENCE", 0.2)):
        monkeypatch.setattr(module, name, seconds)
    told, wish = tmp_path / "told", threading.Event()
    setup = {"told": str(told)}
    batch = EnvBatch("tests/Hanging-v0", 2, seed=0, processes=True, env_kwargs=setup, stop=wish.is_set)
    batch.reset()
    batch.step(STILL)
    told.touch()
    threading.Timer(1.0, wish.set).start()
    with pytest.warns(UserWarning, match=r"worker 0 \(environments 0 to \d of tests/Hanging-v0\) has not answered for"):
        with pytest.raises(ForeignFault, match=r"worker 0 .* has not answered for .* s: it is given up"):
            batch.step(STILL)
    assert wish.is_set()
    assert batch.snapshot()["envs"] is None
    workers = batch._envs._processes  # type: ignore[attr-defined]
    batch.close()
    assert not any(worker.is_alive() for worker in workers)


def test_the_end_of_a_program_that_closes_nothing_ends_its_workers() -> None:
    program = (
        "from tests.toys import ENV; from saddlepoint.envs import EnvBatch;"
        "envs = EnvBatch(ENV, 2, seed=0, processes=True); envs.reset(); print(*[p.pid for p in envs._envs._processes])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    for pid in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class Stopped(Tiny):
    """Has a batch system send SIGTERM to all its processes in the middle of an update."""

    def update(self, replay: Any, updates: int) -> Any:
        if self.updates == 100:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return super().update(replay, updates)


def test_sigterm_to_the_whole_group_ends_in_a_checkpoint_and_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", env_processes=True)
    with pytest.raises(Interrupted, match="go on with --resume"):
        go(tmp_path / "part", learner=Stopped, env_processes=True)
    assert_same_runs(whole, go(tmp_path / "part", resume=True, env_processes=True))


class Astray(Drift):
    """Copies its process, has a handler of signals that raises, or closes what is not its own, at the third step."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.way = way

    def step(self, action: np.ndarray) -> Any:
        if self.way == "alarm":
            signal.signal(signal.SIGALRM, timed_out)
        if self.steps == 223 and self.way.startswith("fork") and os.fork() == 0 and self.way == "fork and exit":
            sys.exit(3)
        if self.steps == 223 and self.way == "close":
            os.closerange(3, 200)
        return super().step(action)


def timed_out(number: int, frame: Any) -> None:
    raise TimeoutError("no answer")


gym.register("tests/Astray-v0", Astray, max_episode_steps=12)


@pytest.mark.parametrize("way", ["fork", "fork and exit"])
def test_a_copy_of_a_worker_answers_nothing(way: str) -> None:
    def play(envs: Any) -> list[np.ndarray]:
        envs.reset()
        played = [envs.step(np.full((1, 1), 0.1, np.float32)).observation for _ in range(8)]
        envs.close()
        return played

    copied = EnvBatch("tests/Astray-v0", 1, seed=0, processes=True, env_kwargs={"way": way})
    np.testing.assert_array_equal(play(copied), play(EnvBatch("tests/Astray-v0", 1, seed=0)))


def test_a_handler_that_raises_between_two_calls_is_named_in_the_next() -> None:
    envs = EnvBatch("tests/Astray-v0", 1, seed=0, processes=True, env_kwargs={"way": "alarm"})
    envs.reset()
    envs.step(STILL[:1])
    os.kill(envs._envs._processes[0].pid, signal.SIGALRM)  # type: ignore[attr-defined]
    time.sleep(0.2)
    with pytest.raises(ForeignFault, match=r"a handler of signals raised TimeoutError: no answer \(test_env_workers.py, line \d+, in timed_out\)"):
        envs.step(STILL[:1])
    envs.close()


def test_a_worker_whose_files_are_closed_ends_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    envs = EnvBatch("tests/Astray-v0", 1, seed=0, processes=True, env_kwargs={"way": "close"})
    envs.reset()
    with pytest.raises(ForeignFault, match=r"worker 0 .* died with exit code 0: an environment of it ended it \(os._exit\), or closed files"):
        [envs.step(STILL[:1]) for _ in range(8)]
    envs.close()
    assert "Traceback" not in capfd.readouterr().err


def ended_by_sigterm(seconds: float = 5.0) -> list[int | None]:
    """How a copy of this process and a program end that are told to, as simulators end their helpers."""
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()  # Python forgets a signal that comes while a fork is being made
    copied = fork.Process(target=lambda: (begun.set(), time.sleep(60)))
    copied.start()
    program = subprocess.Popen(["sleep", "60"])
    assert begun.wait(60)
    copied.terminate()
    program.terminate()
    copied.join(seconds)
    deadline = time.monotonic() + seconds
    while program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    found = [copied.exitcode, program.returncode]
    copied.kill()
    program.kill()
    return found


class Helped(Drift):
    """Starts and ends helpers at each reset, and leaves one when it is closed, or dies and leaves one at the third step."""

    def __init__(self, dies: bool = False) -> None:
        super().__init__()
        self.dies = dies

    def reset(self, **arguments: Any) -> Any:
        assert ended_by_sigterm() == [-signal.SIGTERM] * 2
        return super().reset(**arguments)

    def step(self, action: np.ndarray) -> Any:
        if self.steps == 223 and self.dies and os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.steps == 223 and self.dies:
            time.sleep(5)
            os._exit(0)
        return super().step(action)

    def close(self) -> None:
        multiprocessing.Process(target=time.sleep, args=(60,)).start()


gym.register("tests/Helped-v0", Helped, max_episode_steps=1000)


def test_environments_may_have_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHILD_SECONDS", 0.1)
    with stop_on_signal() as stop:
        assert ended_by_sigterm() == [-signal.SIGTERM] * 2
        envs = EnvBatch("tests/Helped-v0", 1, seed=0, processes=True)
        envs.reset()
        envs.step(STILL[:1])
        (worker,) = envs._envs._processes  # type: ignore[attr-defined]
        envs.close()
        assert worker.exitcode == 0
        assert not stop()


def play(envs: EnvBatch) -> None:
    for _ in range(8):
        envs.step(STILL[:1])


def test_a_worker_that_died_is_noticed_though_its_pipe_is_open_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.05)
    envs = EnvBatch("tests/Helped-v0", 1, seed=0, processes=True, env_kwargs={"dies": True})
    envs.reset()
    begun = time.monotonic()
    with pytest.raises(ForeignFault, match=r"worker 0 .* died with exit code -9"):
        play(envs)
    assert time.monotonic() - begun < 4
    envs.close()
