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
from typing import Any, NamedTuple

Work = dict[str, Callable[[], Any]]
"""what is timed, by the task's name"""
Milliseconds = dict[str, dict[str, float]]
"""by variant and task"""


class Times(NamedTuple):
    wall: Milliseconds
    cpu: Milliseconds
    """of all the process's threads: what to compare where other work shares the cores"""


def serve(work: Work, warm_up: int) -> None:
    """Answer each line ``task count`` on stdin with the median milliseconds of that many calls, by the clock and of the processor."""
    for task in work.values():
        for _ in range(warm_up):
            task()
    print("ready", flush=True)
    for line in sys.stdin:
        task, count = line.split()
        times = []
        for _ in range(int(count)):
            start = time.perf_counter(), time.process_time()
            work[task]()
            times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        print(*(1e3 * statistics.median(column) for column in zip(*times)), flush=True)


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

    def time(self, task: str, count: int) -> tuple[float, float]:
        """Median milliseconds of ``count`` calls, by the clock and of the processor."""
        assert self.process.stdin
        assert self.process.stdout
        print(task, count, file=self.process.stdin, flush=True)
        wall, cpu = self.process.stdout.readline().split()
        return float(wall), float(cpu)


def interleaved(workers: dict[str, Worker], rounds: int, tasks: dict[str, int]) -> Times:
    """Median over rounds of each variant and task; every round visits all variants in turn. The workers are ended."""
    times: dict[str, dict[str, list[tuple[float, float]]]] = {name: {task: [] for task in tasks} for name in workers}
    for _ in range(rounds):
        for task, count in tasks.items():
            for name, worker in workers.items():
                times[name][task].append(worker.time(task, count))
    for worker in workers.values():
        worker.process.kill()

    def medians(column: int) -> Milliseconds:
        return {
            name: {task: statistics.median(pair[column] for pair in pairs) for task, pairs in found.items()}
            for name, found in times.items()
        }

    return Times(medians(0), medians(1))


def provenance() -> dict[str, Any]:
    """Commit, machine with what it multiplies in hardware, and load, for the files in results/."""
    import torch

    from learning import commit, machine

    units = sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True and name.startswith(("avx", "amx")))
    load = Path("/proc/loadavg").read_text().split()[0]
    return {"commit": commit(), "machine": machine() | {"units": units}, "load_average": float(load)}
