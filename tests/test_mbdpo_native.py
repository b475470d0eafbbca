"""MBDPO with native operations against MBDPO without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PARITY, PRESETS
from saddlepoint.mbdpo.losses import UpdateNoise
from saddlepoint.mbdpo.search import PlanNoise
from saddlepoint.mbdpo.world_model import Tasks
from saddlepoint.nn import ops
from saddlepoint.nn.normed import NormedMLP
from tests.ops_cases import DTYPES, NATIVE
from tests.test_mbdpo import TINY, agent_of, batch_of

pytestmark = NATIVE
torch.set_num_threads(1)
LOW = pytest.mark.parametrize("low", DTYPES[1:], ids=str)
WIDE = replace(TINY, latent=32, precision="float32")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def twins(generator: torch.Generator, config, constraints: int = 0, **options) -> tuple[MBDPO, MBDPO]:
    """One agent with native operations and one without, of the same weights; heads begin at 0, where gradients are
    rounding alone, and are moved from
    there."""
    ours, theirs = (agent_of(config, constraints, compile=compiled, **options) for compiled in (True, False))
    with torch.no_grad():
        for parameter in theirs.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    ours.model.load_state_dict(theirs.model.state_dict())
    return ours, theirs


SIZES = (
    "width",
    "latent",
    "encoder_width",
    "proposals",
    "elites",
    "policy_rollouts",
    "steps",
    "batch_size",
    "bins",
    "critics",
)
CONFIGS = {
    "default": (WIDE, 0),
    "safe": (WIDE, 2),
    "without ends": (replace(WIDE, episodic="off"), 0),
    "safe without ends": (replace(WIDE, episodic="off"), 2),
    "parity": (replace(PARITY, **{size: getattr(WIDE, size) for size in SIZES}), 0),
    "score": (replace(WIDE, planner="score"), 1),
    "mppi": (replace(WIDE, planner="mppi"), 0),
    "no energy": (replace(WIDE, energy_weight=0.0, td_action="prior"), 1),
    "dropout": (replace(WIDE, dropout=0.1), 0),
    "no rollouts": (replace(WIDE, policy_rollouts=0), 0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_updates_and_plans_are_pytorchs(name, generator):
    config, constraints = CONFIGS[name]
    ours, theirs = twins(generator, config, constraints)
    assert all(net.packed is not None for net in ours.model.modules() if isinstance(net, NormedMLP))
    data = batch_of(theirs, generator)
    for _ in range(2):
        noise = UpdateNoise.draw(theirs.model, config.batch_size, generator)
        found, wanted = (agent.update_sequences(data, noise) for agent in (ours, theirs))
        for key, value in wanted.items():
            assert float(found[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), key
    for (key, got), want in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        # Adam's first steps are the signs of gradients: those near 0 may differ by a whole step each.
        error = (got - want).detach().abs()
        assert float(error.mean()) < 0.02 * config.learning_rate, key
        assert float(error.max()) <= 4.1 * config.learning_rate, key
    theirs.model.load_state_dict(ours.model.state_dict())
    z, start = (
        torch.rand(3, config.latent, generator=generator),
        torch.randn(3, config.horizon, 2, generator=generator).clamp(-1, 1),
    )
    draws = PlanNoise.draw(config, 3, 2, z, generator)
    for ends in (True, False):
        with torch.no_grad():
            plans = [
                agent.search.plan(z, start, draws, None, ends, agent.constraint(), True)[0] for agent in (ours, theirs)
            ]
        torch.testing.assert_close(*plans, rtol=2e-3, atol=1e-3)


def test_several_tasks(generator):
    tasks = Tasks((2, 1), (50, 100))
    ours, theirs = twins(generator, replace(WIDE, planner="score"), tasks=tasks)
    data = batch_of(theirs, generator, torch.randint(2, (WIDE.batch_size,), generator=generator))
    noise = UpdateNoise.draw(theirs.model, WIDE.batch_size, generator)
    found, wanted = (agent.update_sequences(data, noise) for agent in (ours, theirs))
    for key, value in wanted.items():
        assert float(found[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), key
    theirs.model.load_state_dict(ours.model.state_dict())
    z, start, task = (
        torch.rand(4, 32, generator=generator),
        torch.randn(4, 3, 2, generator=generator),
        torch.tensor([0, 1, 1, 0]),
    )
    plans = [agent.search.amortised(z, start.clamp(-1, 1), task) for agent in (ours, theirs)]
    torch.testing.assert_close(*plans, rtol=1e-4, atol=1e-5)
    assert not plans[0][1:3, :, 1].any()  # what task 1 does not use


@LOW
def test_planning_in_bfloat16_follows_the_weights(low, generator):
    agent, exact = twins(generator, replace(WIDE, precision="auto", learning_precision="float32", learning_rate=3e-3))
    data = batch_of(exact, generator)
    for _ in range(3):
        agent.update_sequences(data, UpdateNoise.draw(exact.model, WIDE.batch_size, generator))
    exact = agent_of(WIDE)
    exact.model.load_state_dict(agent.model.state_dict())
    z, plans = torch.rand(1, 1, 32, generator=generator), torch.rand(1, 64, 3, 2, generator=generator) * 2 - 1
    noise = torch.randn(1, 64, 2, generator=generator)
    with torch.no_grad():
        found, wanted = (
            a.search.values(z, plans, noise, torch.tensor([0, 2]), None, True, None) for a in (agent, exact)
        )
    assert found.dtype == torch.float32
    assert 0 < float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


@LOW
def test_learning_in_bfloat16_follows_float32(low, generator):
    agents = [agent_of(replace(WIDE, learning_precision=kind), compile=True) for kind in ("bfloat16", "float32")]
    data = batch_of(agents[1], generator)
    histories: list[list[float]] = [[], []]
    for _ in range(40):
        noise = UpdateNoise.draw(agents[1].model, WIDE.batch_size, generator)
        for agent, history in zip(agents, histories):
            history.append(float(agent.update_sequences(data, noise)["total_loss"]))
    assert agents[0].model.dynamics.dtype == torch.bfloat16
    assert agents[0].search._low is None
    assert histories[0] != histories[1]
    assert histories[0][-1] < 0.8 * histories[0][0]
    assert histories[0][-1] == pytest.approx(histories[1][-1], rel=0.02)


@LOW
@pytest.mark.parametrize(
    ("planning", "learning", "compile", "lowered"),
    [
        ("auto", "auto", True, True), ("auto", "auto", False, False), ("float32", "auto", True, False), ("float32", "bfloat16", True, True),
        ("bfloat16", "auto", True, True), ("auto", "float32", True, False),
    ],
)  # fmt: skip
def test_learning_is_in_bfloat16_where_that_is_faster_and_not_forbidden(low, planning, learning, compile, lowered):
    agent = agent_of(replace(WIDE, precision=planning, learning_precision=learning), compile=compile)
    assert agent.model.low == lowered
    assert (agent.model.dynamics.dtype == torch.bfloat16) == lowered
    assert (agent.search._low is not None) == (not lowered and planning != "float32" and compile)


def test_an_update_and_a_plan_use_native_operations_for_all_that_fits(generator, monkeypatch):
    """Imagined plans of a compiled agent never fall back, with ends and without; those of an eager one never go
    native."""
    from saddlepoint.nn.ops import api

    calls = {"native": 0, "reference": 0}
    for name, module in (("native", api.normed), ("reference", api.reference_normed)):

        def counted(*arguments, own=module.imagine, name=name):
            calls[name] += 1
            return own(*arguments)

        monkeypatch.setattr(module, "imagine", counted)
    for compiled, episodic in ((True, "off"), (True, "on"), (False, "on")):
        calls.update(native=0, reference=0)
        agent = agent_of(replace(WIDE, episodic=episodic), compile=compiled)
        agent.update_sequences(
            batch_of(agent, generator), UpdateNoise.draw(agent.model, agent.config.batch_size, generator)
        )
        agent.act_on(torch.randn(2, 5, generator=generator), torch.zeros(2, agent.memory_size), "explore", generator)
        assert bool(calls["native"]) == compiled
        assert bool(calls["reference"]) != compiled


def test_the_presets_have_them():
    assert (
        MBDPO.gains_by_compiling(PRESETS["small"])
        == MBDPO.gains_by_compiling(PRESETS["default"])
        == ops.native_wins(32)
    )
    assert not MBDPO.gains_by_compiling(replace(PRESETS["small"], width=100))
