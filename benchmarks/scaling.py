"""MBDPO's scaling, in small: a data set of eight tasks made here, three sizes of one world model learnt from it offline, and online training of a ninth task.

    python benchmarks/scaling.py list [--form short]                # the stages and their commands
    python benchmarks/scaling.py run [--form short] [--only STAGE]  # resumes what was interrupted, skips what is done
    python benchmarks/scaling.py collect [--form short]             # results/scaling.json and .png (of another form scaling-FORM)
    python benchmarks/scaling.py paper                              # what mt80 with the preset size-317 takes on 8 GPUs, by counting

The data are the replays of runs of ``sac``, one a task, from random to what it has learnt. Every size makes the same number of updates and acts, in
evaluations, by its score network: planning with 5 M parameters on a CPU would take longer than all the rest. A normalised score is the return over 1,000,
the most that a DMControl task gives. The ninth task is walker-run, which no size has seen: it starts from the model of walker-walk, beside runs from
scratch of the same size. Forms: ``short`` fits in 40 minutes of one core, ``long`` in a night, ``tiny`` shows that all stages work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
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

TASKS = ("cartpole-swingup", "pendulum-swingup", "walker-walk", "cheetah-run", "reacher-easy", "finger-spin", "cup-catch", "acrobot-swingup")
NINTH, ITS_MODEL = "walker-run", "walker-walk"
SIZES = {
    "0.3M": "--width 80 --latent 64 --encoder-width 80", "1M": "--width 192 --latent 96 --encoder-width 192",
    "5M": "--width 416 --latent 416 --encoder-width 416",
}  # fmt: skip
"""299,790, 1,033,598 and 4,994,654 learning parameters with eight tasks"""
TUNED = "1M"
"""the size that goes on online"""
MOST = 1000.0


@dataclass(frozen=True)
class Form:
    """How much of everything. Decisions are of two environment steps each."""

    decisions: int
    """of each task's run that makes data"""
    updates: int
    """offline, of each size"""
    online: int
    """decisions of each run on the ninth task"""
    evaluations: int
    """evaluations of those runs"""
    tasks: tuple[str, ...] = TASKS
    seeds: tuple[int, ...] = (0, 1, 2)
    more: str = ""
    """flags of all world models"""


FORMS = {
    "short": Form(10_000, 3_000, 2_500, 2),
    "long": Form(50_000, 50_000, 25_000, 5),
    "tiny": Form(700, 200, 150, 1, ("cartpole-swingup", "walker-walk"), (0,), "--batch-size 32"),
}


@dataclass(frozen=True)
class Stage:
    """One command, by the folder that it writes."""

    words: tuple[str, ...]
    resumed_by: tuple[str, ...] = ()
    """what goes on with its folder; none: it begins anew"""
    seed: int = 0

    def command(self, folder: Path) -> list[str]:
        return [*self.words, "--out", str(folder)]


def home(form: str) -> Path:
    return RUNS / f"scaling-{form}"


