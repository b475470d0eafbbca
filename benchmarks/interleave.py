"""Variants that take turns, each in a process of its own, so that a noisy machine hits them alike.

A script calls ``serve`` when it is started with ``--serve``, and ``interleaved`` otherwise. The released programs' interpreter need only have PyTorch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = dict[str, Callable[[], Any]]
"""what is timed, by the task's name"""


def serve(work: Work, warm_up: int) -> None:
    """Answer each line ``task count`` on stdin with the median milliseconds of that many calls."""
    for task in work.values():
        for _ in range(warm_up):
            task()
    print("ready", flush=True)
    for line in sys.stdin:
        task, count = line.split()
        times = []
        for _ in range(int(count)):
            start = time.perf_counter()
            work[task]()
            times.append(time.perf_counter() - start)
        print(1e3 * statistics.median(times), flush=True)


class Worker:
    """A process that serves one variant."""

    def __init__(self, script: str, variant: dict[str, Any], threads: int, python: str = sys.executable) -> None:
        command = [python, script, "--serve", json.dumps(variant), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        while (line := self.process.stdout.readline()) and line.strip() != "ready":
            pass  # what the released program prints of itself
        if not line:
            sys.exit(f"the process of {variant} ended before it was ready")

    def time(self, task: str, count: int) -> float:
        """Median milliseconds of ``count`` calls."""
        assert self.process.stdin
        assert self.process.stdout
        print(task, count, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def interleaved(workers: dict[str, Worker], rounds: int, tasks: dict[str, int]) -> dict[str, dict[str, float]]:
    """Median over rounds of each variant and task, milliseconds; every round visits all variants in turn. The workers are ended."""
    times: dict[str, dict[str, list[float]]] = {name: {task: [] for task in tasks} for name in workers}
    for _ in range(rounds):
        for task, count in tasks.items():
            for name, worker in workers.items():
                times[name][task].append(worker.time(task, count))
    for worker in workers.values():
        worker.process.kill()
    return {name: {task: statistics.median(values) for task, values in found.items()} for name, found in times.items()}


def provenance() -> dict[str, Any]:
    """Commit, machine and load, for the files in results/."""
    from learning import commit, machine

    load = Path("/proc/loadavg").read_text().split()[0]
    return {"commit": commit(), "machine": machine(), "load_average": float(load)}
