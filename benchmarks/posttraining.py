"""Post-training of the tiny world's pipeline: the runs behind the tables and pictures of docs/results.md.

    python benchmarks/posttraining.py run WORLD [--only steered-0 ...] # resumes what was interrupted, skips what is done
    python benchmarks/posttraining.py plan WORLD                      # what there is to run, and what is done of it
    python benchmarks/posttraining.py collect WORLD                   # results/posttraining.json and .png, and its pictures

With ``--flow models/tiny-flow-world`` the pipeline is that of the flow world, the runs are shorter and the results are posttraining-flow.*. Runs go seed
by seed, so what is finished at any time is one seed of every variant before two of any; those named by --only go in that order. ``collect`` keeps the
runs of the results that are there, and of which this checkout has no folder.

WORLD is models/tiny-world, which is shipped, or a folder written by ``python -m saddlepoint.safediffusion.tiny``. Each run is an ordinary
``saddlepoint train safediffusion``; then its model and the start model draw every prompt of five files from the same noise (``saddlepoint evaluate``)
and the world's exact checker reads the pictures.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from learning import RESULTS, RUNS, commit, machine  # noqa: E402
from saddlepoint import figures  # noqa: E402
from saddlepoint.cli import main as main_of_saddlepoint  # noqa: E402

SEEDS = (0, 1, 2)
CHECKER = "saddlepoint.safediffusion.tiny.checker"
COMMON = f"--cost {CHECKER}:Unsafe --utility {CHECKER}:Composition --held-out-images 64 --eval-every 10 --checkpoint-every 10 --threads 1 --quiet"
LENGTH = {"posttraining": "--preset tiny --epochs 40", "posttraining-flow": "--preset tiny-flow --epochs 80"}
LONGER = {"posttraining": "60", "posttraining-flow": "120"}
"""epochs with red-team's prompts, which are twice as many"""
VARIANTS = {
    "steered": "--reward steered",
    "projection": "--reward steered --steering projection",
    "plain": "--reward alignment",
    "constrained": "--unsafe-budget 0.02",
    "own-deviations": "--reward steered --advantage-scale group",
    "whole-unet": "--reward steered --steering projection --tune unet --learning-rate 1e-4",
    "red-team": "--reward steered --steering projection",
    "red-team-constrained": "--unsafe-budget 0.02",
    "red-team-constrained-kl": "--unsafe-budget 0.02 --kl 0.02",
    "constrained-10": "--unsafe-budget 0.1",
    "constrained-20": "--unsafe-budget 0.2",
    "constrained-composition": f"--unsafe-budget 0.02 --second-reward {CHECKER}:Composition",
    "constrained-composition-epoch": f"--unsafe-budget 0.02 --second-reward {CHECKER}:Composition --advantage-scale epoch",
    "red-team-nft": "--unsafe-budget 0.02 --method nft",
    "nft": "--reward steered --method nft",
    "nft-constrained": "--unsafe-budget 0.02 --method nft",
    "nft-composition": f"--unsafe-budget 0.02 --method nft --second-reward {CHECKER}:Composition",
    "window": "--reward steered --noisy-steps 0 4",
}
"""SafeDiffusion-R1, its other steering, GRPO on CLIP alignment alone (alpha 0), alignment under a budget of unsafe pictures, the first with advantages
as released, the second without adapters, and the second and the fourth with the prompts (and anchors) that ``saddlepoint red-team`` makes of the
files, and the last of these held to the start model as well; then larger budgets, a second reward for composition
beside a budget, the same with advantages divided by the deviation of each epoch, DiffusionNFT with red-team's prompts, for the steered reward, under a
budget, and with the second reward too, and noise in the first four steps alone"""
NAMES = {
    "steered": "steered reward", "plain": "alignment alone", "constrained": "at most 2 %", "own-deviations": "steered, deviations of groups",
    "whole-unet": "projection, whole UNet", "red-team": "projection, red-team's prompts", "red-team-constrained": "at most 2 %, red-team's prompts",
    "red-team-constrained-kl": "the same, --kl 0.02", "constrained-10": "at most 10 %", "constrained-20": "at most 20 %",
    "constrained-composition": "at most 2 %, composition", "constrained-composition-epoch": "at most 2 %, composition, each epoch's deviation",
    "nft-constrained": "at most 2 %, DiffusionNFT", "nft-composition": "at most 2 %, DiffusionNFT, composition",
    "red-team-nft": "at most 2 %, DiffusionNFT, red-team's prompts",
}  # fmt: skip
"""what figures call a variant; the others are called as they are"""
ON_FLOW = ("constrained", "nft-composition", "steered", "nft-constrained", "constrained-composition", "constrained-10", "constrained-20", "projection",
           "plain", "constrained-composition-epoch", "red-team-constrained", "red-team-nft")  # fmt: skip
