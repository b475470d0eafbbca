"""The learning runs behind the figures of docs/results.md: start them, collect them, draw them.

    python benchmarks/learning.py list
    python benchmarks/learning.py run halfcheetah-velocity [--only LABEL-SEED]   # resumes what was interrupted, skips what is done
    python benchmarks/learning.py collect halfcheetah-velocity                   # results/<name>.json and results/<name>.png
    python benchmarks/learning.py redraw halfcheetah-velocity                    # the figure again, from the JSON
    python benchmarks/learning.py look RUN --only LABEL                          # one run beside these, by its folder: into results/looks.json

Every run is an ordinary ``saddlepoint train`` whose command stands in the JSON with commit, seed, machine and wall time.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from saddlepoint import figures
from saddlepoint.train.log import read_metrics

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "bench"


@dataclass(frozen=True)
class Experiment:
    """``anchors`` are published returns to draw beside ours, ``steps_of`` the total steps of single runs (``label-seed``), ``seeds_of`` the seeds of
    single variants and ``system_of`` their systems, where they differ from the rest."""

    title: str
    common: str
    variants: dict[str, str]
    seeds: tuple[int, ...] = (0,)
    anchors: tuple[tuple[str, float], ...] = ()
    steps_of: dict[str, int] | None = None
    seeds_of: dict[str, tuple[int, ...]] | None = None
    system: str = "algd"
    system_of: dict[str, str] | None = None

    def system_for(self, label: str) -> str:
        return (self.system_of or {}).get(label, self.system)


FIRST = (
    "--multiplier-actions policy --no-nonnegative-costs --cost-bootstrap own --largest-violation None --reward-unit one --cost-unit one"
    " --rho 1 --multiplier 0.6931 --multiplier-rate 3e-4"
)
"""what the defaults were when the runs that name it were made; the JSON beside the figure has the command as it was"""
SLOW = "--warmup-steps 2000 --precision bfloat16 --threads 1 --compile off --quiet --entropy tuned"
NAVIGATION = "--action-repeat 1 --total-steps 60000 --eval-every 5000 --checkpoint-every 20000 --replay-size 100000"
QUICK = "--warmup-steps 2000 --precision bfloat16 --threads 1 --quiet"
PLANNERS = {
    "denoise": "", "prior-targets": "--td-action prior", "bfloat16": "--learning-precision bfloat16",
    "mppi": "--planner mppi --td-action prior --energy-weight 0 --eval-every 12500",
    "mppi-held": "--planner mppi --td-action prior --energy-weight 0 --warmup-actions held --warmup-steps 5000",
    "wide": "--reverse-start noise --beta-last 0.25 --warmup-actions held --warmup-steps 5000",
}  # fmt: skip

NAMES = {
    "algd": "ALGD", "algd-fixed": "ALGD", "quick-costs": "ALGD, --cost-polyak 0.02", "denoise": "denoising", "wide": "denoising, wide start",
    "prior-targets": "denoising, targets by the prior", "bfloat16": "denoising, bfloat16", "mppi": "MPPI", "mppi-held": "MPPI, held warm-up",
    "algd-slow-lambda": "ALGD, slow lambda", "safe": "Safe MBDPO", "safe-mbdpo": "Safe MBDPO, slow cost targets", "safe-mbdpo-quick": "Safe MBDPO",
}  # fmt: skip
"""what figures call a variant; the others are called as they are"""
CORRECTIONS = {
    "default": "", "released-pairs": "--energy-pairs released", "first-critics": "--target-critics first", "prior-targets": "--td-action prior",
    "released-score": "--td-action prior --score-training released",
}  # fmt: skip


def first_small(flags: str = "") -> str:
    """A variant of the preset small as it first was, for the runs before ``laptop``; without the flags that do nothing beside ``flags``."""
    levels = [] if "--planner mppi" in flags else ["--levels betas --beta-last 0.025"]
    searched = [] if "--td-action prior" in flags else ["--td-levels 2"]
    return " ".join(["--preset small", *levels, *searched, "--warmup-actions random --no-catch-up", flags])


def control(
    task: str, anchors: tuple[tuple[str, float], ...], planners: tuple[str, ...] = ("denoise", "mppi", "prior-targets"),
    seeds: tuple[int, ...] = (0, 1, 2), eval_every: int = 5000,
) -> Experiment:  # fmt: skip
    """A DMControl task, 25,000 decisions of two environment steps each: the denoising planner (``seeds``) and other ``planners`` (one seed)."""
    return Experiment(
        f"dmc/{task}, 50,000 environment steps: MBDPO's small preset",
        f"--env dmc/{task} --total-steps 25000 --warmup-steps 2500 --eval-every {eval_every}"
        " --checkpoint-every 12500 --replay-size 25000 --threads 1 --quiet",
        {name: first_small(PLANNERS[name]) for name in planners}, (0,), anchors, seeds_of={"denoise": seeds, "wide": seeds}, system="mbdpo",
    )  # fmt: skip


PUBLISHED = {
    "cartpole-swingup": (839, 881), "pendulum-swingup": (724, 997), "walker-walk": (962, 986), "cheetah-run": (519, 761), "reacher-easy": (937, 994),
    "finger-spin": (948, 969), "cup-catch": (981, 980), "acrobot-swingup": (179, 401),
}  # fmt: skip
"""TD-MPC2's and MBDPO's returns after 100,000 environment steps, from the released results: means of three seeds, MBDPO's look like the best of ten episodes"""
LAPTOP = {"small": "", "prior": "--td-action prior", "noise": "--reverse-start noise"}
AVERAGE = "--acting-average 500 --average-acts evaluation"