def stages(name: str) -> dict[str, Stage]:
    """Every stage of a form in order."""
    form, base, found = FORMS[name], home(name), {}
    for task in form.tasks:
        warm = min(1_000, form.decisions // 2)
        words = (
            f"train sac --env dmc/{task} --total-steps {form.decisions} --warmup-steps {warm} --warmup-actions turns --eval-every {form.decisions}"
            f" --checkpoint-every {form.decisions} --replay-size {form.decisions} --threads 1 --quiet --seed 0"
        )
        found[f"data-{task}"] = Stage(tuple(words.split()), ("train", "sac"))
    found["data"] = Stage(("collect", *(str(base / f"data-{task}") for task in form.tasks)))
    common = f"--planner score {form.more} --threads 1 --quiet"
    for size, flags in SIZES.items():
        words = f"pretrain mbdpo --preset small {flags} {common} --data {base / 'data'} --total-updates {form.updates} --eval-every {form.updates} --seed 0"
        found[f"offline-{size}"] = Stage(tuple(words.split()), ("pretrain", "mbdpo"))
    every = form.online // form.evaluations
    for seed in form.seeds:
        online = f"--env dmc/{NINTH} --total-steps {form.online} --eval-every {every} --checkpoint-every {form.online} --replay-size {form.online}"
        starts = {
            "online": f"--start-from {base / f'offline-{TUNED}'} --start-task dmc/{ITS_MODEL} --warmup-steps {form.online // 10} --threads 1 --quiet",
            "scratch": f"--preset small {SIZES[TUNED]} {common} --warmup-steps {form.online // 10}",
        }
        for start, flags in starts.items():
            found[f"{start}-{seed}"] = Stage(tuple(f"train mbdpo {flags} {online} --seed {seed}".split()), ("train", "mbdpo"), seed)
    return found


def run(form: str, only: str | None) -> None:
    """Every stage that is not done; a command that fails ends it."""
    base = home(form)
    base.mkdir(parents=True, exist_ok=True)
    for name, stage in stages(form).items():
        folder, done = base / name, base / f"{name}.json"
        if done.exists() or only not in (None, name):
            continue
        fresh = not (folder / "config.json").exists()
        words = stage.command(folder) if fresh else [*stage.resumed_by, "--resume", str(folder), "--quiet"]
        load = float(Path("/proc/loadavg").read_text().split()[0])
        stamp = {"command": "saddlepoint " + " ".join(stage.command(folder)), "seed": stage.seed, "commit": commit(), "machine": machine(),
                 "load_before": load, "resumed": not fresh}  # fmt: skip
        print("saddlepoint", *words, flush=True)
        if code := subprocess.run([sys.executable, "-m", "saddlepoint.cli", *words], check=False).returncode:
            sys.exit(code)
        done.write_text(json.dumps(stamp, indent=1))


def collect(form: str) -> Path:
    """The stamps and evaluations of all stages, and what they come to."""
    base, kept = home(form), {}
    if missing := [name for name in stages(form) if not (base / f"{name}.json").exists()]:
        sys.exit(f"not finished: {', '.join(missing)}; start it with `python benchmarks/scaling.py run --form {form}`")
    for name in stages(form):
        kept[name] = json.loads((base / f"{name}.json").read_text())
        if (base / name / "metrics.jsonl").exists():
            lines = read_metrics(base / name)
            kept[name] |= {"wall_s": lines[-1]["wall_s"], "eval": [line for line in lines if line["kind"] == "eval"]}
    scores: dict[str, dict[str, float]] = {}
    for size in SIZES:
        last = kept[f"offline-{size}"]["eval"][-1]
        scores[size] = {task: last[f"eval/dmc/{task}/return_mean"] / MOST for task in FORMS[form].tasks}
        print(size, f"mean {np.mean(list(scores[size].values())):.3f}", {task: round(score, 3) for task, score in scores[size].items()})
    for name in kept:
        if name.startswith(("online", "scratch")):
            print(name, [(line["step"], round(line["eval/return_mean"], 1), round(line["eval/return_max"], 1)) for line in kept[name]["eval"]])
    path = RESULTS / ("scaling.json" if form == "short" else f"scaling-{form}.json")
    content = {"command": f"python benchmarks/scaling.py run --form {form}", "form": form, "sizes": SIZES, "normalised": scores, "ninth": NINTH, "stages": kept}
    path.write_text(json.dumps(content, indent=1))
    draw(path)
    return path


def draw(path: Path) -> None:
    """Left: normalised score against size, each task and their mean. Right: the ninth task online, from the stored model and from scratch."""
    content = json.loads(path.read_text())
    sizes, scores = list(content["sizes"]), content["normalised"]
    with figures.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0))
        at = [float(size.removesuffix("M")) for size in sizes]
        for task in scores[sizes[0]]:
            left.plot(at, [scores[size][task] for size in sizes], color=figures.INK, alpha=0.25, lw=1)
        left.plot(at, [np.mean(list(scores[size].values())) for size in sizes], "o-", color=figures.COLOURS[0], lw=2.4, label="mean of the tasks")
        left.set(title="Offline: return / 1,000", xlabel="learning parameters", xscale="log", xticks=at, xticklabels=sizes)
        left.minorticks_off()
        for colour, (start, label) in zip(figures.COLOURS, (("online", f"from the stored model ({TUNED})"), ("scratch", "from scratch"))):
            curves = [curve(stage["eval"]) for name, stage in content["stages"].items() if name.startswith(start)]
            for one in curves:
                right.plot(*one.T, color=colour, alpha=0.4, lw=1)
            right.plot(curves[0][:, 0], np.mean([one[:, 1] for one in curves], 0), "o-", ms=4, color=colour, lw=2.4, label=f"{label}, {len(curves)} seeds")
        right.set(title=f"dmc/{content['ninth']}, online: return", xlabel="decisions (two environment steps each)")
        for axis in (left, right):
            axis.legend(loc="upper left")
        figure.savefig(path.with_suffix(".png"))
        plt.close(figure)


