"""Encodings of observations against numpy, and through training: saved, exported, acted with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.export import export_module
from saddlepoint.baselines import export as baseline_export
from saddlepoint.baselines.config import SACLagConfig
from saddlepoint.baselines.constrained import SACLag
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.nn.encoding import Raw, Zoom
from saddlepoint.types import Batch, EnvShape


def test_zoom_shows_both_ends_of_the_range_seen_so_far(generator):
    rows = torch.randn(50, 3, generator=generator)
    rows[:, 2] = 4.0  # an entry that never moves
    zoom, split = Zoom(3), 20
    for part in (rows[:split], rows[split:]):
        zoom.observe(part)
    x = rows.numpy()
    low, high = x.min(0), x.max(0)
    u = np.full_like(x, 0.5)
    u[:, :2] = ((x - low) / np.where(high > low, high - low, 1))[:, :2]
    wanted = np.concatenate([x, np.clip((u - 0.9) / 0.1, 0, 1), np.clip((0.1 - u) / 0.1, 0, 1)], -1)
    np.testing.assert_allclose(zoom(rows).numpy(), wanted, atol=1e-5)
    assert zoom.outputs == 9
    assert float(zoom(rows)[:, 3:5].amax()) == 1.0
    torch.testing.assert_close(Zoom(3)(rows)[:, 3:], torch.zeros(50, 6))  # nothing seen yet: no ends


@pytest.mark.parametrize("high", [1e-42, 3e38])
def test_an_entry_whose_range_cannot_be_divided_by_has_no_ends(high):
    rows = torch.tensor([[-high, 0.0], [high, 1.0]])
    zoom = Zoom(2)
    zoom.observe(rows)
    torch.testing.assert_close(zoom(rows)[:, 2:], torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]))


def test_raw_is_the_observation(generator):
    rows = torch.randn(5, 3, generator=generator)
    assert torch.equal(Raw(3)(rows), rows)


def batch(generator) -> Batch:
    state, following = torch.randn(2, 16, 4, generator=generator)
    return Batch(state, torch.rand(16, 2, generator=generator), torch.randn(16), torch.rand(16, 1), following, torch.zeros(16))


@pytest.mark.parametrize("kind", ["algd", "sac-lag"])
def test_learners_with_zoom_save_their_range_act_and_export(kind, generator):
    shape, budgets = EnvShape(4, (-1.0, -1.0), (1.0, 1.0), 1), (CostBudget(5.0),)
    small = {"critic_hidden": (16, 16), "policy_hidden": (16, 16), "batch_size": 16, "encoding": "zoom", "multiplier_actions": "policy"}
    make, config = {"algd": (ALGD, ALGDConfig()), "sac-lag": (SACLag, SACLagConfig())}[kind]
    agent, other = (make(replace(config, **small), shape, budgets, seed=seed) for seed in (1, 2))
    for _ in range(3):
        agent.observe(torch.randn(7, 4, generator=generator) * 3)
        agent.update_batch(batch(generator), agent.draw(16))
    other.load_state_dict(agent.state_dict())
    state = torch.randn(9, 4, generator=generator) * 3
    actions = [each.act(state, "deterministic", generator) for each in (agent, other)]
    assert torch.equal(*actions)
    module = (export_module if kind == "algd" else baseline_export.export_module)(agent, "deterministic").module
    torch.testing.assert_close(module(state), actions[0])
    assert agent.predict(state, actions[0])["cost"].shape == (9, 1)
    agent.observe(torch.full((1, 4), 50.0))  # the range moves: so do the actions
    assert not torch.equal(agent.act(state, "deterministic", generator), actions[0])
