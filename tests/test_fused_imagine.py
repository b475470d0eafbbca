"""Imagined plans in C++ (mbdpo/imagine.cpp) against ``imagine.roll``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saddlepoint.mbdpo import fused_imagine
from saddlepoint.mbdpo.imagine import roll
from saddlepoint.mbdpo.losses import UpdateNoise
from saddlepoint.nn import fused_normed
from tests.test_fused_normed import LOW, WIDE, twins
from tests.test_mbdpo import agent_of, batch_of

pytestmark = pytest.mark.skipif(not fused_normed.works(torch.float32), reason="no C++ compiler, or no AVX-512")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def problem(agent, states: int, proposals: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (states, 1, latent) and plans (states, proposals, horizon, action)."""
    z = agent.model.encode(torch.randn(states, 5, generator=generator)).unsqueeze(1)
    return z, torch.rand(states, proposals, agent.config.horizon, 2, generator=generator) * 2 - 1


def make_dear(agent) -> None:
    """Costs that are mostly above 0, where there are any."""
    if agent.shape.constraints:
        agent.model.cost_head.biases[-1].add_(torch.linspace(-1, 1, agent.config.bins))


@pytest.mark.parametrize("changes", [{}, {"energy_weight": 0.0, "td_action": "prior"}, {"horizon": 1}, {"bins": 32, "latent": 64}], ids=str)
@pytest.mark.parametrize("constraints", [0, 2])
@pytest.mark.parametrize(("states", "proposals"), [(1, 1), (1, 64), (3, 50), (70, 2)])
@torch.no_grad()
def test_imagined_plans_are_pytorchs(changes, constraints, states, proposals, generator):
    ours, theirs = twins(generator, replace(WIDE, **changes), constraints)
    for agent in (ours, theirs):
        agent.model.energy_mean.fill_(0.3)
        agent.model.energy_std.fill_(0.05)  # so that some are beyond the bound
        make_dear(agent)
    z, plans = problem(theirs, states, proposals, generator)
    costly = constraints > 0
    found, wanted = fused_imagine.roll(ours.model, z, plans, None, False, costly), roll(theirs.model, z, plans, None, False, costly)
    assert found.alive is None
    assert (found.cost is None) == (wanted.cost is None) == (not costly)
    for got, want in zip(found, wanted):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_number_that_is_not_one_stays_so_in_its_plan_alone(generator):
    agent = agent_of(WIDE, compile=True)
    z, plans = problem(agent, 1, 70, generator)
    plans[0, 65, 1, 0] = float("nan")
    found = fused_imagine.roll(agent.model, z, plans, None, False, False)
    assert found.gain.isnan().nonzero().tolist() == [[0, 65]]


@torch.no_grad()
def test_threads_change_no_bit_and_weights_that_move_are_seen(generator):
    agent = agent_of(WIDE, 1, compile=True)
    z, plans = problem(agent, 5, 80, generator)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(fused_imagine.roll(agent.model, z, plans, None, False, True))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results) if a is not None)
    agent.model.reward_head.biases[-1].add_(torch.linspace(-1, 1, agent.config.bins))
    assert not torch.allclose(fused_imagine.roll(agent.model, z, plans, None, False, True).gain, results[0].gain)


@LOW
@torch.no_grad()
def test_in_bfloat16_they_are_near_float32(generator):
    low, high = twins(generator, replace(WIDE, learning_precision="bfloat16"), 1)[0], twins(generator, WIDE, 1)[0]
    make_dear(low)
    high.model.load_state_dict(low.model.state_dict())
    z, plans = problem(high, 3, 50, generator)
    found, wanted = (fused_imagine.roll(agent.model, z, plans, None, False, True) for agent in (low, high))
    for got, want in zip(found, wanted):
        if want is not None:
            assert 0 < float((got - want).abs().max()) < 0.03 * float(want.abs().max())


def test_the_rest_is_left_to_pytorch(generator, monkeypatch):
    """Gradients, ends, what has no C++ passes: each calls ``imagine.roll``; plans and updates of a compiled agent do not."""
    calls: list[int] = []
    monkeypatch.setattr(fused_imagine, "plain_roll", lambda *arguments: calls.append(1) or roll(*arguments))
    agent, eager = agent_of(replace(WIDE, episodic="off"), compile=True), agent_of(WIDE)
    z, plans = problem(eager, 1, 4, generator)
    fused_imagine.roll(agent.model, z.detach(), plans, None, False, False)  # gradients are enabled here
    with torch.no_grad():
        fused_imagine.roll(agent.model, z, plans, None, True, False)
        fused_imagine.roll(eager.model, z, plans, None, False, False)
    assert len(calls) == 3
    agent.update_sequences(batch_of(agent, generator), UpdateNoise.draw(agent.model, agent.config.batch_size, generator))
    agent.act_on(torch.randn(2, 5, generator=generator), torch.zeros(2, agent.memory_size), "explore", generator)
    assert len(calls) == 3

