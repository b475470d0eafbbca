"""The penalties of ALGD's energies over a violation, and their slopes: results/penalties.png. It needs no run.

    python benchmarks/penalties.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from saddlepoint import figures
from saddlepoint.algd.energy import ENERGIES, Constraint

RESULTS = Path(__file__).resolve().parent / "results"
MULTIPLIER, RHO = 1.0, {"plain": 0.3, "augmented": 1.0, "relative": 0.3}
"""lambda, and the penalty weights that the presets give the energies"""


def penalty(energy: str, violation: torch.Tensor) -> torch.Tensor:
    """What the energy adds to -Q where costs are counted in budgets: (points,)."""
    one = torch.ones(1, dtype=violation.dtype)
    constraint = Constraint(MULTIPLIER * one, one, one, RHO[energy], 0.0)
    return ENERGIES[energy](torch.zeros_like(violation)[None], (1 + violation)[None], constraint)


def main() -> None:
    violation = torch.linspace(-1, 3, 401, dtype=torch.float64, requires_grad=True)
    with figures.style():
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2))
        for colour, energy in zip(figures.COLOURS, RHO):
            value = penalty(energy, violation)
            (slope,) = torch.autograd.grad(value.sum(), violation)
            label = energy if energy == "plain" else f"{energy}, ρ = {RHO[energy]:g}"
            axes[0].plot(violation.detach(), value.detach(), color=colour, label=label)
            axes[1].plot(violation.detach(), slope, color=colour)
        for axis, title in zip(axes, ("Penalty", "Its slope, the effective multiplier")):
            axis.axvline(0, color=figures.INK, ls=(0, (5, 4)), lw=1)
            axis.set(title=title, xlabel="violation v, in budgets")
        axes[0].annotate("budget", (0, axes[0].get_ylim()[1]), xytext=(4, -10), textcoords="offset points", fontsize=9)
        axes[0].legend(loc="lower right")
        figure.savefig(RESULTS / "penalties.png")
        plt.close(figure)


if __name__ == "__main__":
    main()
