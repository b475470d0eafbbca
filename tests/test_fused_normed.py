"""The C++ passes of nn/fused_normed.cpp against PyTorch's, autograd's, and themselves with other threads."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PARITY, PRESETS
from saddlepoint.mbdpo.losses import UpdateNoise
from saddlepoint.mbdpo.search import PlanNoise
from saddlepoint.mbdpo.world_model import Tasks
from saddlepoint.nn import fused_normed
from saddlepoint.nn.fused_normed import FusedNormed, Request, spread
from saddlepoint.nn.normed import NormedMLP
from tests.test_mbdpo import TINY, agent_of, batch_of

pytestmark = pytest.mark.skipif(not fused_normed.works(torch.float32), reason="no C++ compiler, or no AVX-512")
LOW = pytest.mark.skipif(not fused_normed.works(torch.bfloat16), reason="no products in bfloat16")
WIDE = replace(TINY, latent=32)

NETS = [
    {"hidden": (64, 96), "outputs": 101},
    {"hidden": (32, 64), "outputs": 96, "simplex": 8},
    {"hidden": (), "outputs": 64, "simplex": 4},
    {"hidden": (128,), "outputs": 1},
    {"hidden": (), "outputs": 5},
    {"hidden": (64, 64), "outputs": 7, "members": 5},
    {"hidden": (32,), "outputs": 64, "members": 3, "simplex": 8},
]
LEADS = [
    ((70,), (70,)),
    ((1,), (1,)),
    ((3, 1), (3, 50)),
    ((1, 40), (3, 40)),
    ((2, 3, 40), (2, 3, 40)),
    ((), (33,)),
    ((130,), (1,)),
    ((5, 1), (1, 7)),
]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def net_of(generator: torch.Generator, inputs=(48, 6), **options) -> NormedMLP:
    net = NormedMLP(inputs, options.pop("hidden"), options.pop("outputs"), generator, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return net


def twins(generator: torch.Generator, config, constraints: int = 0, **options) -> tuple[MBDPO, MBDPO]:
    """One agent with the C++ passes and one without, of the same weights; heads begin at 0, where gradients are rounding alone, and are moved from there."""
    ours, theirs = (agent_of(config, constraints, compile=compiled, **options) for compiled in (True, False))
    with torch.no_grad():
        for parameter in theirs.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    ours.model.load_state_dict(theirs.model.state_dict())
    return ours, theirs


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest error in units of the largest number wanted."""
    assert found.shape == wanted.shape
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max().clamp(min=1e-6))


@pytest.mark.parametrize("options", NETS, ids=str)
@pytest.mark.parametrize("leads", LEADS, ids=str)
def test_passes_are_those_of_autograd(options, leads, generator):
    ours = net_of(generator, **options)
    theirs = copy.deepcopy(ours)
    assert ours.fuse()
    mine = [torch.randn(*lead, width, generator=generator).requires_grad_() for lead, width in zip(leads, (48, 6))]
    yours = [part.detach().clone().requires_grad_() for part in mine]
    drop = None
    if options["hidden"] and len(leads[0]) == 1 and leads[0] == leads[1]:
        members = [options["members"]] if "members" in options else []
        shape = (*members, *leads[0], options["hidden"][0])
        drop = 1.4 * (torch.rand(shape, generator=generator) > 0.3)
    found, wanted = ours(*mine, drop=drop), theirs(*yours, drop=drop)
    assert off(found, wanted) < 3e-6
    upstream = torch.randn(wanted.shape, generator=generator)
    found.backward(upstream)
    wanted.backward(upstream)
    for got, want in zip((*mine, *ours.parameters()), (*yours, *theirs.parameters()), strict=True):
        assert off(got.grad, want.grad) < 1e-5
    with torch.no_grad():
        assert off(ours(*mine), theirs(*yours)) < 3e-6
        if "members" in options:
            assert off(ours(*mine, chosen=[2, 0]), theirs(*yours, chosen=[2, 0])) < 3e-6
    frozen, wanted = (net(*(p.detach().requires_grad_() for p in mine), frozen=True) for net in (ours, theirs))
    assert frozen.requires_grad
    assert off(frozen, wanted) < 3e-6


