"""MBDPO offline, then online: a data set of two tasks from replays made here, a world model of both from it, and online training from there.

    python benchmarks/offline.py run         # resumes what was interrupted, skips what is done; needs the runs of `benchmarks/learning.py` it names
    python benchmarks/offline.py collect     # results/offline.json and .png, beside training from scratch (results/cartpole-swingup.json)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from learning import RESULTS, RUNS, commit, machine  # noqa: E402
from saddlepoint import figures  # noqa: E402
from saddlepoint.train.log import read_metrics  # noqa: E402

TASK = "dmc/cartpole-swingup"
SOURCES = (RUNS / "cartpole-swingup" / "denoise-0", RUNS / "pendulum-swingup" / "wide-0")
HOME = RUNS / "offline"
STAGES: dict[str, str] = {
    "data": f"collect {SOURCES[0]} {SOURCES[1]} --out {HOME / 'data'}",
    "pretrained": f"pretrain mbdpo --preset small --levels betas --beta-last 0.025 --td-levels 2 --data {HOME / 'data'}"
    " --total-updates 15000 --eval-every 7500 --checkpoint-every 5000 --threads 1 --quiet",
    "online": f"train mbdpo --start-from {HOME / 'pretrained'} --start-task {TASK} --env {TASK} --total-steps 5000 --warmup-steps 500 --eval-every 2500"
    " --checkpoint-every 2500 --replay-size 5000 --threads 1 --quiet",
}
"""each command of the chain, in order, by the folder that it writes"""
RESUME = {"pretrained": "pretrain mbdpo", "online": "train mbdpo"}


def run() -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    for name, command in STAGES.items():
        folder, done = HOME / name, HOME / f"{name}.json"
        if done.exists():
            continue
        fresh = not folder.exists()
        words = command.split() if name == "data" else [*command.split(), "--out", str(folder)]
        stamp = {"command": "saddlepoint " + " ".join(words), "commit": commit(), "machine": machine(), "resumed": not fresh}
        if not fresh and name in RESUME:
            words = [*RESUME[name].split(), "--resume", str(folder), "--quiet"]
        print("saddlepoint", *words, flush=True)
        if code := subprocess.run([sys.executable, "-m", "saddlepoint.cli", *words], check=False).returncode:
            sys.exit(code)
        done.write_text(json.dumps(stamp, indent=1))


def collect() -> None:
    if missing := [name for name in STAGES if not (HOME / f"{name}.json").exists()]:
        sys.exit(f"not finished: {', '.join(missing)}; start it with `python benchmarks/offline.py run`")
    stages = {name: json.loads((HOME / f"{name}.json").read_text()) for name in STAGES}
    for name in RESUME:
        lines = read_metrics(HOME / name)
        stages[name] |= {"wall_s": lines[-1]["wall_s"], "eval": [line for line in lines if line["kind"] == "eval"]}
        for line in stages[name]["eval"]:
            print(name, line["step"], {key: round(value, 1) for key, value in line.items() if key.endswith(("return_mean", "return_max"))})
    (RESULTS / "offline.json").write_text(json.dumps(stages, indent=1))
    draw(stages)


def draw(stages: dict) -> None:
    """Left: the two tasks over the updates offline. Right: online from there, beside training from scratch."""
    with figures.style():
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.0), sharey=True)
        draw_stages(stages, axes)
        for axis, title, label in zip(axes, ("Offline", f"{TASK}, online"), ("updates", "decisions (two environment steps each)")):
            axis.set(title=title, xlabel=label)
            axis.xaxis.set_major_formatter(figures.thousands)
            axis.legend(loc="lower right")
            axis.locator_params(axis="x", nbins=6)
        axes[0].set_ylabel("return, mean of ten episodes")
        figure.savefig(RESULTS / "offline.png")
        plt.close(figure)


def draw_stages(stages: dict, axes: Any) -> None:
    """The lines of both panels."""
    offline = stages["pretrained"]["eval"]
    for colour, source in zip(figures.COLOURS, SOURCES):
        task = source.parent.name
        key = next(name for name in offline[-1] if name.endswith("/return_mean") and task in name and "stochastic" not in name)
        axes[0].plot([line["step"] for line in offline], [line[key] for line in offline], "o-", ms=4, color=colour, label=task)
    at_start = next(value for name, value in offline[-1].items() if TASK.split("/")[1] in name and name.endswith("/return_mean") and "stochastic" not in name)
    online = [(0, at_start), *((line["step"], line["eval/return_mean"]) for line in stages["online"]["eval"])]
    axes[1].plot(*np.array(online).T, "o-", ms=4, color=figures.COLOURS[0], label="from the model of 25,000 stored\ndecisions of each task (one seed)")
    scratch = [each for each in json.loads((RESULTS / "cartpole-swingup.json").read_text())["runs"] if each["label"] == "denoise"]
    for i, each in enumerate(scratch):
        curve = np.array([(line["step"], line["eval/return_mean"]) for line in each["eval"]])
        axes[1].plot(*curve.T, color=figures.COLOURS[1], alpha=0.6, label="from scratch (each seed)" if i == 0 else None)

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "collect", "redraw"])
    verb = parser.parse_args().verb
    if verb == "run":
        run()
    elif verb == "redraw":
        draw(json.loads((RESULTS / "offline.json").read_text()))
    else:
        collect()


if __name__ == "__main__":
    main()
