# %% [markdown]
# # Tutorial: the toy
#
# A point travels from the left to a goal on the right. A round hazard lies in its way, and every step inside it costs
# 1. At most 1 may be spent in an episode. We train a policy without the constraint and one with it, and look at what
# the constraint changes: the paths, the numbers, and the energy that guides the policy.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from saddlepoint import ALGD, ALGDConfig, TrainConfig, check_env, figures, load_policy, train
from saddlepoint.cli import main as saddlepoint
from saddlepoint.envs.toy import ARENA, GOAL, HAZARD_RADIUS, move, observe
from saddlepoint.train.log import read_metrics

STEPS = 5_000
ENV = "saddlepoint/Toy-v0"

# %% [markdown]
# ## What the task is
#
# `check_env` plays some hundred random steps and says what the environment is. The observation tells the point where
# it is, the action is its velocity.

# %%
shape = check_env(ENV)
print(f"observation: {shape.observation} numbers, action: {shape.action} numbers, constraints: {shape.constraints}")

# %% [markdown]
# ## Train
#
# `--energy none` leaves the constraint out: the policy follows the reward alone. The other run has the defaults.
# `train` returns the run's folder.


# %%
def run(energy):
    config = TrainConfig(env=ENV, total_steps=STEPS, eval_every=STEPS // 4, threads=1, out=Path("runs", energy))
    return train(config, ALGD, ALGDConfig(energy=energy))


free = run("none")

# %%
safe = run("relative")

# %% [markdown]
# Each evaluation plays ten episodes noise-free and ten sampled, and says whether both are within the budget.
# [First run](first_run.md) explains every number of these lines.
#
# ## Curves
#
# All numbers of a run lie in its `metrics.jsonl`, one JSON object a line.


# %%
def column(folder, kind, key):
    return np.array([(line["step"], line[key]) for line in read_metrics(folder) if line["kind"] == kind and key in line]).T


with figures.style():
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3))
    for colour, (name, folder) in zip(figures.COLOURS, {"without the constraint": free, "with it": safe}.items()):
        axes[0].plot(*column(folder, "eval", "eval/return_mean"), "o-", color=colour, label=name)
        axes[1].plot(*column(folder, "eval", "eval/cost_mean"), "o-", color=colour)
    axes[2].plot(*column(safe, "train", "train/multiplier"), color=figures.COLOURS[1])
    figures.mark_budget(axes[1], 1, "budget")
    for axis, title in zip(axes, ("Return of an episode", "Cost of an episode", "Multiplier λ of the second")):
        axis.set(title=title, xlabel="environment steps")
        axis.xaxis.set_major_formatter(figures.thousands)
    axes[0].legend()
    figure.savefig("curves.png")

# %% [markdown]
# ![Return, cost and multiplier of both runs](curves.png)
#
# ## Paths
#
# A policy is loaded from a run's folder. It acts for one observation, or for a batch of them.


# %%
def paths(folder, count=40):
    """(steps + 1, count, 2): sampled episodes from evenly spread starts."""
    policy, generator = load_policy(folder), torch.Generator().manual_seed(0)
    position = np.stack([np.full(count, -1.0), np.linspace(-0.6, 0.6, count)], 1)
    track = [position]
    for _ in range(60):
        position, *_ = move(position, policy.act(observe(position), "stochastic", generator))
        track.append(position)
    return np.stack(track)


with figures.style():
    figure, axes = plt.subplots(1, 2, figsize=(8, 4))
    for axis, (title, folder) in zip(axes, {"Without the constraint": free, "Within a budget of 1": safe}.items()):
        axis.add_patch(plt.Circle((0, 0), HAZARD_RADIUS, color=figures.COLOURS[1], alpha=0.25, lw=0))
        axis.plot(*GOAL, "*", color=figures.COLOURS[2], ms=14)
        for track in paths(folder).transpose(1, 0, 2):
            axis.plot(*track.T, color=figures.COLOURS[0], lw=0.8, alpha=0.6)
        axis.set(xlim=(-ARENA, ARENA), ylim=(-ARENA, ARENA), aspect="equal", title=title, xlabel="x", ylabel="y")
        figures.panel_map(axis)
    figure.savefig("paths.png")

# %% [markdown]
# ![Forty sampled episodes of both policies](paths.png)
#
# Without the constraint all go straight through. Within the budget they pass above the hazard, close by. After so short
# a run they do not yet turn down to the goal.
#
# ## The verbs
#
# The same folder serves every verb of the command line. Here they are called from Python; in a shell, write
# `saddlepoint evaluate runs/relative --episodes 20`.

# %%
saddlepoint(["evaluate", str(safe), "--episodes", "20"])

# %%
saddlepoint(["landscape", str(safe), "--out", "landscape.png"])

# %% [markdown]
# ![The energy at places of one episode](landscape.png)
#
# Each panel is the action square: velocity to the right (action 0) and upwards (action 1). Dark is low energy, which the
# policy seeks. The white lines are the denoising paths of sampled actions: they begin as noise and end where the energy
# is low. At the start that is up and to the right; on the right of the hazard it is to the right.
#
# ```
# saddlepoint report runs/none runs/relative --out report.html
# saddlepoint export runs/relative policy.onnx
# ```
#
# Next: [a robot of your own](tutorial_robot_arm.md).