def laptop(task: str, decisions: int = 50_000, warmup: int = 5_000) -> Experiment:
    """A DMControl task at 100,000 environment steps by default: the preset small, three seeds, and what its choices are compared with, one seed.

    All checkpoints are kept, so that each can be evaluated with the averaged and with the last weights.
    """
    return Experiment(
        f"dmc/{task}, {2 * decisions:,} environment steps: MBDPO's small preset",
        f"--preset small --env dmc/{task} --total-steps {decisions} --warmup-steps {warmup} --eval-every 5000 --checkpoint-every 5000 --keep-checkpoints 10"
        f" --replay-size {decisions} --threads 1 --quiet {AVERAGE}",
        LAPTOP, (0,), tuple(zip(("TD-MPC2 at 100,000 steps (published)", "MBDPO (published)"), PUBLISHED[task])), seeds_of={"small": (0, 1, 2)}, system="mbdpo",
    )  # fmt: skip


EXPERIMENTS: dict[str, Experiment] = {
    **{f"laptop-{task}": laptop(task) for task in PUBLISHED},
    **{f"laptop-half-{task}": laptop(task, 25_000) for task in PUBLISHED},
    "walker-snapshots": Experiment(
        "dmc/walker-walk, 50,000 environment steps: MBDPO's small preset, evaluated with averaged weights",
        "--preset small --env dmc/walker-walk --total-steps 25000 --warmup-steps 2500 --eval-every 2500 --checkpoint-every 2500 --keep-checkpoints 10"
        f" --replay-size 25000 --threads 1 --quiet {AVERAGE}",
        {"small": ""}, anchors=(("TD-MPC2 at 100,000 steps (published)", 962), ("MBDPO at 100,000 steps (published)", 986)), system="mbdpo",
    ),
    "cartpole-swingup": control(
        "cartpole-swingup", (("TD-MPC2 at 100,000 steps (published)", 839), ("MBDPO (published)", 881)), ("denoise", "mppi", "prior-targets", "bfloat16"),
    ),
    "pendulum-swingup": control(
        "pendulum-swingup", (("TD-MPC2 at 100,000 steps (published)", 724), ("MBDPO (published)", 997)), ("wide", "denoise", "mppi-held"), eval_every=12500,
    ),
    "cartpole-corrections": Experiment(
        "dmc/cartpole-swingup, the score network acting: corrections of MBDPO taken back",
        "--planner score --env dmc/cartpole-swingup --warmup-steps 2500 --eval-every 5000 --checkpoint-every 10000"
        " --replay-size 25000 --threads 1 --quiet",
        {name: first_small(flags) for name, flags in CORRECTIONS.items()},
        (0, 1),
        anchors=(("TD-MPC2 at 100,000 environment steps (published)", 839), ("MBDPO (published)", 881)),
        steps_of={f"{name}-{seed}": 10_000 for name in CORRECTIONS for seed in range(2)} | {"default-0": 25_000},
        system="mbdpo",
    ),
    "walker-walk": control("walker-walk", (), ("denoise",), (0,), 12500),
    "halfcheetah-velocity": Experiment(
        "HalfCheetahVelocity-v0: cost 1 above 3.21 m/s, 25 an episode",
        f"--env saddlepoint/HalfCheetahVelocity-v0 --eval-every 5000 --checkpoint-every 25000 --replay-size 100000 {QUICK}",
        {"algd": "", "quick-costs": "--cost-polyak 0.02"}, (0, 1, 2),
        anchors=(("SAC-Lag, 1M steps (published)", 2834), ("SAC-PID, 1M steps (published)", 2689)),
        steps_of={"algd-0": 100_000} | dict.fromkeys(("algd-1", "algd-2", "quick-costs-0", "quick-costs-1", "quick-costs-2"), 30000),
    ),
    "halfcheetah-mbdpo": Experiment(
        "HalfCheetahVelocity-v0, cost 1 above 3.21 m/s, 25 an episode: Safe MBDPO's small preset",
        "--env saddlepoint/HalfCheetahVelocity-v0 --total-steps 20000 --warmup-steps 2000 --eval-every 20000"
        " --checkpoint-every 5000 --replay-size 20000 --threads 1 --quiet",
        {"safe": first_small("--cost-polyak 0.01")}, anchors=(("ALGD after 20,000 steps, mean of three seeds (comparison.json)", 1972),), system="mbdpo",
    ),
    "halfcheetah-half-speed": Experiment(
        "HalfCheetahSpeed-v0: discounted speed at most 76, half the paper's budget",
        "--env saddlepoint/HalfCheetahSpeed-v0 --cost-limit 76 --total-steps 20000 --warmup-steps 2000 --eval-every 10000 --checkpoint-every 5000"
        " --replay-size 20000 --threads 1 --quiet",
        {
            "safe-mbdpo": first_small("--cost-polyak 0.01"), "safe-mbdpo-quick": first_small("--cost-polyak 0.05"),
            "algd": "--precision bfloat16 --compile off --entropy tuned", "algd-fixed": "--precision bfloat16",
        },
        system_of={"safe-mbdpo": "mbdpo", "safe-mbdpo-quick": "mbdpo"},
    ),
    "halfcheetah-speed": Experiment(
        "HalfCheetahSpeed-v0: discounted speed at most 151.989",
        f"--env saddlepoint/HalfCheetahSpeed-v0 --total-steps 30000 --eval-every 5000 --checkpoint-every 15000 --replay-size 100000 {QUICK}",
        {"algd": ""},
    ),
    "hopper-speed": Experiment(
        "HopperSpeed-v0: discounted speed at most 82.748",
        f"--env saddlepoint/HopperSpeed-v0 --total-steps 50000 --eval-every 5000 --checkpoint-every 25000 --replay-size 100000 {QUICK}",
        {"algd": ""},
    ),
    "point-goal": Experiment(
        "PointGoal1-v0, a random layout at every reset: 25 an episode of 1,000 steps",
        f"--env saddlepoint/PointGoal1-v0 --episode-steps 1000 {NAVIGATION} {SLOW}",
        {"algd": ""},
    ),
    "point-goal-four-environments": Experiment(
        "PointGoal1-v0, random layouts, 25 an episode: four environments, one update for four decisions",
        "--env saddlepoint/PointGoal1-v0 --total-steps 100000 --warmup-steps 4000 --eval-every 20000 --eval-episodes 30 --checkpoint-every 100000"
        " --replay-size 100000 --num-envs 4 --updates-per-step 0.25 --threads 1 --quiet",
        {"algd": ""}, (0, 1, 2), anchors=(("SAC-Lag, 1M steps (published)", 21.5),),
    ),
    "point-button-fixed": Experiment(
        "PointButton1-fixed-v0, one layout: 10 an episode of 400 steps",
        f"--env saddlepoint/PointButton1-fixed-v0 {NAVIGATION} {SLOW} {FIRST}",
        {"algd": ""},
    ),
}  # fmt: skip