def test_mish_of_any_size_is_that_of_float64(generator):
    """With weights of 0 in front, a norm gives its shifts alone, whatever they are: their activations, and the slopes there, are those of float64."""
    net = net_of(generator, hidden=(320,), outputs=320)
    edges = torch.tensor([0.0, 1e-8, -1e-8, -20.0, -40.0, -87.0, 40.0, 88.0, 1e4, 1e9, 1e30, -1e4, -1e30])
    x = torch.cat([torch.linspace(-30, 30, 320 - len(edges)), edges])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.shifts[0].copy_(x)
        net.weights[0].copy_(torch.eye(320))
    assert net.fuse()
    values = net(torch.zeros(1, 48), torch.zeros(1, 6))
    values.sum().backward()
    wide = x.double().requires_grad_()
    wanted = torch.nn.functional.mish(wide)
    wanted.sum().backward()
    torch.testing.assert_close(values[0].double(), wanted, rtol=4e-6, atol=1e-30)
    torch.testing.assert_close(net.shifts[0].grad.double(), wide.grad, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        net.shifts[0][7] = float("nan")
        assert bool(net(torch.zeros(1, 48), torch.zeros(1, 6))[0, 7].isnan())


@LOW
@pytest.mark.parametrize("rows", [64, 70])
@pytest.mark.parametrize("options", NETS, ids=str)
def test_bfloat16_is_nearer_than_pytorchs_own(options, rows, generator):
    """Values and gradients against those in float32: PyTorch rounds after every operation, here products alone are rounded."""
    exact = net_of(generator, **options)
    layered, ours = copy.deepcopy(exact).to(torch.bfloat16), copy.deepcopy(exact)
    ours.low = True
    slow = copy.deepcopy(ours)
    assert ours.fuse()
    parts, upstream, results = [torch.randn(rows, width, generator=generator) for width in (48, 6)], None, []
    for net in (exact, layered, ours, slow):
        own = [part.to(net.first[0].dtype, copy=True).requires_grad_() for part in parts]
        values = net(*own)
        upstream = torch.randn(values.shape, generator=generator) if upstream is None else upstream
        values.backward(upstream.to(values.dtype))
        with torch.no_grad():
            assert off(net(*own).float(), values.float()) < 1e-2
        results.append([values.detach().float(), *(p.grad.float() for p in (*own, *net.parameters()))])
    for wanted, by_pytorch, found, eager in zip(*results, strict=True):
        error, slow_error, most = (float((x - wanted).norm()) for x in (found, eager, by_pytorch))
        assert max(error, slow_error) < 1.2 * most + 1e-6
    assert found.dtype == torch.float32


def test_a_weight_that_moves_is_seen_and_numbers_do_not_depend_on_threads(generator):
    net = net_of(generator, hidden=(64, 64), outputs=9, members=4)
    net.fuse()
    parts = [torch.randn(200, width, generator=generator, requires_grad=True) for width in (48, 6)]
    results = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        net.zero_grad()
        values = net(*parts)
        values.square().sum().backward()
        results.append([values, *(p.grad.clone() for p in (*parts, *net.parameters()))])
        for part in parts:
            part.grad = None
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.optim.Adam(net.parameters(), lr=0.1).step()
    plain = net_of(generator, hidden=(64, 64), outputs=9, members=4)
    plain.load_state_dict(net.state_dict())
    assert off(net(*parts), results[0][0]) > 0.1
    assert off(net(*parts), plain(*parts)) < 3e-6


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        (((4, 1), (4, 9)), (1, [False, True], 4, 9)), (((9,), (4, 9)), (1, [False, True], 9, 1)), (((), (4, 9)), (1, [False, True], 1, 36)),
        (((2, 1, 3), (2, 5, 3)), None), (((4, 1), (1, 9)), None), (((4, 9), (4, 9)), (0, [True, True], 1, 1)),
        (((4, 1), (1, 1), (4, 9)), (1, [False, False, True], 4, 9)),
    ],
)  # fmt: skip
def test_how_parts_are_laid_out(shapes, wanted):
    parts = [torch.zeros(*shape, 2) for shape in shapes]
    found = spread(parts)
    assert (found is None) == (wanted is None)
    if wanted:
        assert found[0] == torch.broadcast_shapes(*shapes)
        assert found[1:] == tuple(wanted[1:])


