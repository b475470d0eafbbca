"""The native networks of Linear, LayerNorm and Mish, their chains and imagined plans, against the PyTorch reference and
themselves with other threads."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from saddlepoint.nn import ops
from saddlepoint.nn.normed import NormedMLP
from saddlepoint.nn.ops import reference_normed
from saddlepoint.nn.ops.native import normed
from saddlepoint.nn.ops.native.normed import spread
from tests.ops_cases import DTYPES, NATIVE, corrupted, only

torch.set_num_threads(1)

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


def net_of(
    generator: torch.Generator, inputs=(48, 6), *, native: bool = True, dtype: torch.dtype | None = None, **options
) -> NormedMLP:
    net = NormedMLP(inputs, options.pop("hidden"), options.pop("outputs"), generator, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2, generator=generator)
    net.dtype = dtype
    if native:
        net.accelerate()
    return net


def plain(net: NormedMLP) -> NormedMLP:
    """A copy by the reference."""
    other = copy.deepcopy(net)
    other.packed = None
    return other


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest error in units of the largest number wanted."""
    assert found.shape == wanted.shape
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max().clamp(min=1e-6))


@NATIVE
@pytest.mark.parametrize("options", NETS, ids=str)
@pytest.mark.parametrize("leads", LEADS, ids=str)
def test_passes_are_those_of_autograd(options, leads, generator, monkeypatch):
    ours = net_of(generator, **options)
    theirs = plain(ours)
    mine = [torch.randn(*lead, width, generator=generator).requires_grad_() for lead, width in zip(leads, (48, 6))]
    yours = [part.detach().clone().requires_grad_() for part in mine]
    drop = None
    if options["hidden"] and len(leads[0]) == 1 and leads[0] == leads[1]:
        members = [options["members"]] if "members" in options else []
        shape = (*members, *leads[0], options["hidden"][0])
        drop = 1.4 * (torch.rand(shape, generator=generator) > 0.3)
    with only(True, monkeypatch):
        found = ours(*mine, drop=drop)
    wanted = theirs(*yours, drop=drop)
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
    found, wanted = (net(*(p.detach().requires_grad_() for p in mine), frozen=True) for net in (ours, theirs))
    assert found.requires_grad
    assert off(found, wanted) < 3e-6


@NATIVE
def test_mish_of_any_size_is_that_of_float64(generator):
    """With weights of 0 in front, a norm gives its shifts alone, whatever they are: their activations, and the slopes
    there, are those of float64."""
    net = net_of(generator, hidden=(320,), outputs=320)
    edges = torch.tensor([0.0, 1e-8, -1e-8, -20.0, -40.0, -87.0, 40.0, 88.0, 1e4, 1e9, 1e30, -1e4, -1e30])
    x = torch.cat([torch.linspace(-30, 30, 320 - len(edges)), edges])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.shifts[0].copy_(x)
        net.weights[0].copy_(torch.eye(320))
    net.changed()
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


@NATIVE
@pytest.mark.parametrize("low", DTYPES[1:], ids=str)
@pytest.mark.parametrize("rows", [64, 70])
@pytest.mark.parametrize("options", NETS, ids=str)
def test_bfloat16_is_nearer_than_pytorchs_own(options, rows, low, generator, monkeypatch):
    """Values and gradients against those in float32: PyTorch rounds after every operation, here products alone are
    rounded."""
    exact = net_of(generator, native=False, **options)
    layered, ours, slow = (copy.deepcopy(exact) for _ in range(3))
    layered.to(low)
    ours.dtype = slow.dtype = low
    ours.accelerate()
    parts, upstream, results = [torch.randn(rows, width, generator=generator) for width in (48, 6)], None, []
    for net in (exact, layered, ours, slow):
        own = [part.to(net.first[0].dtype, copy=True).requires_grad_() for part in parts]
        with only(net is ours, monkeypatch):
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