"""in this order"""
SEEDS_OF = {"own-deviations": (0,), "whole-unet": (0,)}
RED_TEAM = f"--cost {CHECKER}:Unsafe --guidance 2 --pictures 48 --least 0.05 --threads 1"
TABLES = ("training", "held-out", "phrasings", "kinds", "clean")
"""the prompts trained on, other scenes in the same words, words and kinds of marking that no post-training saw, and many harmless prompts"""
COLUMNS = 14
"""pictures of each model in the figure"""
LAST = 8
"""epochs whose unsafe pictures are held beside the budget"""
MEASURES = ("unsafe rate", "compositional accuracy", "Frechet distance to clean pictures")


FLOW: list[Path] = []
"""the flow world, where --flow gives one"""


def title() -> str:
    """Of the results and of the folder of runs."""
    return "posttraining-flow" if FLOW else "posttraining"


def red() -> Path:
    """The folder that red-team writes."""
    return RUNS / title() / "red-team"


def runs(world: Path) -> list[tuple[str, int, list[str], Path]]:
    """(variant, seed, command, run folder) of every run."""
    files = {"--clip": "clip", "--prompts": "prompts/training.csv", "--held-out-prompts": "prompts/held-out.csv"}
    planned = []
    for seed in SEEDS:
        for name in ON_FLOW if FLOW else VARIANTS:
            if seed not in SEEDS_OF.get(name, SEEDS):
                continue
            flags = VARIANTS[name]
            own = files | ({"--anchors": "anchors"} if "steered" in flags else {})
            places = {"--pipeline": str((FLOW or [world])[0] / "pipeline")}
            places |= {flag: str(world / place) for flag, place in own.items()}
            if name.startswith("red-team"):
                places |= {"--prompts": str(red() / "prompts.csv")} | ({"--anchors": str(red() / "anchors")} if "--anchors" in places else {})
            sources = [word for item in places.items() for word in item]
            length = LENGTH[title()].split() + (["--epochs", LONGER[title()]] if name.startswith("red-team") else [])
            command = ["train", "safediffusion", *sources, *COMMON.split(), *length, *flags.split(), "--seed", str(seed)]
            planned.append((name, seed, command, RUNS / title() / f"{name}-{seed}"))
    return planned


def red_team(world: Path) -> list[str]:
    """The command that looks for what the prompts do not name."""
    places = {"--clip": "clip", "--anchors": "anchors", "--prompts": "prompts/training.csv"}
    sources = [word for flag, place in places.items() for word in (flag, str(world / place))]
    steps = "--steps 8 --text-tokens 0" if FLOW else "--steps 20"
    return ["red-team", str((FLOW or [world])[0] / "pipeline"), *sources, *RED_TEAM.split(), *steps.split(), "--out", str(red())]


def evaluation(folder: Path, table: str) -> Path:
    return folder / f"evaluation-{table}"


def plan(world: Path) -> None:
    for name, seed, _, folder in runs(world):
        begun = "begun" if (folder / "config.json").exists() else "to run"
        print(f"{name}-{seed}: {'done' if (folder / 'finished.json').exists() else begun}")


def run(world: Path, only: list[str]) -> None:
    planned = {f"{name}-{seed}": (name, command, folder) for name, seed, command, folder in runs(world)}
    for name, command, folder in (planned[key] for key in only or planned):
        if (folder / "finished.json").exists():
            continue
        if name.startswith("red-team") and not red().exists():
            stamp, begun = {"command": "saddlepoint " + " ".join(red_team(world)), "commit": commit(), "machine": machine()}, time.monotonic()
            _saddlepoint(*red_team(world))
            (red() / "finished.json").write_text(json.dumps(stamp | {"wall_s": time.monotonic() - begun}, indent=1))
        fresh = not (folder / "config.json").exists()
        stamp = {"command": "saddlepoint " + " ".join(command), "commit": commit(), "machine": machine(), "resumed": not fresh}
        _saddlepoint(*([*command, "--out", str(folder)] if fresh else ["train", "safediffusion", "--resume", str(folder), "--quiet"]))
        for table in TABLES:
            distance = ["--distance-to", "tiny"] if table == "clean" else []  # the others have too few harmless prompts for moments of 64 features
            distance += ["--limit", "256"] if distance and FLOW else []
            prompts = str(world / "prompts" / f"{table}.csv")
            _saddlepoint("evaluate", str(folder), "--prompts", prompts, "--measures", "alignment", "--checker", "tiny", *distance, "--batch", "64",
                         "--threads", "1", "--out", str(evaluation(folder, table)))  # fmt: skip
        (folder / "finished.json").write_text(json.dumps(stamp, indent=1))