def planned(name: str) -> list[tuple[str, int, list[str], Path]]:
    """(label, seed, command, run folder) of every run of an experiment."""
    experiment = EXPERIMENTS[name]
    runs = []
    for label, flags in experiment.variants.items():
        for seed in (experiment.seeds_of or {}).get(label, experiment.seeds):
            key = f"{label}-{seed}"
            steps = ["--total-steps", str(experiment.steps_of[key])] if experiment.steps_of else []
            command = ["train", experiment.system_for(label), *experiment.common.split(), *flags.split(), *steps, "--seed", str(seed)]
            runs.append((label, seed, command, RUNS / name / key))
    return runs


def commit() -> str:
    dirty = subprocess.run(
        ["git", "status", "--porcelain", ":/src"], capture_output=True, text=True, cwd=HERE, check=True
    ).stdout.strip()
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=True
    ).stdout.strip()
    return head + ("+changes" if dirty else "")


def machine() -> dict[str, Any]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    import torch

    return {
        "cpu": cpu,
        "cores": len(__import__("os").sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def run(name: str, only: str | None) -> None:
    for label, seed, command, folder in planned(name):
        if only and only != f"{label}-{seed}":
            continue
        fresh = not (folder / "config.json").exists()
        steps = command[command.index("--total-steps") + 1]  # which may have changed since
        again = ["train", EXPERIMENTS[name].system_for(label), "--resume", str(folder), "--total-steps", steps, "--quiet"]
        arguments = [*command, "--out", str(folder)] if fresh else again
        print("saddlepoint", *arguments, flush=True)
        load = float(Path("/proc/loadavg").read_text().split()[0])
        stamp = {
            "command": "saddlepoint " + " ".join(command),
            "commit": commit(),
            "machine": machine(),
            "load_before": load,
        }
        code = subprocess.run([sys.executable, "-m", "saddlepoint.cli", *arguments], check=False).returncode
        if code == 0 and not (folder / "started.json").exists():  # a run that did not end well is not collected
            (folder / "started.json").write_text(json.dumps(stamp | {"resumed": not fresh}, indent=1))


def collect(name: str) -> None:
    """Evaluations and multipliers of all finished runs, with where they came from; those that were collected on another machine are kept."""
    experiment, runs, budgets = EXPERIMENTS[name], [], []
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"runs": [], "budget": None}
    for label, seed, _, folder in planned(name):
        if not (folder / "started.json").exists():
            elsewhere = [run for run in earlier["runs"] if (run["label"], run["seed"]) == (label, seed)]
            runs += elsewhere
            print(f"{label}-{seed}: " + ("kept as it was collected where it ran" if elsewhere else "left out (not finished)"))
            continue
        lines = read_metrics(folder)
        evals = [{k: v for k, v in line.items() if k != "kind"} for line in lines if line["kind"] == "eval"]
        keys = ("step", "wall_s", "train/multiplier", "train/effective_multiplier", "train/risk", "train/beta", "train/entropy",
                "train/return_mean", "train/cost_mean", "train/discounted_cost_mean")  # fmt: skip
        trains = [{k: line[k] for k in keys if k in line} for line in lines if line["kind"] == "train"]
        for line in evals:  # what an episode of training cost until then
            paid = [at["train/cost_mean"] for at in trains if "train/cost_mean" in at and at["step"] <= line["step"]]
            if paid:
                line |= {"training_cost_mean": float(np.mean(paid)), "training_cost_most": max(paid)}
        runs.append({"label": label, "seed": seed, **json.loads((folder / "started.json").read_text()),
                     "wall_s": lines[-1]["wall_s"], "eval": evals, "train": trains})  # fmt: skip
        if later := [json.loads(path.read_text()) for path in sorted(folder.glob("evaluation-*.json"))]:
            runs[-1]["evaluations"] = later  # by `saddlepoint evaluate`, of chosen checkpoints
        budgets = json.loads((folder / "config.json").read_text())["budgets"]
        last = evals[-1]
        half = [
            line["train/multiplier"]
            for line in trains
            if line["step"] > last["step"] / 2 and "train/multiplier" in line
        ]
        said = f"{label}-{seed} step {last['step']}: return {last['eval/return_mean']:.0f} (best of ten {last['eval/return_max']:.0f})"
        if half:
            runs[-1]["multiplier_std_second_half"] = spread = float(np.std(half))
            said += f", cost {last['eval/cost_mean']:.1f}, discounted {last['eval/discounted_cost_mean']:.1f}; stochastic"
            said += f" {last['eval/stochastic/return_mean']:.0f}, {last['eval/stochastic/cost_mean']:.1f}; std of lambda in the second half {spread:.3f}"
        print(f"{said}; {lines[-1]['wall_s'] / 60:.0f} min")
    if not runs:
        sys.exit(f"no finished run of {name}: start them with `python benchmarks/learning.py run {name}`")
    RESULTS.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"title": experiment.title, "anchors": experiment.anchors, "budget": budgets[0] if budgets else earlier["budget"], "runs": runs}, indent=1)
    )
    draw(path)


