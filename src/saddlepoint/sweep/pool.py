"""Jobs on Ray: plain remote tasks, one for each attempt.

Not Ray Tune: a trial's state is its run folder, which resumes to the bit by itself. Tune would keep a second truth
beside it (its experiment state and its own checkpoints, both pickled, which this library never reads), and there is no
search here for it to steer. What Ray gives is the placing of jobs on the CPUs and GPUs of a machine or of a cluster,
and news of those that die.

Ray's usage report is off, it listens on this machine only, and its own files lie in a temporary folder that is removed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import tempfile
from typing import Any, Protocol

from saddlepoint.sweep.worker import INTERRUPTED, Ending, Job, run_job
from saddlepoint.types import UserError

STORE_BYTES = 80 * 2**20
"""Ray's store of objects: near its least, because a job's arguments and ending are all that goes through it"""

SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
MOST_PATH = 24
"""bytes of a temporary folder's path: the name of a socket may have 107, of which Ray's own part takes some 65"""
CONNECT_SECONDS = 5.0


class Pool(Protocol):
    """Where jobs run."""

    def submit(self, job: Job) -> Any:
        """Start a job as soon as there is room, and return a handle."""
        ...

    def wait(self, seconds: float) -> list[tuple[Any, Ending]]:
        """The jobs that ended within the next ``seconds``."""
        ...

    def cancel(self, handle: Any) -> None:
        """Ask one that runs to write its checkpoint and end; it is still to be waited for."""
        ...

    def stop(self) -> None:
        """``cancel`` all that run."""
        ...


def require_ray() -> None:
    """Raises ``UserError`` when Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("sweeping needs Ray, which is an extra: pip install saddlepoint[sweep].")


class RayPool:
    """A Ray of our own for ``cpus`` CPUs, or the cluster at ``address``. Close it, or leave no processes by ending."""

    def __init__(self, address: str | None, cpus: int, gpus_each: float) -> None:
        require_ray()
        if address:
            require_answer(address)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # a trial without a GPU says --device cpu itself
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let any other process starve the trials
        import ray

        self._ray, self._gpus = ray, gpus_each
        self._sigterm = signal.getsignal(signal.SIGTERM)
        self._running: list[Any] = []
        self._home = None if address else _short_folder()
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=STORE_BYTES,
                    _temp_dir=self._home, **quiet,
                )  # fmt: skip
        except Exception as error:  # Ray raises bare ones, such as where its start takes longer than it waits
            self.close()
            what = f"the Ray cluster at {address} cannot be reached" if address else "Ray cannot be started"
            advice = "mind --address and its version" if address else "if the machine was too busy, run the same command again"
            raise UserError(f"{what} ({_line(error)}): {advice}.") from error

    @property
    def cpus(self) -> int:
        """CPUs of the machine or of the cluster."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def submit(self, job: Job) -> Any:
        # No retries of Ray's: it would start the same command anew, where a begun run has to be resumed.
        task = self._ray.remote(num_cpus=job.threads, num_gpus=self._gpus, max_retries=0)(run_job)
        handle = task.remote(job)
        self._running.append(handle)
        return handle

    def wait(self, seconds: float) -> list[tuple[Any, Ending]]:
        if not self._running:
            return []
        ended, self._running = self._ray.wait(self._running, num_returns=len(self._running), timeout=seconds)
        return [(handle, self._ending(handle)) for handle in ended]

    def cancel(self, handle: Any) -> None:
        self._ray.cancel(handle)

    def stop(self) -> None:
        for handle in self._running:
            self.cancel(handle)

    def _ending(self, handle: Any) -> Ending:
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.TaskCancelledError:
            return Ending(INTERRUPTED, 0.0, "interrupted")
        except (
            self._ray.exceptions.RayTaskError
        ) as error:  # the attempt could not be started: a full disk, no more processes
            return Ending(1, 0.0, f"its worker failed ({type(error.cause).__name__}: {_line(error.cause)})")
        except self._ray.exceptions.RayError as error:  # the worker, its machine or its memory is gone
            return Ending(1, 0.0, f"its worker was lost ({_line(error)})")

    def close(self) -> None:
        """End Ray's processes and remove its files."""
        self._ray.shutdown()
        signal.signal(signal.SIGTERM, self._sigterm)  # Ray has put its own in the place
        if self._home:
            shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_answer(address: str) -> None:
    """Raises ``UserError`` when nothing listens at ``host:port`` or ``ray://host:port``: Ray itself tries for
    minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        if address != "auto":
            raise UserError(
                f"--address {address} is not that of a Ray cluster: give host:port, ray://host:port or auto."
            )
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}): start one with `ray start --head`, or mind --address."
        ) from error


def _short_folder() -> str:
    """A new temporary folder for Ray's files, among them sockets, whose paths are bounded. Raises ``UserError``
    where there is no place for one."""
    usual = tempfile.gettempdir()
    for place in (usual, *SHORT_PLACES):
        if len(os.fsencode(place)) <= MOST_PATH and os.access(place, os.W_OK | os.X_OK):
            with contextlib.suppress(OSError):
                return tempfile.mkdtemp(prefix="sp-ray-", dir=place)
    raise UserError(
        f"Ray's sockets need a temporary folder of at most {MOST_PATH} bytes that can be written, and {usual} is not:"
        " set TMPDIR to a short one."
    )


def _line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