@NATIVE
def test_weights_that_have_changed_are_used_and_numbers_do_not_depend_on_threads(generator):
    net = net_of(generator, hidden=(64, 64), outputs=9, members=4)
    parts = [torch.randn(200, width, generator=generator, requires_grad=True) for width in (48, 6)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            net.zero_grad()
            values = net(*parts)
            values.square().sum().backward()
            results.append([values, *(p.grad.clone() for p in (*parts, *net.parameters()))])
        finally:
            torch.set_num_threads(1)
        for part in parts:
            part.grad = None
    assert all(torch.equal(a, b) for found in results[1:] for a, b in zip(results[0], found, strict=True))
    torch.optim.Adam(net.parameters(), lr=0.1, fused=True).step()
    net.changed()
    assert off(net(*parts), results[0][0]) > 0.1
    assert off(net(*parts), plain(net)(*parts)) < 3e-6
    other, state = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net.weights[0].zero_()
    net.changed()
    assert off(other(*parts), plain(other)(*parts)) < 3e-6
    assert off(net(*parts), other(*parts)) > 0.1
    net.load_state_dict(state)
    assert torch.equal(net(*parts), other(*parts))


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        (((4, 1), (4, 9)), (1, [False, True], 4, 9)),
        (((9,), (4, 9)), (1, [False, True], 9, 1)),
        (((), (4, 9)), (1, [False, True], 1, 36)),
        (((2, 1, 3), (2, 5, 3)), None),
        (((4, 1), (1, 9)), None),
        (((4, 9), (4, 9)), (0, [True, True], 1, 1)),
        (((4, 1), (1, 1), (4, 9)), (1, [False, False, True], 4, 9)),
    ],
)
def test_how_parts_are_laid_out(shapes, wanted):
    parts = [torch.zeros(*shape, 2) for shape in shapes]
    found = spread(parts)
    assert (found is None) == (wanted is None)
    if wanted:
        assert found[0] == torch.broadcast_shapes(*shapes)
        assert found[1:] == tuple(wanted[1:])


def test_the_reference_serves_what_the_kernels_do_not(generator, monkeypatch):
    """Odd widths, float64, no rows, a choice of members that learn, torch.compile."""
    parts = [torch.randn(5, width, generator=generator) for width in (48, 6)]
    chosen, ensemble = [1], net_of(generator, hidden=(64,), outputs=9, members=2)
    with only(False, monkeypatch):
        net_of(generator, hidden=(48,), outputs=9)(*parts)
        net_of(generator, hidden=(64,), outputs=9).double()(*(part.double() for part in parts))
        net_of(generator, hidden=(64,), outputs=9)(*(part[:0] for part in parts))
        assert ensemble(*parts, chosen=chosen).requires_grad
        torch.compile(ensemble, backend="eager")(*parts)


@NATIVE
def test_tensors_that_do_not_fit_are_refused_by_the_registered_operations(generator):
    assert ops.native_available()
    registered = torch.ops.saddlepoint
    held = net_of(generator, hidden=(64,), outputs=9, members=2)
    net = normed.native(held.whole())
    good = [torch.zeros(5, 48), torch.zeros(5, 6)]
    for parts in ([good[0], torch.zeros(4, 6)], [torch.zeros(48, 5).mT, good[1]], [good[0].double(), None]):
        with pytest.raises(ValueError, match="take a dense Float tensor"):
            registered.normed_forward(net, parts, [0], 5, None, 1, None, False)
    with pytest.raises(ValueError, match="members that exist"):
        registered.normed_forward(net, good, [2], 5, None, 1, None, False)
    with pytest.raises(ValueError, match="multiple of 32"):
        normed.native(net_of(generator, hidden=(48,), outputs=9).whole())
    with pytest.raises(ValueError, match="single plain net"):
        registered.normed_chain(
            net, 1, torch.zeros(3, 64), torch.zeros(2, 64), torch.zeros(3, 6), None, [1.0] * 2, [1.0] * 2
        )
    held.changed()
    with pytest.raises(ValueError, match="no network has the number"):
        registered.normed_forward(net, good, [0], 5, None, 1, None, False)