def test_what_does_not_fit_is_refused(generator):
    net = net_of(generator, hidden=(64,), outputs=9, members=2)
    assert net.fuse()
    narrow = net_of(generator, hidden=(48,), outputs=9)
    assert not narrow.fuse()
    assert narrow.fused is None
    assert not net_of(generator, hidden=(64,), outputs=9).double().fuse()
    with pytest.raises(ValueError, match="multiple of 32"):
        FusedNormed(narrow.grouped(), 0, 0, torch.float32)
    for parts in (
        [torch.zeros(5, 48), torch.zeros(4, 6)],
        [torch.zeros(5, 48).mT.contiguous().mT, torch.zeros(5, 6)],
        [torch.zeros(5, 48).double(), None],
    ):
        with pytest.raises(ValueError, match=r"dense torch.float32 tensor"):
            net.fused(Request(parts, 5, (0,)))
    for request in (Request([None, None], 5, (0,)), Request([torch.zeros(5, 48), torch.zeros(5, 6)], 5, (2,))):
        with pytest.raises(ValueError, match="members that exist"):
            net.fused(request)
    with pytest.raises(ValueError, match="single plain net"):
        net.fused.chain(1, torch.zeros(3, 64), torch.zeros(2, 64), torch.zeros(3, 6), ([1.0] * 2, [1.0] * 2))


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
    assert all(net.fused is not None for net in ours.model.modules() if isinstance(net, NormedMLP))
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
            plans = [agent.search.plan(z, start, draws, None, ends, agent.constraint(), True)[0] for agent in (ours, theirs)]
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
def test_planning_in_bfloat16_follows_the_weights(generator):
    agent, exact = twins(generator, replace(WIDE, precision="bfloat16", learning_rate=3e-3))
    data = batch_of(exact, generator)
    for _ in range(3):
        agent.update_sequences(data, UpdateNoise.draw(exact.model, WIDE.batch_size, generator))
    exact = agent_of(WIDE)
    exact.model.load_state_dict(agent.model.state_dict())
    z, plans = torch.rand(1, 1, 32, generator=generator), torch.rand(1, 64, 3, 2, generator=generator) * 2 - 1
    noise = torch.randn(1, 64, 2, generator=generator)
    with torch.no_grad():
        low, high = (a.search.values(z, plans, noise, torch.tensor([0, 2]), None, True, None) for a in (agent, exact))
    assert low.dtype == torch.float32
    assert 0 < float((low - high).abs().max()) < 0.05 * float(high.abs().max())


@LOW
def test_learning_in_bfloat16_follows_float32(generator):
    low, high = (agent_of(replace(WIDE, learning_precision=kind), compile=True) for kind in ("bfloat16", "float32"))
    data = batch_of(high, generator)
    histories: list[list[float]] = [[], []]
    for _ in range(40):
        noise = UpdateNoise.draw(high.model, WIDE.batch_size, generator)
        for agent, history in zip((low, high), histories):
            history.append(float(agent.update_sequences(data, noise)["total_loss"]))
    assert low.model.dynamics.fused.low
    assert low.search._low is None
    assert histories[0] != histories[1]
    assert histories[0][-1] < 0.8 * histories[0][0]
    assert histories[0][-1] == pytest.approx(histories[1][-1], rel=0.02)


def test_the_presets_have_them():
    assert MBDPO.gains_by_compiling(PRESETS["small"]) == MBDPO.gains_by_compiling(PRESETS["default"])
    assert not MBDPO.gains_by_compiling(replace(PRESETS["small"], width=100))
