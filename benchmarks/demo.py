"""Does `make demo` end within its budget, whatever its seed? benchmarks/results/demo-seeds.json.

    python benchmarks/demo.py 0 1 2 3 4 5 6 7 8 9     # trains what is missing, one after another, one thread
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from learning import commit, machine

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "demo-seeds.json"
LIMIT = 25.0
POLICIES = {"noise-free": "eval", "sampled": "eval/stochastic"}


def trial(seed: int) -> dict[str, Any]:
    """The demo with ``seed``: the evaluation at its end, and the seconds of the whole command."""
    environ = os.environ | {"DEMO_SEED": str(seed), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    said = subprocess.run([sys.executable, "examples/demo.py"], cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout
    run = ROOT / next(line for line in said.splitlines() if line.startswith("curves: ")).removeprefix("curves: ")
    wall = time.perf_counter() - began
    metrics = json.loads(next(run.parent.glob("evaluation-*.json")).read_text())
    found = {
        name: {key: metrics[f"{prefix}/{key}"] for key in ("return_mean", "cost_mean", "cost_max", "violation_rate")}
        for name, prefix in POLICIES.items()
    }
    return {"seed": seed, "wall_s": wall, "commit": commit(), "machine": machine()} | found


def main() -> None:
    seeds = [int(text) for text in sys.argv[1:]]
    known = json.loads(RESULT.read_text())["trials"] if RESULT.exists() else []
    for seed in seeds:
        if seed in {one["seed"] for one in known}:
            continue
        known = sorted([*known, trial(seed)], key=lambda one: one["seed"])
        within = sum(all(one[name]["cost_mean"] <= LIMIT for name in POLICIES) for one in known)
        content = {"command": "python benchmarks/demo.py SEED ...", "limit": LIMIT, "trials": known, "within_with_both_policies": within}
        RESULT.write_text(json.dumps(content, indent=1) + "\n")
        last = next(one for one in known if one["seed"] == seed)
        both = ", ".join(f"{name} {last[name]['return_mean']:,.0f} at {last[name]['cost_mean']:.1f}" for name in POLICIES)
        print(f"seed {seed}: {both}; {last['wall_s']:.0f} s; {within} of {len(known)} within", flush=True)


if __name__ == "__main__":
    main()