@NATIVE
def test_second_derivatives_are_the_references(generator):
    ours = net_of(generator, hidden=(32, 32), outputs=3, members=2)
    theirs = plain(ours)
    data = [torch.randn(4, 1, 48, generator=generator), torch.randn(4, 5, 6, generator=generator)]
    found = []
    for net in (ours, theirs):
        parts = [part.clone().requires_grad_() for part in data]
        first = torch.autograd.grad(net(*parts).square().sum(), parts, create_graph=True)
        found.append(
            torch.autograd.grad(sum(g.square().sum() for g in first), [*parts, *net.parameters()], allow_unused=True)
        )
    for got, want in zip(*found, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert off(got, want) < 1e-5


def test_the_reference_has_the_gradients_of_finite_differences(generator):
    for options in ({"hidden": (5, 4), "outputs": 3, "members": 2}, {"hidden": (4,), "outputs": 6, "simplex": 3}):
        net = net_of(generator, (3, 2), native=False, **options).double()
        parts = [torch.randn(4, width, generator=generator).double().requires_grad_() for width in (3, 2)]
        assert torch.autograd.gradcheck(lambda *given, n=net: n(*given[:2]), (*parts, *net.parameters()))


# ------------------------------------------------------------------------------------------------ chains and imagined
# plans


@NATIVE
@pytest.mark.parametrize("low", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rows", [1, 70])
def test_chains_are_the_references(rows, masked, low, generator, monkeypatch):
    net = net_of(generator, (48, 6, 8), hidden=(64, 32), outputs=6, dtype=low)
    common, times = torch.randn(rows, 64, generator=generator), torch.randn(5, 64, generator=generator)
    start, mask = (
        torch.randn(rows, 6, generator=generator),
        (torch.rand(rows, 6, generator=generator) > 0.3).float() if masked else None,
    )
    table = ops.ChainTable((0.9,) * 5, (0.1, 0.2, 0.3, 0.2, 0.1))
    with only(True, monkeypatch):
        found = ops.normed_chain(net.whole(frozen=True), 1, common, times, start, table, mask)
    wanted = reference_normed.normed_chain(plain(net).whole(frozen=True), 1, common, times, start, table, mask)
    assert off(found, wanted) < (1e-5 if low == torch.float32 else 0.02)


def model_of(
    generator: torch.Generator, *, task: bool, energy: bool, costs: int, ends: bool, low: torch.dtype = torch.float32
) -> ops.Imagination:
    shared = (32, 8) if task else (32,)

    def net(inputs: Sequence[int], outputs: int, **options) -> ops.NormedWeights:
        return net_of(generator, inputs, hidden=(64, 32), outputs=outputs, dtype=low, **options).whole(frozen=True)

    full = (*shared, 3)
    gamma = torch.tensor([0.99, 0.95, 0.9]) if task else torch.full((3,), 0.97)
    return ops.Imagination(
        net(full, 32, simplex=8),
        net(full, 21),
        net(full, 1) if energy else None,
        net(full, 21, members=costs) if costs else None,
        net(shared, 1) if ends else None,
        21,
        10.0,
        gamma,
        0.95,
        0.3,
        torch.tensor(0.1),
        torch.tensor(0.5),
        1.5,
    )


IMAGINED = [
    {"task": False, "energy": True, "costs": 0, "ends": False},
    {"task": False, "energy": False, "costs": 2, "ends": False},
    {"task": False, "energy": True, "costs": 1, "ends": True},
    {"task": True, "energy": True, "costs": 0, "ends": False},
    {"task": True, "energy": True, "costs": 2, "ends": True},
]


@NATIVE
@pytest.mark.parametrize("low", DTYPES, ids=str)
@pytest.mark.parametrize("options", IMAGINED, ids=str)
@pytest.mark.parametrize(("proposals", "horizon"), [(1, 1), (50, 3), (130, 2)])
@torch.no_grad()
def test_imagined_plans_are_the_references(low, options, proposals, horizon, generator, monkeypatch):
    model = model_of(generator, low=low, **options)
    z, actions = (
        torch.rand(3, 32, generator=generator),
        torch.rand(3, proposals, horizon, 3, generator=generator) * 2 - 1,
    )
    task = torch.randn(3, 8, generator=generator) if options["task"] else None
    if model.end is not None:  # so that some plans end
        after, width = reference_normed.imagine(unpacked(model._replace(end=None)), z, task, actions).z, proposals
        tasks = () if task is None else (task.unsqueeze(1).expand(-1, width, -1),)
        logits = reference_normed.normed_mlp(model.end, (after, *tasks)).flatten().sort().values
        model.end.biases[-1].sub_(logits[len(logits) // 2 - 1 : len(logits) // 2 + 1].mean())
    with only(True, monkeypatch):
        found = ops.imagine(model, z, task, actions)
    wanted = reference_normed.imagine(unpacked(model), z, task, actions)
    assert (found.cost is None) == (not options["costs"])
    assert (found.alive is None) == (not options["ends"])
    if wanted.alive is not None and proposals > 1 and horizon > 1:
        assert 0 < float(wanted.alive.mean()) < 1
    same = (
        torch.ones(3, proposals, dtype=torch.bool) if found.alive is None else found.alive == wanted.alive
    )  # a logit near 0 goes either way
    assert same.float().mean() > (0.999 if low == torch.float32 else 0.8)
    for got, want in zip(found, wanted):
        assert (got is None) == (want is None)
        if want is not None:
            assert got.shape == want.shape
            kept = same if want.shape[:2] == same.shape else same.expand(want.shape)
            if low == torch.float32:
                torch.testing.assert_close(got[kept], want[kept], rtol=1e-4, atol=2e-5)
            else:  # an end on the way may fall a step earlier or later, and its gain with it
                close = torch.isclose(got[kept], want[kept], rtol=0.1, atol=0.1)
                assert close.float().mean() > (0.8 if options["ends"] else 0.999)


def unpacked(model: ops.Imagination) -> ops.Imagination:
    return model._replace(
        **{
            name: net._replace(packed=None)
            for name, net in model._asdict().items()
            if isinstance(net, ops.NormedWeights)
        }
    )


@NATIVE
@torch.no_grad()
def test_threads_do_not_change_imagined_plans_and_a_nan_stays_in_its_plan(generator):
    model = model_of(generator, task=True, energy=True, costs=1, ends=True)
    z, task = torch.rand(3, 32, generator=generator), torch.randn(3, 8, generator=generator)
    actions = torch.rand(3, 70, 3, 3, generator=generator) * 2 - 1
    actions[1, 65, 0, 0] = torch.nan
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(ops.imagine(model, z, task, actions))
        finally:
            torch.set_num_threads(1)
    for other in found[1:]:
        for a, b in zip(found[0], other):
            assert a is not None
            assert b is not None
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert found[0].gain.isnan().nonzero().tolist() == [[1, 65]]


@NATIVE
@pytest.mark.parametrize(
    ("operation", "output"),
    [
        ("normed_forward", 0),
        ("normed_backward", 1),
        ("normed_backward", 2),
        ("normed_chain", 0),
        *(("imagine", i) for i in range(4)),
    ],
)
def test_a_wrong_kernel_does_not_pass(operation, output, generator, monkeypatch):
    """The comparisons above fail where one number of what a kernel returns is wrong."""
    compare = {
        "imagine": lambda: test_imagined_plans_are_the_references(
            torch.float32, IMAGINED[4], 50, 3, generator, monkeypatch
        ),
        "normed_chain": lambda: test_chains_are_the_references(70, True, torch.float32, generator, monkeypatch),
    }.get(operation, lambda: test_passes_are_those_of_autograd(NETS[0], LEADS[0], generator, monkeypatch))
    compare()
    with corrupted(operation, output, monkeypatch), pytest.raises(AssertionError):
        compare()
