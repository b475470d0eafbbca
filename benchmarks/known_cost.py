"""How much of the cost to come can be known: a network fitted to what really followed in some episodes, asked in others, beside the run's own cost critic.

    python benchmarks/known_cost.py RUN [EPISODES]      # correlations by discount, printed
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from saddlepoint.constrained.calibration import to_go
from saddlepoint.envs.batch import EnvBatch
from saddlepoint.policies import load_policy
from saddlepoint.train.threads import use_threads

DISCOUNTS, SIDE_BY_SIDE, UPDATES = (0.97, 0.9, 0.8, 0.5, 0.0), 20, 1500


def main(folder: Path, episodes: int) -> None:
    use_threads(1)
    learner, setup = (policy := load_policy(folder)).learner, policy.setup
    generator, waves = torch.Generator().manual_seed(1), []
    for wave in range(episodes // SIDE_BY_SIDE):
        envs = EnvBatch(setup, SIDE_BY_SIDE, seed=777 + wave)
        seen, steps = torch.as_tensor(envs.reset()), []
        for _ in range(envs.spec.horizon or 0):
            with torch.no_grad():
                action = learner.act(seen, "stochastic", generator)
                said = learner.predict(seen, action)["cost"][:, 0]  # type: ignore[attr-defined]
                state = learner.encoder(seen)  # type: ignore[attr-defined]
            step = envs.step(action.numpy())
            steps.append((torch.cat([state, action], -1), said, torch.as_tensor(step.cost[:, 0])))
            seen = torch.as_tensor(step.observation)
        envs.close()
        waves.append([torch.stack(part) for part in zip(*steps, strict=True)])
    x, said, cost = (torch.cat(part, 1) for part in zip(*waves, strict=True))  # (steps, episodes, ...)
    keep, held = len(cost) * 4 // 5, episodes * 3 // 4  # what has a future; what is fitted to
    for discount in DISCOUNTS:
        ended = np.zeros(cost.shape, bool)
        ended[-1] = True
        wanted = torch.as_tensor(to_go(cost.numpy(), discount, ended), dtype=torch.float32)[:keep]
        fitted = fit(x[:keep, :held].flatten(0, 1), wanted[:, :held].flatten())
        with torch.no_grad():
            found = fitted(x[:keep, held:].flatten(0, 1))[:, 0]
        answers = wanted[:, held:].flatten().numpy()
        fit_r, run_r = (np.corrcoef(guess.numpy(), answers)[0, 1] for guess in (found, said[:keep, held:].flatten()))
        print(f"discount {discount}: fitted {fit_r:.2f}, the run's critic {run_r:.2f}")


def fit(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """(rows, inputs), (rows,) -> a network of y in units of its deviation."""
    torch.manual_seed(0)
    layers = [m for i, o in ((x.shape[1], 256), (256, 256)) for m in (nn.Linear(i, o), nn.LayerNorm(o), nn.SiLU())]
    net, scale = nn.Sequential(*layers, nn.Linear(256, 1)), y.std() + 1e-6
    adam = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(UPDATES):
        rows = torch.randint(len(x), (256,))
        adam.zero_grad()
        (net(x[rows])[:, 0] - y[rows] / scale).square().mean().backward()
        adam.step()
    return net


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 160)
