"""Steps a second and time of a reset of the navigation tasks, single and vectorised, beside Safety-Gymnasium's own.

    python benchmarks/navigation.py [--rounds 9] [--oracle PYTHON]

``--oracle`` names an interpreter that has safety-gymnasium 1.0.0 (Python 3.10: ``pip install safety-gymnasium==1.0.0``).
It is measured in a process of its own, in turns with ours, so that both see the same machine; all figures are medians
over the rounds. The same random actions everywhere. ``disturbed`` is a single environment whose free objects never come
to rest, as while a box is being pushed: at rest their contacts are left out. Writes benchmarks/results/navigation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

TASKS = ("PointGoal1", "PointButton1", "CarButton1", "PointPush1")
STEPS, SETTLING, ENVS = 200, 20, 8
RESULTS = Path(__file__).resolve().parent / "results" / "navigation.json"


def actions(steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, (steps, ENVS, 2))


def serve_oracle() -> None:
    """Runs under the other interpreter: reads "task steps" and "task reset", answers with seconds."""
    import safety_gymnasium

    environments = {task: safety_gymnasium.make(f"Safety{task}-v0") for task in TASKS}
    print("ready", flush=True)
    for line in sys.stdin:
        task, what = line.split()
        env = environments[task]
        start = time.perf_counter()
        env.reset(seed=0)
        if what == "steps":
            start = _timed_steps(env, actions(SETTLING + STEPS)[:, 0])
        print(time.perf_counter() - start, flush=True)


def _timed_steps(env, script: np.ndarray) -> float:
    """Steps through ``script``; when the part that counts began."""
    start = 0.0
    for i, action in enumerate(script):
        if i == SETTLING:
            start = time.perf_counter()
        env.step(action)
    return start


class Oracle:
    """Safety-Gymnasium in its own process."""

    def __init__(self, python: str) -> None:
        command = [python, str(Path(__file__).resolve()), "--serve-oracle"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer("ready")

    def seconds(self, task: str, what: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{task} {what}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self, expected: str | None = None) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # what the packages print on the way is not an answer
            text = line.strip()
            if text == expected or (expected is None and text.replace(".", "", 1).replace("e-", "", 1).isdigit()):
                return text
        sys.exit("the oracle's interpreter cannot run safety-gymnasium: try `PYTHON -c 'import safety_gymnasium'`.")


def measure(task: str, rounds: int, oracle: Oracle | None) -> dict[str, float]:
    """Medians over ``rounds`` of everything, in turns."""
    import gymnasium as gym

    from saddlepoint.envs import make_env

    id = f"saddlepoint/{task}-v0"
    single = make_env(id)
    many = gym.make_vec(id, ENVS, vectorization_mode="vector_entry_point")
    script = actions(SETTLING + STEPS)
    physics = single.unwrapped.worlds.physics  # type: ignore[attr-defined]
    usual = physics.blueprint
    seen: dict[str, list[float]] = {
        name: [] for name in ("single", "disturbed", "vector", "reset", "oracle", "oracle_reset")
    }
    for turn in range(rounds):
        single.reset(seed=0)
        start = _timed_steps(single, script[:, 0])
        seen["single"].append(STEPS / (time.perf_counter() - start))
        if oracle is not None:
            seen["oracle"].append(STEPS / oracle.seconds(task, "steps"))
        if usual.rest:
            physics.blueprint = replace(usual, rest=False)
            single.reset(seed=0)
            start = _timed_steps(single, script[:, 0])
            seen["disturbed"].append(STEPS / (time.perf_counter() - start))
            physics.blueprint = usual
        many.reset(seed=0)
        start = _timed_steps(many, script)
        seen["vector"].append(STEPS * ENVS / (time.perf_counter() - start))
        for seed in range(15):
            start = time.perf_counter()
            single.reset(seed=1000 * turn + seed)
            seen["reset"].append(1e3 * (time.perf_counter() - start))
        if oracle is not None and turn < 3:
            seen["oracle_reset"].append(1e3 * oracle.seconds(task, "reset"))
    many.close()
    middle = {name: statistics.median(values) for name, values in seen.items() if values}
    result = {
        "steps_per_s": middle["single"], "vector_steps_per_s": middle["vector"], "reset_ms": middle["reset"],
        "reset_ms_mean": statistics.mean(seen["reset"]),
    }  # fmt: skip
    if usual.rest:
        result["disturbed_steps_per_s"] = middle["disturbed"]
    if oracle is not None:
        ratios = [ours / theirs for ours, theirs in zip(seen["single"], seen["oracle"])]
        result |= {
            "oracle_steps_per_s": middle["oracle"], "oracle_reset_ms": middle["oracle_reset"],
            "speedup": statistics.median(ratios), "vector_speedup": middle["vector"] / middle["oracle"],
            "reset_speedup": middle["oracle_reset"] / middle["reset"],
        }  # fmt: skip
    return {name: round(value, 3) for name, value in result.items()}


def provenance() -> dict[str, object]:
    """What was run, by which source, and where."""
    # Here, because the oracle's interpreter, which reads this file too, need not have what it imports.
    from learning import commit

    return {"command": "python benchmarks/navigation.py " + " ".join(sys.argv[1:]), "commit": commit(), "machine": machine()}


def machine() -> dict[str, object]:
    import mujoco

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "python": platform.python_version(),
        "mujoco": mujoco.__version__, "numpy": np.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--oracle", metavar="PYTHON", help="an interpreter with safety-gymnasium 1.0.0")
    parser.add_argument("--serve-oracle", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_oracle:
        return serve_oracle()
    oracle = Oracle(arguments.oracle) if arguments.oracle else None
    results: dict[str, object] = {**provenance(), "envs": ENVS, "rounds": arguments.rounds, "tasks": {}}
    for task in TASKS:
        results["tasks"][task] = figures = measure(task, arguments.rounds, oracle)  # type: ignore[index]
        print(task, figures, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    draft = RESULTS.with_suffix(".tmp")
    draft.write_text(json.dumps(results, indent=1) + "\n")
    draft.replace(RESULTS)
    return None


if __name__ == "__main__":
    main()
