"""Environments in worker processes: each hosts a share of them and steps it as ``LocalEnvs`` does."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from saddlepoint.envs.backends import EnvStep, LocalEnvs
from saddlepoint.types import EnvShape, ForeignFault, UserError


class WorkerEnvs:
    """``num_envs`` environments over as many processes as there are cores, at most one each.

    Workers are forked where the platform can fork, so that environments registered by the user's script are known to
    them. What an environment raises comes here as ``ForeignFault``; so does the death of a worker, in the next call.
    """

    def __init__(self, id: str, num_envs: int, render_mode: str | None, env_kwargs: dict[str, Any]) -> None:
        self._id = id
        count = min(num_envs, os.cpu_count() or 1)
        self._shares = [share.tolist() for share in np.array_split(np.arange(num_envs), count)]
        context: Any = multiprocessing.get_context(
            "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        )
        self._pipes: list[Connection] = []
        self._processes = []
        self._waiting = False
        for share in self._shares:
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            mode = render_mode if share[0] == 0 else None
            args = (theirs, list(self._pipes), id, len(share), mode, env_kwargs)
            process = context.Process(target=_work, args=args, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def shape(self, needs_cost: bool) -> EnvShape:
        return self._call([("shape", needs_cost)] * len(self._pipes))[0]

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
        for pipe in self._pipes:
            with suppress(OSError):  # one that died has no pipe to hear it
                pipe.send(("close",))
            pipe.close()
        for process in self._processes:
            process.join(timeout=2.0)
            if process.is_alive():
                process.kill()
                process.join()

    def _call(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """One call for every worker, at the same time; their answers."""
        if self._waiting:
            raise UserError(
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
                kind, answer = self._pipes[worker].recv()
            except (EOFError, OSError) as error:
                raise self._death(worker) from error
            (answers if kind == "answer" else problems).append(answer)
        self._waiting = False
        if problems:
            raise problems[0]
        return answers

    def _death(self, worker: int) -> ForeignFault:
        process, share = self._processes[worker], self._shares[worker]
        process.join(timeout=2.0)
        return ForeignFault(
            f"worker {worker} (environments {share[0]} to {share[-1]} of {self._id}) died "
            f"with exit code {process.exitcode}: "
            "see what it printed above, or its memory use."
        )


def _work(
    pipe: Connection, parents: list[Connection], id: str, num_envs: int, render_mode: str | None, kwargs: dict[str, Any]
) -> None:
    """A worker's life. It ends when told to, or when its pipe does; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for parent in parents:
        parent.close()  # inherited ends would keep this pipe open when the parent is gone
    envs: LocalEnvs | None = None
    while True:
        try:
            name, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        if name == "close":
            return
        try:
            envs = envs or LocalEnvs(id, num_envs, render_mode, kwargs)
            answer = None if name == "ready" else getattr(envs, name)(*arguments)
        except UserError as error:
            pipe.send(("problem", type(error)(*error.args)))
        else:
            pipe.send(("answer", answer))
