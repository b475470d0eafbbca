"""Which encoding of a lidar tells in layouts never seen what an action costs and earns? benchmarks/results/unseen-layouts.json.

    python benchmarks/unseen_layouts.py RUN [LAYOUTS ...]      # of a PointGoal1 run with a replay in its checkpoint; 50 100 250 by default

A network learns, from a run's replay, the cost and the reward of five steps from an observation and its action in some layouts, and is asked in sixty
others: R^2, the mean of three draws of layouts. ``shared`` is not an encoding but a network that applies one small MLP to every sector and pools over the
ring: what could be learnt instead of being given.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from learning import RESULTS, commit, machine
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.nn.encoding import Encoder, Zoom, make_encoder
from saddlepoint.train import run as run_folder
from saddlepoint.train.threads import use_threads

STEPS, ASKED, DRAWS, BATCH, UPDATES, WIDTH, RATE = 5, 60, 3, 128, 4000, 256, 4e-4
ENCODINGS = ("raw", "zoom", "objects", "shared")


class Data(NamedTuple):
    observation: Tensor
    action: Tensor
    wanted: Tensor
    """(rows, 2): cost and reward of ``STEPS`` steps, each divided by its deviation"""
    layout: Tensor
    """(rows,) numbers of the episodes"""


class Shared(nn.Module):
    """One MLP of every sector's readings, its direction, the rest of the observation and the action; its largest and its mean output over the ring."""

    def __init__(self, seen: Tensor, lidars: tuple[tuple[int, int], ...], actions: int, inner: int = 64) -> None:
        super().__init__()
        bins = lidars[0][1]
        self.rings = torch.tensor([list(range(first, first + bins)) for first, _ in lidars])
        self.others = torch.tensor(sorted(set(range(seen.shape[1])).difference(self.rings.flatten().tolist())))
        self.rest = Zoom(len(self.others))
        self.rest.observe(seen[:, self.others])
        angle = (torch.arange(bins) + 0.5) * (2 * math.pi / bins)
        self.towards = torch.stack([angle.cos(), angle.sin()], -1)
        size = 3 * len(lidars) + 2 + len(self.others) + actions
        self.sector = nn.Sequential(
            nn.Linear(size, inner), nn.LayerNorm(inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU()
        )
        self.head = head(2 * inner + self.rest.outputs + actions)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        v, others = observation[:, self.rings].mT, observation[:, self.others]
        rows = torch.cat([others, action], -1).unsqueeze(1).expand(-1, v.shape[1], -1)
        near = ((v - 0.9) / 0.1).clamp(0, 1), ((0.1 - v) / 0.1).clamp(0, 1)
        found = self.sector(torch.cat([v, *near, self.towards.expand(len(v), -1, -1), rows], -1))
        return self.head(torch.cat([found.amax(1), found.mean(1), self.rest(others), action], -1))


class Given(nn.Module):
    """An MLP of the encoding and the action."""

    def __init__(self, encoder: Encoder, seen: Tensor, actions: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head(encoder.outputs + actions)
        encoder.observe(seen)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(observation), action], -1))


def head(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(m for i in (inputs, WIDTH) for m in (nn.Linear(i, WIDTH), nn.LayerNorm(WIDTH), nn.SiLU())),
        nn.Linear(WIDTH, 2),
    )


def read(folder: Path) -> Data:
    """Every row of the replay that has ``STEPS`` steps of its episode before it ends."""
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    saved = load_file(newest / "replay.safetensors")
    envs = int(saved["position"][1])
    rows = {name: saved[name].unflatten(0, (-1, envs)) for name in ("observation", "action", "reward", "cost", "age")}
    age = rows["age"]
    layout = (age == 0).cumsum(0) * envs + torch.arange(envs)
    whole = layout[STEPS - 1 :] == layout[: len(layout) - STEPS + 1]
    sums = [
        rows[name].reshape(len(age), envs, -1)[..., 0].unfold(0, STEPS, 1).sum(-1)[whole] for name in ("cost", "reward")
    ]
    wanted = torch.stack([each / each.std() for each in sums], -1)
    observation, action, number = (each[: len(whole)][whole] for each in (rows["observation"], rows["action"], layout))
    return Data(observation, action, wanted, number)


def explained(data: Data, lidars: tuple[tuple[int, int], ...], encoding: str, layouts: int, draw: int) -> list[float]:
    """R^2 of cost and of reward in ``ASKED`` layouts, after learning in ``layouts`` others."""
    numbers = data.layout.unique()
    order = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(draw))]
    asked, learnt = (torch.isin(data.layout, part) for part in (order[:ASKED], order[ASKED : ASKED + layouts]))
    torch.manual_seed(draw)
    observation, action, wanted = data.observation[learnt], data.action[learnt], data.wanted[learnt]
    actions, size = action.shape[1], observation.shape[1]
    if encoding == "shared":
        network: nn.Module = Shared(observation, lidars, actions)
    else:
        network = Given(make_encoder(encoding, size, lidars), observation, actions)  # type: ignore[arg-type]
    adam = torch.optim.Adam(network.parameters(), RATE)
    for _ in range(UPDATES):
        rows = torch.randint(len(wanted), (BATCH,))
        adam.zero_grad()
        (network(observation[rows], action[rows]) - wanted[rows]).square().mean().backward()
        adam.step()
    with torch.no_grad():
        found = network(data.observation[asked], data.action[asked])
    error = (found - data.wanted[asked]).square().mean(0)
    return (1 - error / data.wanted[asked].var(0)).tolist()


def main(folder: Path, layouts: list[int]) -> None:
    use_threads(1)
    data, envs = read(folder), EnvBatch(run_folder.setup_of(run_folder.read(folder)), 1, seed=0)
    lidars = envs.shape.lidars
    envs.close()
    rows, began = [], time.perf_counter()
    for count, encoding in itertools.product(layouts, ENCODINGS):
        cost, reward = (
            torch.tensor([explained(data, lidars, encoding, count, draw) for draw in range(DRAWS)]).mean(0).tolist()
        )
        rows.append({"layouts": count, "encoding": encoding, "cost": cost, "reward": reward})
        print(f"{count} layouts, {encoding}: R^2 of the cost {cost:.2f}, of the reward {reward:.2f}", flush=True)
    stamp = {
        "command": "python benchmarks/unseen_layouts.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": machine(),
    }
    content = stamp | {"wall_s": time.perf_counter() - began, "rows_of_the_replay": len(data.wanted), "results": rows}
    (RESULTS / "unseen-layouts.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(text) for text in sys.argv[2:]] or [50, 100, 250])
