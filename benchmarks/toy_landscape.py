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

from saddlepoint import load_policy
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

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for axis, kind in zip(axes, ("plain", "augmented"), strict=False):
        values = energy_plane(agent, state, torch.zeros(1, 2), (0, 1), kind)
        image = axis.imshow(values, origin="lower", extent=(-1, 1, -1, 1), cmap="viridis")
        axis.contour(
            np.linspace(-1, 1, len(values)),
            np.linspace(-1, 1, len(values)),
            values,
            12,
            colors="w",
            linewidths=0.5,
            alpha=0.6,
        )
        figure.colorbar(image, ax=axis, shrink=0.85)
        axis.scatter(*actions[:500].T, s=4, color="#D55E00", alpha=0.6)
        axis.set(
            title=f"{kind} Lagrangian at ({arguments.x}, {y:.2f}), lambda = {multiplier:.2f}",
            xlabel="velocity x",
            ylabel="velocity y",
        )
    axes[2].add_patch(plt.Circle((0, 0), HAZARD_RADIUS, color="#D55E00", alpha=0.25))
    axes[2].plot(*GOAL, "*", color="#009E73", ms=14)
    for track in tracks.transpose(1, 0, 2):
        axes[2].plot(*track.T, color="#0072B2", lw=0.8, alpha=0.6)
    axes[2].set(xlim=(-ARENA, ARENA), ylim=(-ARENA, ARENA), aspect="equal", title="40 sampled episodes")
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "toy_landscape.png", dpi=110)

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
