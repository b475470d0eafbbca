"""The plain and the augmented Lagrangian over the action square at the toy's fork, and what the policy does there.

    python benchmarks/toy_landscape.py RUN [--x -0.75]      # results/toy_landscape.png and .json

RUN is an ALGD run on saddlepoint/Toy-v0. By symmetry the fork lies before the hazard at y = 0, where up and down are equally good; a trained policy has its
own, near it, where its samples are shared evenly between the two ways: it is searched for, and named in the picture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm

from saddlepoint import figures, load_policy
from saddlepoint.envs.toy import ARENA, GOAL, HAZARD_RADIUS, move, observe
from saddlepoint.landscape.slices import energy_plane

RESULTS = Path(__file__).resolve().parent / "results"


def fork(policy, x: float) -> float:
    """The y, near the axis of symmetry, at which as many sampled actions go up as down."""
    heights = np.linspace(-0.25, 0.25, 51)
    rows = observe(np.stack([np.full(51, x), heights], 1)).repeat(200, 0)
    actions = policy.act(rows, "stochastic", torch.Generator().manual_seed(2))
    up = (actions[:, 1] > 0).reshape(51, 200).mean(1)
    return float(heights[np.abs(up - 0.5).argmin()])


def paths(policy, count: int, seed: int) -> np.ndarray:
    """(steps + 1, count, 2) positions of stochastic episodes from (-1, y), y evenly spread over the toy's starts."""
    generator = torch.Generator().manual_seed(seed)
    position = np.stack([np.full(count, -1.0), np.linspace(-0.6, 0.6, count)], 1)
    track = [position]
    for _ in range(60):
        position, *_ = move(position, policy.act(observe(position), "stochastic", generator))
        track.append(position)
    return np.stack(track)


def draw(
    planes: dict[str, np.ndarray], actions: np.ndarray, tracks: np.ndarray, place: str, multiplier: float, steps: int
) -> None:
    """Both energies on one colour scale, each above its own lowest, and sampled episodes beside them."""
    largest = max(float(np.ptp(plane)) for plane in planes.values())
    norm = PowerNorm(0.5, 0.0, largest)
    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.3), width_ratios=(1, 1, 1.05))
        for axis, (kind, plane) in zip(axes, planes.items(), strict=False):
            energy = plane - plane.min()
            image = axis.imshow(energy, origin="lower", extent=(-1, 1, -1, 1), cmap=figures.MAP, norm=norm)
            line = np.linspace(-1, 1, len(plane))
            axis.contour(line, line, energy, largest * np.linspace(0.08, 0.95, 10) ** 2, colors="w", linewidths=0.5, alpha=0.6)
            axis.scatter(*actions.T, s=4, color="#E69F00", alpha=0.7, linewidths=0)
            axis.set(title=f"{kind.capitalize()} Lagrangian", xlabel="velocity x", ylabel="velocity y", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
            figures.panel_map(axis)
        figure.colorbar(image, ax=axes[:2], shrink=0.8, label="energy above the lowest")
        axes[2].add_patch(plt.Circle((0, 0), HAZARD_RADIUS, color=figures.COLOURS[1], alpha=0.25, lw=0))
        axes[2].annotate("hazard", (0, 0), ha="center", va="center", color=figures.COLOURS[1])
        axes[2].plot(*GOAL, "*", color=figures.COLOURS[2], ms=14)
        axes[2].annotate("goal", GOAL, xytext=(0, 11), textcoords="offset points", ha="center", color=figures.COLOURS[2])
        for track in tracks.transpose(1, 0, 2):
            axes[2].plot(*track.T, color=figures.COLOURS[0], lw=0.8, alpha=0.6)
        axes[2].set(xlim=(-ARENA, ARENA), ylim=(-ARENA, ARENA), aspect="equal", title="40 sampled episodes", xlabel="x", ylabel="y")
        figures.panel_map(axes[2])
        figure.suptitle(f"Toy after {steps:,} steps: the fork at {place}, λ = {multiplier:.2f}; orange: sampled actions", x=0.01, ha="left")
        RESULTS.mkdir(exist_ok=True)
        figure.savefig(RESULTS / "toy_landscape.png")
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--x", type=float, default=-0.75, help="where on the axis before the hazard")
    arguments = parser.parse_args()
    policy = load_policy(arguments.run)
    agent = policy.learner
    y = fork(policy, arguments.x)
    state = torch.from_numpy(observe(np.array([[arguments.x, y]])))
    multiplier = float(agent.multiplier[0])
    generator = torch.Generator().manual_seed(0)
    actions = policy.act(state.numpy().repeat(2000, 0), "stochastic", generator)
    tracks = paths(policy, 40, 1)

    planes = {kind: energy_plane(agent, state, torch.zeros(1, 2), (0, 1), kind) for kind in ("plain", "augmented")}
    draw(planes, actions[:500], tracks, f"({arguments.x:g}, {y:.2f})", multiplier, policy.step)

    ends = tracks[-1]
    middle = tracks[np.abs(tracks[..., 0]).argmin(0), np.arange(tracks.shape[1])]  # where each crosses x = 0
    crossed = ends[:, 0] > 0.5
    found = {
        "run": json.loads((arguments.run / "config.json").read_text()), "fork": [arguments.x, y], "multiplier": multiplier,
        "action_y_quantiles": np.quantile(actions[:, 1], [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(),
        "share_of_actions_up": float((actions[:, 1] > 0.3).mean()), "share_of_actions_down": float((actions[:, 1] < -0.3).mean()),
        "share_between": float((np.abs(actions[:, 1]) <= 0.3).mean()), "episodes_past_the_hazard": int(crossed.sum()),
        "episodes_above": int((crossed & (middle[:, 1] > 0)).sum()), "episodes_below": int((crossed & (middle[:, 1] < 0)).sum()),
    }  # fmt: skip
    (RESULTS / "toy_landscape.json").write_text(json.dumps(found, indent=1))
    print({k: v for k, v in found.items() if k != "run"})


if __name__ == "__main__":
    main()
