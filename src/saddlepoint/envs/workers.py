"""Environments in worker processes: each hosts a share of them and steps it as ``LocalEnvs`` does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from saddlepoint.envs.backends import EnvStep, LocalEnvs
from saddlepoint.faults import of_handler
from saddlepoint.foreign import end_copy, end_processes
from saddlepoint.machine import cpus
from saddlepoint.types import EnvSetup, EnvShape, ForeignFault, UserError

POLL = 1.0
"""seconds between two looks at the wish to stop, while a worker is silent"""
SILENCE = 60.0
"""seconds after which a silent worker is named"""
CHILD_SECONDS = 1.0
"""how long processes that a worker's environments left may go on after it"""
PATIENCE = 10.0
"""seconds that a silent worker is still waited for once somebody wishes to stop"""


class WorkerEnvs:
    """``num_envs`` environments over as many processes as this one may use cores, at most one each.

    Workers are forked where the platform can fork, so that environments registered by the user's script are known to
    them. What an environment raises comes here as ``ForeignFault``; so does the death of a worker, in the next call,
    and one that is silent for ``PATIENCE`` seconds while ``stop`` says that somebody wishes to. Signals are the
    parent's to handle: a worker ends with its pipe.
    """

    def __init__(
        self, setup: EnvSetup, num_envs: int, render_mode: str | None, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._id, self._stop = setup.name, stop
        count = min(num_envs, cpus())
        self._shares = [share.tolist() for share in np.array_split(np.arange(num_envs), count)]
        context: Any = multiprocessing.get_context(
            "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        )
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._waiting = False
        # Python waits for its processes at its end: close their pipes before.
        self._end = util.Finalize(self, _end, args=(self._pipes, self._processes), exitpriority=100)
        try:
            for share in self._shares:
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                args = (theirs, list(self._pipes), setup, share, render_mode)
                process = context.Process(target=_work, args=args, daemon=False)  # daemons may start no processes
                process.start()
                theirs.close()
                self._processes.append(process)
        except BaseException:
            self.close()
            raise

    def shape(self, needs_cost: bool) -> EnvShape:
        return self._call([("shape", needs_cost)] * len(self._pipes))[0]

    def horizon(self) -> int | None:
        return self._call([("horizon",)] * len(self._pipes))[0]

    def notes(self) -> list[str]:
        return self._call([("notes",)] * len(self._pipes))[0]

    def reset(self, seeds: list[int] | None) -> np.ndarray:
        return np.concatenate(
            self._call([("reset", None if seeds is None else [seeds[i] for i in share]) for share in self._shares])
        )

    def step(self, action: np.ndarray) -> EnvStep:
        steps = self._call([("step", action[share[0] : share[-1] + 1]) for share in self._shares])
        return EnvStep(*(np.concatenate(parts) for parts in zip(*steps)))

    def snapshot(self) -> dict[str, Any]:
        states = self._call([("snapshot",)] * len(self._pipes))
        return {str(share[int(i)]): own for share, state in zip(self._shares, states) for i, own in state.items()}

    def restore(self, state: dict[str, Any], seeds: list[int]) -> dict[int, np.ndarray]:
        calls = [
            ("restore", {str(i): state[str(n)] for i, n in enumerate(share)}, [seeds[n] for n in share])
            for share in self._shares
        ]
        return {share[i]: own for share, fresh in zip(self._shares, self._call(calls)) for i, own in fresh.items()}

    def render(self) -> np.ndarray:
        return self._call([("render",)] + [("ready",)] * (len(self._pipes) - 1))[0]

    def close(self) -> None:
        self._end()

    def _call(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """One call for every worker, at the same time; their answers."""
        if self._waiting:
            raise ForeignFault(
                f"the workers of {self._id} were interrupted in the middle of a step: resume from the last checkpoint."
            )
        self._waiting = True
        answers: list[Any] = []
        problems: list[UserError] = []
        for worker, call in enumerate(calls):
            try:
                self._pipes[worker].send(call)
            except OSError as error:
                raise self._death(worker) from error
        for worker in range(len(calls)):
            try:
                self._await(worker)
                kind, answer = self._pipes[worker].recv()
            except (EOFError, OSError) as error:
                raise self._death(worker) from error
            (answers if kind == "answer" else problems).append(answer)
        self._waiting = False
        if problems:
            raise problems[0]
        return answers

    def _await(self, worker: int) -> None:
        """Wait until the worker has answered or is gone. Raises ``ForeignFault`` for one that keeps a stop waiting."""
        asked, wished, named = time.monotonic(), None, False
        while not self._pipes[worker].poll(POLL):
            # The pipe of one that is gone stays open where a process that its environments started has it too.
            if not self._processes[worker].is_alive() and not self._pipes[worker].poll():
                raise EOFError
            now = time.monotonic()
            if self._stop():
                wished = now if wished is None else wished
                if now - wished >= PATIENCE:
                    raise ForeignFault(
                        f"{self._name(worker)} has not answered for {now - asked:.0f} s: it is given up."
                    )
            if now - asked >= SILENCE and not named:
                named = True
                warnings.warn(
                    f"{self._name(worker)} has not answered for {now - asked:.0f} s: it may hang; Ctrl-C stops"
                    " the run.",
                    stacklevel=2,
                )

    def _name(self, worker: int) -> str:
        share = self._shares[worker]
        return f"worker {worker} (environments {share[0]} to {share[-1]} of {self._id})"

    def _death(self, worker: int) -> ForeignFault:
        process = self._processes[worker]
        process.join(timeout=2.0)
        cause = (
            "an environment of it ended it (os._exit), or closed files that are not its own"
            if process.exitcode == 0
            else "see what it printed above, or its memory use"
        )
        return ForeignFault(f"{self._name(worker)} died with exit code {process.exitcode}: {cause}.")



def _end(pipes: list[Connection], processes: list[Any]) -> None:
    for pipe in pipes:
        with suppress(OSError):  # one that died has no pipe to hear it
            pipe.send(("close",))
        pipe.close()
    for process in processes:
        process.join(timeout=2.0)
        if process.is_alive():
            process.kill()
            process.join()


def _work(
    pipe: Connection, parents: list[Connection], setup: EnvSetup, numbers: list[int], render_mode: str | None
) -> None:
    """A worker's life. It ends when told to, or when its pipe does; signals are the parent's to handle."""
    owner = os.getpid()
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Programs that environments start would inherit that this is ignored, and could not be ended by it.
    signal.signal(signal.SIGTERM, lambda number, frame: end_copy(owner, number))
    for parent in parents:
        parent.close()  # inherited ends would keep this pipe open when the parent is gone
    envs: LocalEnvs | None = None
    fault: UserError | None = None
    while True:
        asked, answer = False, None
        problem: UserError | None = None
        try:
            name, *arguments = pipe.recv()
            asked = True
            if name == "close":
                break
            if fault is not None:
                raise fault
            envs = envs or LocalEnvs(setup, numbers, render_mode)
            answer = None if name == "ready" else getattr(envs, name)(*arguments)
        except UserError as error:
            problem = type(error)(*error.args)
        except BaseException as error:
            if sentence := of_handler(error):  # of an environment; between two calls the next one hears of it
                problem = fault = ForeignFault(sentence)
            elif isinstance(error, (EOFError, OSError)) and not asked:
                break
            else:
                raise
        if os.getpid() != owner:  # a copy that an environment made (os.fork) would answer a second time
            os._exit(2)
        try:
            if asked:
                pipe.send(("answer", answer) if problem is None else ("problem", problem))
        except BaseException as error:
            if sentence := of_handler(error):  # it came when all was written
                fault = ForeignFault(sentence)
            elif isinstance(error, OSError):  # an environment closed the pipe
                break
            else:
                raise
    if envs is not None:
        envs.close()
    end_processes(CHILD_SECONDS)