# ------------------------------------------------------------------------------------------------ mt80, on paper

MT80_STEPS, MT80_OBSERVATION, MT80_ACTION, MT80_TASKS = 545_000_000, 39, 6, 80
"""TD-MPC2's data set: transitions, and the padded sizes"""
MT80_UPDATES, MT80_BATCH, GPUS = 10_000_000, 1024, 8
"""TD-MPC2's own length and batch of its multi-task models"""
DEVICES = {"A100, 80 GB": (312e12, 2.0e12, 300e9), "H100, 80 GB": (989e12, 3.35e12, 450e9)}
"""peak bfloat16 products a second without sparsity, bytes of memory a second, bytes a second between devices one way; the makers' numbers"""
REACHED = 0.4
"""share of the peak that large products are taken to reach"""
PAPER = (
    "saddlepoint convert mt80/*.pt --tasks mt80 --out data/mt80",
    f"accelerate launch --multi_gpu --num_processes {GPUS} -m saddlepoint.cli pretrain mbdpo --preset size-317 --learning-precision bfloat16"
    f" --batch-size {MT80_BATCH} --data data/mt80 --total-updates {MT80_UPDATES} --eval-every 0 --checkpoint-every 100000 --out runs/mt80",
)


def parameters(config: Any, observation: int, action: int, tasks: int) -> dict[str, int]:
    """Learning parameters of each network, of the critics those of one member."""
    state, hidden = config.latent + (config.task_embedding if tasks else 0), (config.width, config.width)

    def network(inputs: int, widths: tuple[int, ...], outputs: int, simplex: bool = False) -> int:
        count = 0
        for width in widths:
            count, inputs = count + inputs * width + 3 * width, width  # weights, and bias, gain and shift
        return count + inputs * outputs + (3 if simplex else 1) * outputs

    sees = observation + state - config.latent
    plan = config.horizon * action
    return {
        "encoder": network(sees, (config.encoder_width,) * max(config.encoder_layers - 1, 1), config.latent, True),
        "dynamics": network(state + action, hidden, config.latent, True), "reward": network(state + action, hidden, config.bins),
        "termination": network(state, hidden, 1), "energy": network(state + action, hidden, 1), "policy": network(state, hidden, 2 * action),
        "score": network(state + plan + config.time_embedding, hidden, plan), "critic": network(state + action, hidden, config.bins),
        "embedding": tasks * config.task_embedding,
    }  # fmt: skip


def update_products(config: Any, size: dict[str, int], batch: int) -> float:
    """Floating-point operations of one update: 2 a weight and row forward, 4 more where the weights learn, 2 where the gradient passes through alone."""
    c, rows = config, batch * config.horizon
    searched = c.score_states * c.score_proposals
    forward = {
        "encoder": batch + rows, "dynamics": rows + searched * c.horizon, "reward": rows + searched * c.horizon, "energy": 5 * rows + searched * c.horizon,
        "policy": rows + rows + batch + searched, "score": c.td_levels * rows + c.score_states,
        "critic": c.critics * rows + 2 * rows + 2 * (rows + batch) + 2 * searched,
    }  # fmt: skip
    learning = {
        "encoder": batch, "dynamics": rows, "reward": rows, "energy": 2 * rows, "policy": rows + batch, "score": c.score_states, "critic": c.critics * rows,
    }  # fmt: skip
    return float(sum(2 * forward[name] * size[name] + 4 * learning[name] * size[name] for name in forward) + 2 * 2 * (rows + batch) * size["critic"])