def _saddlepoint(*words: str) -> None:
    """In this process: loading the libraries takes as long as three epochs."""
    print("saddlepoint", *words, flush=True)
    if code := main_of_saddlepoint(words):
        sys.exit(code)


def collect(world: Path) -> None:
    found: list[dict[str, Any]] = []
    for name, seed, _, folder in runs(world):
        if not (folder / "finished.json").exists():
            print(f"left out: {name}-{seed} (not finished)")
            continue
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        tables = {table: json.loads((evaluation(folder, table) / "results.json").read_text())["numbers"] for table in TABLES}
        stamp = json.loads((folder / "finished.json").read_text())
        costs = np.array([line["train/cost_mean"] for line in lines if "train/cost_mean" in line][-LAST:])
        spent = {"mean": float(costs.mean()), "error": float(costs.std(ddof=1) / len(costs) ** 0.5)}
        print(f"{name}-{seed}: unsafe pictures of the last {LAST} epochs: {100 * spent['mean']:.1f} +- {100 * spent['error']:.1f} %")
        found.append({"variant": name, "seed": seed} | stamp | {"wall_s": lines[-1]["wall_s"], "spent": spent, "lines": lines, "tables": tables,
                                                                "changes": changes_of(folder)})  # fmt: skip
    path = RESULTS / f"{title()}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    found = together(found, earlier.get("runs", []))
    if not found:
        sys.exit(f"no finished run: start them with `python benchmarks/posttraining.py run {world}`")
    for name in VARIANTS:
        of = [each for each in found if each["variant"] == name]
        for table in TABLES if of else ():
            said = []
            for measure in MEASURES:
                sides = [each["tables"][table] for each in of if measure in each["tables"][table]["after"]]
                pairs = [[numbers[side][measure]["value"] for side in ("before", "after")] for numbers in sides]
                if pairs:
                    before, after = np.mean(pairs, 0)
                    said.append(f"{measure} {before:.3g} -> {after:.3g}" + (f" ({100 * (after / before - 1):+.0f} %)" if before else ""))
            print(f"{name}, {len(of)} seeds, {table}: " + "; ".join(said))
    RESULTS.mkdir(exist_ok=True)
    card = ((FLOW or [world])[0] / "README.md").read_text()
    content = earlier | {"world": card, "runs": found, "composition": earlier.get("composition", {}) | paired(found)}
    if red().exists():
        with (red() / "words.csv").open(newline="") as file:
            content["red_team"] = json.loads((red() / "finished.json").read_text()) | {"words": list(csv.DictReader(file))}
    path.write_text(json.dumps(content, indent=1))
    draw(found)
    if first := {name for name, seed, _, folder in runs(world) if seed == SEEDS[0] and (folder / "finished.json").exists()}:
        draw_pictures(first, world)


def changes_of(folder: Path) -> dict[str, list[float]]:
    """By how much compositional accuracy changed, prompt by prompt and from the same noise, of every table."""
    results = {table: json.loads((evaluation(folder, table) / "results.json").read_text())["pictures"] for table in TABLES}
    return {table: [each["after"][MEASURES[1]] - each["before"][MEASURES[1]] for each in pictures] for table, pictures in results.items()}


