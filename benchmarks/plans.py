"""What MBDPO's search finds without a learnt model, by the noise levels it visits; and what warm-ups earn.

    python benchmarks/plans.py        # benchmarks/results/plans.json

reach: how far plans come from zero where every action should be 1. near: how near they come to a point of the box, from zero and from 0.3 away.
flat: episodes of pendulum-swingup that meet a reward where all plans are worth the same. warmup: returns of episodes of uniform and of held actions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from learning import PUBLISHED, RESULTS, commit, machine  # noqa: E402
from saddlepoint.envs import EnvBatch  # noqa: E402
from saddlepoint.mbdpo.config import DEFAULT, PRESETS, MBDPOConfig  # noqa: E402
from saddlepoint.mbdpo.planner import denoise, mppi, plan_mean, propose, score_of_mean, visited  # noqa: E402
from saddlepoint.mbdpo.search import noise_levels  # noqa: E402
from saddlepoint.train.loop import HELD_STEPS  # noqa: E402

SMALL = PRESETS["small"]
FIRST = replace(SMALL, levels="betas", beta_last=2.5e-2, td_levels=2)
CONFIGS = {"small": SMALL, "first small": FIRST, "linear, wide": replace(FIRST, beta_last=0.25), "default": DEFAULT}
BATCH, EPISODES, DECISIONS = 100, 20, 500
Value = Callable[[Tensor], Tensor]


def normal(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def plan(c: MBDPOConfig, start: Tensor, value: Value, generator: torch.Generator, levels: int | None = None, averaged: int = 1, noisy: bool = False) -> Tensor:
    """A denoised plan (batch, horizon, action); its mean plans are averages of ``averaged`` searches, as a score network that has learnt them would give."""
    schedule = noise_levels(c)
    alpha_bar = schedule.alpha_bar.tolist()
    if noisy:
        start = start + ((1 - alpha_bar[-1]) / alpha_bar[-1]) ** 0.5 * normal(start.shape, generator)

    def score(x: Tensor, tau: int) -> Tensor:
        means = []
        for _ in range(averaged):
            plans = propose(x, alpha_bar[tau], normal((len(x), c.proposals, *x.shape[1:]), generator))
            means.append(plan_mean(plans, value(plans), c.temperature, c.elites))
        return score_of_mean(x, torch.stack(means).mean(0), alpha_bar[tau])

    return denoise(start, schedule, visited(c.steps, levels), score)


def reach() -> dict[str, dict[str, float]]:
    """Mean action of plans from zero, with the levels of TD targets and with all: searches as the score network learns from."""
    found: dict[str, dict[str, float]] = {}
    for name, c in CONFIGS.items():
        searched = replace(c, proposals=c.score_proposals, elites=c.score_elites)
        for action in (1, 6):
            for levels in (c.td_levels, None):
                generator = torch.Generator().manual_seed(0)
                plans = plan(searched, torch.zeros(BATCH, c.horizon, action), lambda p: p.sum((-1, -2)), generator, levels, averaged=16)
                said = "all levels" if levels is None else f"{levels} levels"
                found.setdefault(name, {})[f"{action} actions, {said}"] = round(float(plans.mean()), 3)
    return found


def near() -> dict[str, dict[str, float]]:
    """Root mean square distance of an entry from a point, with the small preset's numbers of proposals."""
    found: dict[str, dict[str, float]] = {}
    for name, c in {**CONFIGS, "MPPI": SMALL}.items():
        for action in (1, 6):
            for begin, noisy in (("zero", False), ("zero and noise", True), ("0.3 away", False), ("0.3 away and noise", True)):
                generator = torch.Generator().manual_seed(0)
                point = torch.rand(BATCH, c.horizon, action, generator=generator) * 2 - 1
                away = (point + 0.3 * normal(point.shape, generator)).clamp(-1, 1)
                start = torch.zeros_like(point) if begin.startswith("zero") else away

                def value(plans: Tensor, point: Tensor = point) -> Tensor:
                    return -(plans - point.unsqueeze(1)).square().sum((-1, -2))

                if name == "MPPI":
                    draws = normal((c.mppi_iterations, BATCH, c.proposals, *point.shape[1:]), generator)
                    std = (c.mppi_min_std, c.mppi_max_std)
                    plans = mppi(start, draws, lambda p, i: p, lambda p, i, of=value: of(p), c.temperature, c.elites, std, None)[0]
                else:
                    plans = plan(replace(c, proposals=SMALL.proposals, elites=SMALL.elites), start, value, generator, noisy=noisy)
                found.setdefault(name, {})[f"{action} actions, from {begin}"] = round(float((plans - point).square().mean().sqrt()), 4)
    return found


def returns(task: str, episodes: int, act: Callable[[int], np.ndarray]) -> np.ndarray:
    """(episodes,): returns of one episode each of ``act(step)`` (episodes, action)."""
    envs = EnvBatch(f"dmc/{task}", episodes, seed=0, needs_cost=False)
    envs.reset(0)
    earned = np.sum([envs.step(act(step)).reward for step in range(DECISIONS)], axis=0)
    envs.close()
    return earned


def actions_of(kind: str, episodes: int, action: int) -> Callable[[int], np.ndarray]:
    """Uniform actions, held ends of the bounds, or exploring plans of a config whose values are noise; all bounds are [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.zeros(episodes, SMALL.horizon, action)

    def act(step: int) -> np.ndarray:
        if kind == "uniform":
            return (torch.rand(episodes, action, generator=generator) * 2 - 1).numpy()
        if kind == "held":
            if step % HELD_STEPS == 0:
                kept[:, 0] = torch.rand(episodes, action, generator=generator).round() * 2 - 1
            return kept[:, 0].numpy().copy()
        name, _, start = kind.partition(", from ")
        before = torch.cat([kept[:, 1:], torch.zeros_like(kept[:, :1])], 1)
        config = replace(CONFIGS[name], proposals=SMALL.proposals, elites=SMALL.elites)
        kept[:] = plan(config, before, lambda p: normal(p.shape[:2], generator), generator, noisy=start == "noise")
        return (kept[:, 0] + config.action_noise * normal(kept[:, 0].shape, generator)).clamp(-1, 1).numpy()

    return act


def main() -> None:
    torch.set_num_threads(1)
    content = {"command": "python benchmarks/plans.py", "commit": commit(), "machine": machine(), "reach": reach(), "near": near()}
    kinds = ("uniform", "held", "first small, from the last", "first small, from noise", "small, from the last", "small, from noise")
    met = {kind: int((returns("pendulum-swingup", EPISODES, actions_of(kind, EPISODES, 1)) > 0).sum()) for kind in kinds}
    content["flat"] = {"episodes": EPISODES, "that met a reward": met}
    content["warmup"] = {}
    for task in PUBLISHED:
        envs = EnvBatch(f"dmc/{task}", 1, seed=0, needs_cost=False)
        size = envs.shape.action
        envs.close()
        content["warmup"][task] = {kind: round(float(returns(task, 4, actions_of(kind, 4, size)).mean()), 1) for kind in ("uniform", "held")}
    (RESULTS / "plans.json").write_text(json.dumps(content, indent=1) + "\n")
    for name in ("reach", "near", "flat", "warmup"):
        print(name, json.dumps(content[name], indent=1))


if __name__ == "__main__":
    main()