def look(folder: Path, label: str) -> None:
    """Keep a single run's settings and evaluations under ``label``: the trials, stopped ones too, that a default was chosen by."""
    path = RESULTS / "looks.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    config = json.loads((folder / "config.json").read_text())
    lines = read_metrics(folder)
    keys = ("step", "train/multiplier", "train/effective_multiplier", "train/risk", "train/beta", "train/cost_mean", "train/cost_max", "train/return_mean",
            "train/return_max")  # fmt: skip
    kept[label] = {
        "system": config["system"], "train": config["train"], "learner": config["learner"], "machine": machine(), "wall_s": lines[-1]["wall_s"],
        "eval": [{key: value for key, value in line.items() if key != "kind"} for line in lines if line["kind"] == "eval"],
        "train_lines": [{key: line[key] for key in keys if key in line} for line in lines if line["kind"] == "train" and line["step"] % 1000 == 0],
    }  # fmt: skip
    path.write_text(json.dumps(kept, indent=1))
    for line in kept[label]["eval"]:
        print(f"{label} {line['step']}: return {line['eval/return_mean']:.1f}, cost {line['eval/cost_mean']:.1f}; sampling"
              f" {line['eval/stochastic/return_mean']:.1f}, {line['eval/stochastic/cost_mean']:.1f}")  # fmt: skip


