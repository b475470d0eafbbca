"""A small animated picture of one episode of a trained policy, for the README.

    python benchmarks/film.py RUN OUT.gif [--curves] [--seed 1000000] [--every 5] [--width 200] [--colours 96] [--frames 80]

With ``--curves`` the cost that the episode has paid so far stands beside it, and how cost and multiplier moved in training.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from PIL import Image

from saddlepoint import load_policy
from saddlepoint.envs.guarded import GuardedEnv
from saddlepoint.figures import COLOURS, mark_budget, style, thousands
from saddlepoint.train.video import record_video, render_headless
from saddlepoint.trained_policy import TrainedPolicy


def paid(policy: TrainedPolicy, seed: int) -> np.ndarray:
    """What the noise-free episode of ``seed`` has cost after each step, the first constraint alone: (steps,)."""
    game = GuardedEnv.open(policy.setup)
    try:
        observation, costs, ended = game.reset(seed), [], False
        while not ended:
            answer = game.step(policy.act(observation))
            observation, ended = answer.observation, answer.ended
            costs.append(float(answer.cost[0]))
    finally:
        game.close()
    return np.cumsum(costs)


def lines(run: Path, kind: str, *names: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of some metrics of a run."""
    found: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in names}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name in names:
            if line["kind"] == kind and name in line:
                found[name][0].append(line["step"])
                found[name][1].append(line[name])
    return found


def panels(run: Path, policy: TrainedPolicy, seed: int, steps: list[int], height: int) -> list[Image.Image]:
    """The curves beside each frame, whose ``steps`` of the episode are given."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    costs, limit = paid(policy, seed), policy.budgets[0].episode
    evaluated = lines(run, "eval", "eval/cost_mean", "eval/stochastic/cost_mean")
    trained = lines(run, "train", "train/multiplier")["train/multiplier"]
    pictures = []
    with style():
        figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(3.6, height / 100))
        top.set(xlim=(0, len(costs)), ylim=(0, 1.6 * max(limit, costs.max())), title="this episode: cost so far")
        mark_budget(top, limit)
        (curve,) = top.plot([], [], color=COLOURS[1])
        for (name, label), colour in zip((("eval/cost_mean", "noise-free"), ("eval/stochastic/cost_mean", "sampled")), COLOURS):
            middle.plot(*evaluated[name], color=colour, label=label)
        most = max([limit, *(value for _, values in evaluated.values() for value in values)])
        middle.set(title="training: cost of an episode", ylim=(0, 1.6 * most))  # room for the legend
        mark_budget(middle, limit)
        middle.legend(loc="upper right", fontsize=8, ncols=2, borderaxespad=0)
        bottom.plot(*trained, color=COLOURS[2])
        bottom.set(title="training: multiplier", xlabel="step")
        for axis in (middle, bottom):
            axis.xaxis.set_major_formatter(thousands)
        for step in steps:
            curve.set_data(range(1, step + 1), costs[:step])
            file = io.BytesIO()
            figure.savefig(file, dpi=100)
            pictures.append(Image.open(file).convert("RGB"))
        plt.close(figure)
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--curves", action="store_true", help="show cost, budget and multiplier beside the film")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the episode; the evaluation's own by default")
    parser.add_argument("--every", type=int, default=5, help="keep one frame of so many")
    parser.add_argument("--width", type=int, default=200)
    parser.add_argument("--colours", type=int, default=96)
    parser.add_argument("--frames", type=int, default=80, help="at most so many, from the start of the episode")
    arguments = parser.parse_args()
    render_headless()
    torch.set_num_threads(1)
    policy = load_policy(arguments.run)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "episode.mp4"
        steps = record_video(policy.learner, policy.setup, film, arguments.seed)
        reader: Any = imageio.get_reader(film)
        rate = reader.get_meta_data()["fps"]
        frames = [Image.fromarray(frame) for i, frame in enumerate(reader) if i % arguments.every == 0]
    frames = frames[: arguments.frames]
    height = round(frames[0].height * arguments.width / frames[0].width)
    small = [f.resize((arguments.width, height), Image.Resampling.LANCZOS) for f in frames]
    if arguments.curves:
        at = [max(i * arguments.every, 1) for i in range(len(small))]
        beside = panels(arguments.run, policy, arguments.seed, at, height)
        joined = []
        for frame, panel in zip(small, beside):
            whole = Image.new("RGB", (frame.width + panel.width, height), "white")
            whole.paste(frame, (0, 0))
            whole.paste(panel, (frame.width, 0))
            joined.append(whole)
        small = joined
    shown = small[:: max(1, len(small) // 8)]  # the palette must hold what comes into view later
    strip = Image.new("RGB", (small[0].width * len(shown), height))
    for i, frame in enumerate(shown):
        strip.paste(frame, (i * small[0].width, 0))
    palette = strip.quantize(arguments.colours, dither=Image.Dither.NONE)
    small = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in small]
    small[0].save(arguments.out, save_all=True, append_images=small[1:], duration=1000 * arguments.every / rate, loop=0, optimize=True)
    print(f"{arguments.out}: {len(small)} of {steps} steps, {arguments.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
