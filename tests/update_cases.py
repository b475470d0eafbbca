"""Three float64 updates from fixed draws, and a few numbers that identify the state they end in.

``python -m tests.update_cases FILE`` records them. tests/data/updates.json is of commit f03bf82, whose derivatives were written by hand.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import PRESETS
from saddlepoint.baselines.config import CAL_EARLIER, SAC_LAG_PRESETS, SAC_PID_PRESETS, SAC_PRESETS
from saddlepoint.baselines.constrained import CAL, SACPID, SACLag
from saddlepoint.baselines.sac import SAC
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.types import Batch, EnvShape

SIZES = {"critic_hidden": (16, 16), "policy_hidden": (16, 16), "batch_size": 8}
ALGD_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "parity": {"preset": "parity"},
    "parity-vp": {"preset": "parity-vp"},
    "vp": {"schedule": "vp"},
    "clean": {"prediction": "clean"},
    "score": {"prediction": "score"},
    "through the point": {"detach_point": False},
    "after": {"score_pairing": "after", "detach_point": False},
    "action space": {"score_space": "action", "entropy": "none"},
    "mean form": {"score_form": "mean"},
    "unscaled": {"score_loss_scale": "one"},
    "plain": {"energy": "plain"},
    "none": {"energy": "none"},
    "tuned": {"entropy": "tuned"},
    "own targets": {"cost_bootstrap": "own", "nonnegative_costs": False},
    "pair": {"cost_bootstrap": "pair", "cost_polyak": 0.1, "target_every": 2},
    "pid": {"multiplier_rule": "pid"},
    "budgets": {"cost_unit": "budget", "multiplier_actions": "policy", "rho": 3.0},
}
BASELINES = {
    "sac": (SAC, SAC_PRESETS["earlier"]), "sac-lag": (SACLag, SAC_LAG_PRESETS["earlier"]), "sac-pid": (SACPID, SAC_PID_PRESETS["earlier"]),
    "cal": (CAL, CAL_EARLIER), "cal replay": (CAL, replace(CAL_EARLIER, multiplier_actions="replay")),
    "sac fixed": (SAC, replace(SAC_PRESETS["earlier"], entropy="fixed")),
}  # fmt: skip


def batches(constraints: int, generator: torch.Generator) -> list[Batch]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    low, high = torch.tensor([-2.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = []
    for _ in range(3):
        action = low + (high - low) * torch.rand(8, 2, generator=generator, dtype=torch.float64)
        ended = (torch.rand(8, generator=generator) < 0.2).double()
        found.append(Batch(draw(8, 3), action, draw(8), draw(8, constraints).abs() * 2, draw(8, 3), ended))
    return found


def fingerprint(state: dict[str, Tensor]) -> dict[str, list[float]]:
    """The sum of each tensor, and its products with two fixed random ones, summed."""
    found = {}
    for name, value in sorted(state.items()):
        if name.startswith("adam.") or name in ("generator", "updates"):
            continue
        draws = torch.Generator().manual_seed(value.numel())
        with_ = torch.randn(2, value.numel(), generator=draws, dtype=torch.float64)
        flat = value.double().flatten()
        found[name] = [float(flat.sum()), *(with_ @ flat).tolist()]
    return found


def run(agent: Any, constraints: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    needs = getattr(agent.config, "multiplier_actions", "policy") == "recent"
    cost = torch.linspace(1.0, 4.0, constraints, dtype=torch.float64) if needs else None
    metrics: dict[str, Any] = {}
    for batch in batches(constraints, generator):
        metrics = agent.update_batch(batch, agent.draw(8), cost)
    return {"state": fingerprint(agent.state_dict()), "metrics": {name: float(value) for name, value in metrics.items()}}


def cases() -> dict[str, tuple[Any, int]]:
    """An agent for each case, and how many constraints it has."""
    found: dict[str, tuple[Any, int]] = {}
    budgets = CostBudget(25.0), CostBudget(0.4, per="step", discounted=True)
    for constraints in (1, 2):
        shape = EnvShape(3, (-2.0, 0.0), (1.0, 0.5), constraints)
        for name, changes in ALGD_CASES.items():
            changes = dict(changes)
            config = replace(PRESETS[changes.pop("preset", "earlier")], **SIZES, score_weight=0.7, **changes)
            found[f"algd, {name}, {constraints}"] = ALGD(config, shape, budgets[:constraints], seed=1, dtype=torch.float64), constraints
        for name, (kind, config) in BASELINES.items():
            agent = kind(replace(config, **SIZES), shape, budgets[:constraints], seed=1, dtype=torch.float64)
            found[f"{name}, {constraints}"] = agent, constraints
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded = {name: run(agent, constraints) for name, (agent, constraints) in cases().items()}
    Path(sys.argv[1]).write_text(json.dumps(recorded, indent=0))