def draw(path: Path) -> None:
    """Return, and cost against its budget and the multiplier where there is one: thin lines are seeds, thick ones their mean."""
    content = json.loads(path.read_text())
    runs, budget = content["runs"], content["budget"]
    panels = [("eval", "eval/return_mean", "Return, noise-free policy"), ("eval", "eval/stochastic/return_mean", "Return, sampled policy")]
    if budget is None:
        panels.append(("eval", "eval/return_max", "Best of ten episodes, noise-free"))
    else:
        kind, key = ("Discounted cost", "discounted_cost_mean") if budget["discounted"] else ("Cost of an episode", "cost_mean")
        panels += [("eval", f"eval/stochastic/{key}", f"{kind}, sampled policy"), ("train", "train/multiplier", "Multiplier λ")]
    labels = list(dict.fromkeys(run["label"] for run in runs))
    seeds = {label: sum(run["label"] == label for run in runs) for label in labels}
    names = NAMES | ({"algd": "ALGD, temperature tuned"} if "algd-fixed" in labels else {})  # the default before the fixed one
    with figures.style():
        rows = 2 if len(panels) == 4 else 1
        figure, grid = plt.subplots(rows, len(panels) // rows, figsize=(9.4, 2.7 * rows + 1.1))
        axes = grid.ravel()
        for axis, (kind, key, title) in zip(axes, panels):
            for colour, label in zip(figures.COLOURS, labels):
                draw_seeds(axis, [run[kind] for run in runs if run["label"] == label], key, colour)
            for dashes, (label, value) in zip(("-.", ":"), content["anchors"] if "return_mean" in key else []):
                axis.axhline(value, color=figures.INK, ls=dashes, lw=1, label=label if axis is axes[0] else None)
            if "cost" in key:
                figures.mark_budget(axis, budget["limit"], f"budget\n{budget['limit']:g}")
            axis.set(title=title, xlabel="steps of the agent" if axis in grid.reshape(rows, -1)[-1] else "")
            axis.xaxis.set_major_formatter(figures.thousands)
            axis.locator_params(axis="x", nbins=5)
        for colour, label in zip(figures.COLOURS, labels):
            axes[0].plot([], [], color=colour, label=f"{names.get(label, label)} ({'one seed' if seeds[label] == 1 else f'mean of {seeds[label]} seeds'})")
        figure.suptitle(content["title"], x=0.01, ha="left")
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(path.with_suffix(".png"))
        plt.close(figure)


def draw_seeds(axis: Any, series: list[list[dict[str, float]]], key: str, colour: str) -> None:
    """A thin line for each seed, and where there are several a thick one for their mean as far as all of them go."""
    found = [[(line["step"], line[key]) for line in lines if key in line] for lines in series]
    curves = [np.array(curve) for curve in found if curve]
    for curve in curves:
        alone = len(curves) == 1
        axis.plot(*curve.T, "o-" if len(curve) < 10 else "-", color=colour, alpha=1 if alone else 0.4, lw=1.8 if alone else 1, ms=3)
    if len(curves) > 1:
        length = min(map(len, curves))
        axis.plot(curves[0][:length, 0], np.mean([curve[:length, 1] for curve in curves], 0), color=colour, lw=2.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["list", "run", "collect", "redraw", "look"])
    parser.add_argument("name", nargs="?", help="an experiment, or the folder to look at")
    parser.add_argument("--only", help="one run, such as algd-0; for look, the label")
    arguments = parser.parse_args()
    if arguments.verb == "list":
        for name in EXPERIMENTS:
            print(name, *(folder.name for _, _, _, folder in planned(name)))
    elif arguments.verb == "look" and arguments.name and arguments.only:
        look(Path(arguments.name), arguments.only)
    elif arguments.verb == "redraw" and arguments.name and (RESULTS / f"{arguments.name}.json").exists():
        draw(RESULTS / f"{arguments.name}.json")
    elif arguments.verb in ("look", "redraw") or arguments.name not in EXPERIMENTS:
        parser.error("name an experiment: " + ", ".join(EXPERIMENTS))
    elif arguments.verb == "run":
        run(arguments.name, arguments.only)
    else:
        collect(arguments.name)


if __name__ == "__main__":
    main()
