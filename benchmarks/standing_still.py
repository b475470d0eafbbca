"""Where in an episode a policy stops earning: return and cost of each fifth of whole episodes, sampled.

    python benchmarks/standing_still.py RUN [EPISODES] [NOISE_MEMORY]      # printed; the memory is the run's own where none is given
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from saddlepoint.envs.batch import EnvBatch
from saddlepoint.policies import load_policy
from saddlepoint.train.acting import Actor
from saddlepoint.train.threads import use_threads

FIFTHS, NOTHING = 5, 0.3
"""a fifth of an episode that earns less than ``NOTHING`` counts as one that stood still"""


def main(folder: Path, episodes: int, memory: str | None) -> None:
    use_threads(1)
    policy = load_policy(folder, acting={} if memory is None else {"noise_memory": float(memory)})
    envs, generator = EnvBatch(policy.setup, episodes, seed=4242), torch.Generator().manual_seed(1)
    actor, seen, answers = Actor(policy.learner, episodes, "cpu"), envs.reset(), []
    steps = (envs.spec.horizon or 1000) // FIFTHS * FIFTHS
    for _ in range(steps):
        step = envs.step(actor.act(seen, "stochastic", generator))
        answers.append((step.reward, step.cost[:, 0]))
        seen = step.observation
    envs.close()
    earned, paid = (np.array(part).reshape(FIFTHS, -1, episodes).sum(1) for part in zip(*answers, strict=True))
    print(f"return {earned.sum(0).mean():.1f}, cost {paid.sum(0).mean():.1f} (median {np.median(paid.sum(0)):.1f}, largest {paid.sum(0).max():.0f})")
    for name, values in (("return", earned.mean(1)), ("cost", paid.mean(1)), ("share that stood still", (earned < NOTHING).mean(1))):
        print(f"{name} by fifths: {', '.join(f'{value:.2f}' for value in values)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40, sys.argv[3] if len(sys.argv) > 3 else None)
