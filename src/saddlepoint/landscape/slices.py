"""The energy over a 2-D slice of the action space, and the denoising paths seen in it: numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD
from saddlepoint.landscape.states import ChosenState, choose_states
from saddlepoint.nn.normaliser import NormalisedLearner
from saddlepoint.policies import load_policy
from saddlepoint.train import run as run_folder
from saddlepoint.train.at_budget import AtBudget
from saddlepoint.types import UserError

KINDS: tuple[str, ...] = ("plain", "augmented")
POINTS = 81
SAMPLES = 200
WITH_ENERGY = frozenset({"algd"})
"""systems whose policy follows an energy over actions"""


@dataclass(frozen=True)
class Slice:
    """What one state looks like. Actions are in the environment's own units."""

    state: ChosenState
    dims: tuple[int, int]
    """action dimensions along the horizontal and the vertical axis"""
    axes: tuple[np.ndarray, np.ndarray]  # (points,) each, from bound to bound
    energy: dict[str, np.ndarray]  # (points, points), row = the vertical axis; other dimensions as in ``action``
    paths: np.ndarray  # (K + 1, samples, 2): the start in row K, the sampled action in row 0
    action: np.ndarray  # (2,) the noise-free action


@dataclass(frozen=True)
class Landscape:
    """The slices of one run's newest checkpoint."""

    env: str
    step: int
    """environment steps that the policy was trained for"""
    multiplier: tuple[float, ...]
    budget: tuple[float, ...]
    """h, as the cost critic is held to it"""
    rho: float
    cost_unit: str
    """what lambda and rho count costs in"""
    slices: list[Slice]

    def describe(self) -> str:
        """One line for a caption."""
        multiplier = ", ".join(f"{value:.3g}" for value in self.multiplier)
        budget = ", ".join(f"{value:.4g}" for value in self.budget)
        return (
            f"{self.env} after {self.step:,} steps: λ = {multiplier}, ρ = {self.rho:g} a {self.cost_unit}, h = {budget}"
        )


def landscape(run: Path, states: int, seed: int, dims: tuple[int, int] | None = None) -> Landscape:
    """The landscape of a run's newest whole checkpoint at ``states`` states that its policy meets.

    ``dims`` are two action dimensions; None takes those in which the policy's samples are spread most, as a share of
    the bounds. Raises ``UserError`` for a run without a checkpoint or without an energy, and for impossible ``dims``.
    """
    system = run_folder.read(run)["system"]
    if system not in WITH_ENERGY:
        raise UserError(
            f"{run} was trained with {system}, which has no energy over actions: give a run of"
            f" {', '.join(WITH_ENERGY)}."
        )
    policy = load_policy(run)
    agent: Any = policy.learner
    see = None
    if isinstance(agent, NormalisedLearner):
        agent, see = agent.inner, agent.normaliser
    elif isinstance(agent, AtBudget):
        agent, see = agent.learner, agent.seen
    assert isinstance(agent, ALGD)
    _require_dims(dims, agent.shape.action, policy.env)
    chosen = choose_states(agent, policy.setup, states, seed, see)
    generator = torch.Generator(agent.device).manual_seed(seed)
    found = [_sample(agent, state, generator) for state in chosen]
    dims = dims or widest(np.stack([chains[0] for _, chains, _ in found]), agent.policy.box.scale.numpy())
    slices = [
        Slice(
            state, dims, bounds(agent, dims, POINTS),
            {kind: energy_plane(agent, row, centre, dims, kind) for kind in KINDS},
            chains[..., dims], centre[0, list(dims)].numpy(),
        )
        for state, (row, chains, centre) in zip(chosen, found, strict=True)
    ]  # fmt: skip
    budget, multiplier = tuple(agent.budget.tolist()), tuple(agent.multiplier.tolist())
    return Landscape(policy.env, policy.step, multiplier, budget, agent.config.rho, agent.config.cost_unit, slices)


def bounds(agent: ALGD, dims: tuple[int, int], points: int) -> tuple[np.ndarray, np.ndarray]:
    """``points`` evenly spaced actions from bound to bound, for each of the two dimensions."""
    low, high = agent.shape.action_low, agent.shape.action_high
    first, second = (np.linspace(low[dim], high[dim], points) for dim in dims)
    return first, second


def energy_plane(
    agent: ALGD, state: Tensor, centre: Tensor, dims: tuple[int, int], kind: str, points: int = POINTS
) -> np.ndarray:
    """L over two action dimensions, (points, points) with row = the second; the other dimensions are those of
    ``centre``.

    ``state`` (1, observation), ``centre`` (1, action).
    """
    horizontal, vertical = np.meshgrid(*bounds(agent, dims, points), indexing="xy")
    actions = centre.expand(points * points, -1).clone()
    actions[:, dims[0]] = torch.as_tensor(horizontal.ravel()).to(actions)
    actions[:, dims[1]] = torch.as_tensor(vertical.ravel()).to(actions)
    return agent.energies(state, actions.unsqueeze(1), kind).view(points, points).numpy()


def widest(samples: np.ndarray, scale: np.ndarray) -> tuple[int, int]:
    """The two action dimensions, in ascending order, whose samples (states, samples, action) spread most.

    Spread is the std over samples as a share of ``scale`` (action,), averaged over the states.
    """
    spread = (samples.std(axis=1) / scale).mean(axis=0)
    first, second = sorted(np.argsort(-spread, kind="stable")[:2].tolist())
    return first, second


def _sample(agent: ALGD, state: ChosenState, generator: torch.Generator) -> tuple[Tensor, np.ndarray, Tensor]:
    """The state (1, observation), its denoising paths (K + 1, samples, action) and its noise-free action (1,
    action)."""
    row = torch.as_tensor(state.observation, dtype=agent.dtype)[None]
    chains = agent.paths(row.expand(SAMPLES, -1), agent.policy.draw(SAMPLES, generator))
    return row, chains.numpy(), agent.act(row, "deterministic", generator).clone()


def _require_dims(dims: tuple[int, int] | None, actions: int, env: str) -> None:
    if actions < 2:
        raise UserError(f"{env} has one action dimension, and a landscape is drawn over two: choose another task.")
    if dims is None:
        return
    if dims[0] == dims[1] or not all(0 <= dim < actions for dim in dims):
        raise UserError(
            f"--dims {dims[0]} {dims[1]} must be two different action dimensions of {env}, from 0 to {actions - 1}."
        )