def paper() -> None:
    """Print parameters, memory and time of mt80 with size-317 on 8 GPUs, and the commands."""
    import torch

    from saddlepoint.mbdpo.config import PRESETS
    from saddlepoint.mbdpo.world_model import Tasks, WorldModel
    from saddlepoint.types import EnvShape

    small = PRESETS["small"]
    counted = sum(parameters(small, 24, 6, 8).values()) + (small.critics - 1) * parameters(small, 24, 6, 8)["critic"]
    model = WorldModel(small, EnvShape(24, (-1.0,) * 6, (1.0,) * 6, 0), Tasks((6,) * 8, (500,) * 8), torch.Generator())
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = PRESETS["size-317"]
    size = parameters(config, MT80_OBSERVATION, MT80_ACTION, MT80_TASKS)
    targets = config.critics * size["critic"]
    learning = sum(size.values()) - size["critic"] + targets
    flop = update_products(config, size, MT80_BATCH)
    rows = MT80_BATCH // GPUS * config.horizon
    activations = 4 * rows * (config.critics + 12) * (6 * config.width + config.bins)  # each layer's products, norm and activation, and their gradients
    resident = 16 * learning + 4 * targets + 2 * learning
    print(f"{learning / 1e6:.1f} M learning parameters: TD-MPC2's 317 M, and the heads of ends, energy and score ({targets / 1e6:.0f} M are critics)")
    print(f"on each device {resident / 1e9:.1f} GB of weights, gradients, Adam's moments, target critics and copies in bfloat16,"
          f" and {activations / 1e9:.1f} GB of activations")  # fmt: skip
    print(f"data: {MT80_STEPS * 4 * (MT80_OBSERVATION + MT80_ACTION + 2) / 1e9:.0f} GB on disk, read by memory map")
    print(f"{flop / 1e12:.1f} TFLOP an update of {MT80_BATCH} sub-sequences")
    for name, (products, memory, between) in DEVICES.items():
        multiply = flop / GPUS / products / REACHED
        step = (16 + 12 + 8) * learning / memory  # Adam reads four numbers and writes three, clipping and Polyak pass once more
        exchange = 2 * (GPUS - 1) / GPUS * 4 * learning / between
        seconds = multiply + step + exchange
        parts = f"{1e3 * multiply:.0f} products, {1e3 * step:.0f} Adam and Polyak, {1e3 * exchange:.0f} exchange"
        print(f"{GPUS} x {name}: {1e3 * seconds:.0f} ms an update ({parts}),"
              f" {MT80_UPDATES * seconds / 86400:.1f} days for {MT80_UPDATES:,} updates")  # fmt: skip
    print(*PAPER, sep="\n")


def curve(lines: list[dict[str, Any]]) -> np.ndarray:
    """(evaluations, 2): step and mean return."""
    return np.array([(line["step"], line["eval/return_mean"]) for line in lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["list", "run", "collect", "redraw", "paper"])
    parser.add_argument("--form", choices=list(FORMS), default="short")
    parser.add_argument("--only", help="one stage, as `list` names it")
    arguments = parser.parse_args()
    form = arguments.form
    if arguments.only is not None and arguments.only not in stages(form):
        parser.error(f"no stage {arguments.only}: `python benchmarks/scaling.py list --form {form}` names them")
    if arguments.verb == "list":
        for name, stage in stages(form).items():
            print(f"{name}: saddlepoint {' '.join(stage.command(home(form) / name))}")
    elif arguments.verb == "run":
        run(form, arguments.only)
    elif arguments.verb == "paper":
        paper()
    elif arguments.verb == "redraw":
        draw(RESULTS / ("scaling.json" if form == "short" else f"scaling-{form}.json"))
    else:
        collect(form)


if __name__ == "__main__":
    main()