def together(found: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that were collected now and the others of an earlier collection, in the order of the seeds and variants."""
    new = {(each["variant"], each["seed"]) for each in found}
    for each in earlier:
        if (each["variant"], each["seed"]) not in new:
            print(f"kept: {each['variant']}-{each['seed']} (its folder is not here)")
            found = [*found, each]
    return sorted(found, key=lambda each: (each["seed"], [*VARIANTS].index(each["variant"])))


def paired(found: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The mean change of compositional accuracy over a variant's seeds and its standard error over the prompts, which the two rates by themselves
    overstate. A run that was collected before its changes were kept has none."""
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for name in VARIANTS:
        of = [each for each in found if each["variant"] == name and "changes" in each]
        for table in TABLES if of else ():
            changes = np.mean([each["changes"][table] for each in of], 0)
            error = float(changes.std(ddof=1) / len(changes) ** 0.5)
            summary.setdefault(name, {})[table] = {"change": float(changes.mean()), "error": error, "seeds": [each["seed"] for each in of]}
        if of:
            said = (f"{table} {100 * each['change']:+.1f} +- {100 * each['error']:.1f} %" for table, each in summary[name].items())
            print(f"{name}, {len(of)} seeds: paired change of {MEASURES[1]}: " + "; ".join(said))
    return summary


def draw(found: list[dict[str, Any]]) -> None:
    """Held-out utility and unsafe rate, and the training's, over the epochs; thin lines are seeds."""
    panels = {"train/cost_mean": "Unsafe pictures, training", "eval/cost_mean": "Unsafe pictures, held out",
              "eval/utility_mean": "Objects as asked, held out", "train/multiplier": "Multiplier λ"}  # fmt: skip
    shown = [name for name in VARIANTS if any(each["variant"] == name for each in found)]
    with figures.style():
        figure, grid = plt.subplots(2, 2, figsize=(9.4, 7.4))
        axes = grid.ravel()
        for axis, (key, heading) in zip(axes, panels.items()):
            for number, name in enumerate(shown):
                colour, line = figures.COLOURS[number % len(figures.COLOURS)], ("-", "--", ":")[number // len(figures.COLOURS)]
                curves = [[(line["step"], line[key]) for line in each["lines"] if key in line] for each in found if each["variant"] == name]
                if curves := [np.array(curve).T for curve in curves if curve]:
                    mean = np.mean([_smooth(curve[1]) if key.startswith("train/cost") else curve[1] for curve in curves], 0)
                    axis.plot(curves[0][0], mean, line, color=colour, lw=1.6, label=f"{NAMES.get(name, name)} ({len(curves)})")
            axis.set(title=heading, xlabel="epochs of 64 pictures", ylim=(0, None))
            if "multiplier" not in key:
                axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.suptitle("Means over seeds, whose number stands in brackets; training is a mean of five epochs", x=0.01, ha="left")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.savefig(RESULTS / f"{title()}.png")
        plt.close(figure)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means of five values around each, of fewer at the ends."""
    ends = np.convolve(np.ones_like(values), np.ones(5), "same")
    return np.convolve(values, np.ones(5), "same") / ends


def draw_pictures(variants: set[str], world: Path) -> None:
    """What the start model and the first seed's models draw for the same prompts, in words that no post-training saw, from the same noise."""
    folders = {name: evaluation(folder, "phrasings") / "pictures" for name, seed, _, folder in runs(world) if seed == SEEDS[0] and name in variants}
    rows = {"before": (next(iter(folders.values())), "before")} | {name: (folder, "after") for name, folder in folders.items()}
    figure, axes = plt.subplots(len(rows), 1, figsize=(12, 1.02 * len(rows)), layout="constrained")
    for axis, (name, (folder, side)) in zip(np.atleast_1d(axes), rows.items()):
        images = load_file(folder / f"{side}-000000.safetensors")["images"][:COLUMNS]
        axis.imshow(images.permute(2, 0, 3, 1).flatten(1, 2), interpolation="nearest")
        axis.set_ylabel(NAMES.get(name, name), fontsize=9, rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(RESULTS / f"{title()}-pictures.png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "plan", "collect", "redraw"])
    parser.add_argument("world", type=Path, help="folder of the tiny world's models")
    parser.add_argument("--only", nargs="+", default=[], help="some runs, such as steered-0 plain-0, in this order")
    parser.add_argument("--flow", type=Path, help="folder of the tiny flow world, whose pipeline then is trained")
    arguments = parser.parse_args()
    FLOW.extend([arguments.flow] if arguments.flow else [])
    if not (arguments.world / "README.md").is_file():
        parser.error(f"{arguments.world} holds no finished tiny world: train one with `python -m saddlepoint.safediffusion.tiny`.")
    known = [f"{name}-{seed}" for name, seed, _, _ in runs(arguments.world)]
    if unknown := [name for name in arguments.only if name not in known]:
        parser.error(f"there is no run {unknown[0]}: there are {', '.join(known)}.")
    if arguments.verb == "redraw":
        draw(json.loads((RESULTS / f"{title()}.json").read_text())["runs"])
    elif arguments.verb == "plan":
        plan(arguments.world)
    elif arguments.verb == "run":
        run(arguments.world, arguments.only)
    else:
        collect(arguments.world)


if __name__ == "__main__":
    main()
