"""The native ensembles and chains of nn/ops against their PyTorch reference, autograd, and themselves with other
threads."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor

from saddlepoint.diffusion.network import ScoreMLP
from saddlepoint.nn import ops
from saddlepoint.nn.critics import MLPCritic
from saddlepoint.nn.ops import reference
from tests.ops_cases import DTYPES, NATIVE, Draw, corrupted, frozen, only, parameters, require_equal, table

torch.set_num_threads(1)
SIZES = [  # members, state, action, hidden, proposals, batch
    (1, 3, 1, (32,), 1, 1),
    (3, 33, 2, (64, 96), 3, 70),
    (2, 60, 5, (32, 64, 32), 2, 128),
    (6, 32, 17, (256, 256), 1, 33),
]
CHAINS = [
    (1, 1, 1, (32,)),
    (70, 5, 2, (64, 32, 96)),
    (128, 3, 6, (128, 128)),
    (33, 10, 1, (32, 32)),
]  # rows, steps, latent, hidden


def by_dtype(low: torch.dtype, compute, kinks: bool) -> None:
    """``compute(operations, dtype)`` by native operations, by the reference and, for bfloat16, by the reference in
    float32."""
    exact = compute(reference, None) if low == torch.bfloat16 else None
    require_equal(compute(ops, low), compute(reference, low), exact, kinks)


@NATIVE
@pytest.mark.parametrize("low", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ensembles_are_those_of_autograd(low, activation, norm, size, monkeypatch):
    members, state, action, hidden, proposals, batch = size
    draw = Draw(5)
    net = draw.ensemble(members, state + action, hidden, activation, norm=norm)
    s, a, upstream = (
        draw(batch, state),
        draw(proposals, batch, action).requires_grad_(),
        draw(members, proposals, batch),
    )
    upstream *= draw(*upstream.shape) > 0.3  # rows without upstream are skipped

    def compute(operations, dtype) -> list[Tensor]:
        used = net._replace(dtype=dtype)
        values = operations.ensemble_mlp(used, s, a)
        at_action = operations.ensemble_mlp(frozen(used), s, a)
        learnt = operations.ensemble_mlp(used, s, a.detach())
        alone = operations.ensemble_mlp(frozen(used), s, a.detach())
        assert not alone.requires_grad
        return [
            values,
            alone,
            *torch.autograd.grad(values, [a, *parameters(net)], upstream),
            *torch.autograd.grad(at_action, a, upstream),
            *torch.autograd.grad(learnt, parameters(net), upstream),
        ]

    with only(True, monkeypatch):
        compute(ops, low)
    by_dtype(low, compute, activation == "relu")


@NATIVE
@pytest.mark.parametrize("low", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fits_are_those_of_autograd(low, activation, norm, size):
    members, state, action, hidden, _, batch = size
    draw = Draw(12)  # no residual is near 0, where rounding is all that is left of it
    net = draw.ensemble(members, state + action, hidden, activation, norm=norm)
    s, a = draw(batch, state), draw(batch, action)
    targets = (draw(members, batch), draw(batch))

    def compute(operations, dtype) -> list[Tensor]:
        found = []
        for target in targets:
            loss = operations.ensemble_mse(net._replace(dtype=dtype), s, a, target, 0.3)
            found += [loss, *torch.autograd.grad(loss, parameters(net), retain_graph=True)]
            found += torch.autograd.grad(3 * loss, parameters(net))  # a second time, with another factor
            found.append(operations.ensemble_mse(frozen(net)._replace(dtype=dtype), s, a, target, 0.3))
        return found

    by_dtype(low, compute, activation == "relu")


@NATIVE
@pytest.mark.parametrize("low", DTYPES, ids=str)
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("size", CHAINS, ids=str)
def test_chains_are_those_of_autograd(low, noisy, size, monkeypatch):
    rows, steps, latent, hidden = size
    draw = Draw(1)
    net = draw.chain(rows, steps, latent, hidden)
    start, noise = draw(rows, latent), draw(steps, rows, latent) if noisy else None
    upstream, step = draw(steps + 1, rows, latent), torch.arange(rows) % steps

    def compute(operations, dtype) -> list[Tensor]:
        used = net._replace(dtype=dtype)
        latents = operations.denoising_chain(used, start, noise, table(steps))
        sample = operations.denoising_chain(used, start, noise, table(steps))[0]
        found = [
            latents,
            *torch.autograd.grad(latents, parameters(net), upstream),
            *torch.autograd.grad(sample, parameters(net), upstream[0]),
        ]
        for k in (0, step):
            output = ops.score_output(used, start, k) if operations is ops else used.output(start, k)
            found += [output, *torch.autograd.grad(output, parameters(net), upstream[0])]
        return found

    with only(True, monkeypatch):
        compute(ops, low)
    by_dtype(low, compute, True)


@NATIVE
@pytest.mark.parametrize("low", DTYPES, ids=str)
def test_threads_do_not_change_a_bit(low):
    draw = Draw(3)
    net, chain = draw.ensemble(6, 62, (256, 256), "silu", low, norm=True), draw.chain(300, 5, 2, (128, 128), low)
    s, a, t = draw(300, 60), draw(4, 300, 2).requires_grad_(), draw(6, 300)
    start, noise = draw(300, 2), draw(5, 300, 2)

    def compute() -> list[Tensor]:
        values, loss = ops.ensemble_mlp(net, s, a), ops.ensemble_mse(net, s, a[0].detach(), t, 0.1)
        latents = ops.denoising_chain(chain, start, noise, table(5))
        gradients = torch.autograd.grad(
            values.square().sum() + loss + latents.square().sum(), [a, *parameters(net), *parameters(chain)]
        )
        return [values, loss, latents, *gradients]

    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(compute())
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@NATIVE
@pytest.mark.parametrize(
    ("operation", "output"),
    [
        ("ensemble_forward", 0),
        ("ensemble_action_gradient", 0),
        ("ensemble_weight_gradients", 0),
        ("ensemble_weight_gradients", 1),
        ("ensemble_weight_gradients", 2),
        ("ensemble_fit", 0),
        ("ensemble_fit", 1),
        ("ensemble_fit", 2),
        ("ensemble_fit", 3),
        ("chain_forward", 0),
        *(("chain_backward", i) for i in range(7)),
    ],
)
def test_a_wrong_kernel_does_not_pass(operation, output, monkeypatch):
    """The comparisons above fail where one number of what a kernel returns is wrong."""
    compare = {
        "fit": lambda: test_fits_are_those_of_autograd(torch.float32, "silu", True, SIZES[1]),
        "ensemble": lambda: test_ensembles_are_those_of_autograd(torch.float32, "silu", True, SIZES[1], monkeypatch),
        "chain": lambda: test_chains_are_those_of_autograd(torch.float32, True, CHAINS[1], monkeypatch),
    }["fit" if operation == "ensemble_fit" else operation.split("_")[0]]
    compare()
    with corrupted(operation, output, monkeypatch), pytest.raises(AssertionError):
        compare()


def test_references_have_the_gradients_of_finite_differences():
    draw = Draw(4, torch.float64)
    s, a, t = draw(3, 4), draw(2, 3, 2).requires_grad_(), draw(2, 3)
    start, noise = draw(3, 2), draw(2, 3, 2)
    chain = draw.chain(3, 2, 2, (5, 4))
    for activation, norm in itertools.product(("silu", "relu"), (False, True)):
        net = draw.ensemble(2, 6, (5, 4), activation, norm=norm)
        assert torch.autograd.gradcheck(lambda a, *_, n=net: ops.ensemble_mlp(n, s, a), (a, *parameters(net)))
        assert torch.autograd.gradcheck(
            lambda *_, n=net: ops.ensemble_mse(n, s, a[0].detach(), t, 0.7), tuple(parameters(net))
        )
    assert torch.autograd.gradcheck(
        lambda *_: ops.denoising_chain(chain, start, noise, table(2)), tuple(parameters(chain))
    )
    assert torch.autograd.gradcheck(
        lambda *_: ops.score_output(chain, start, torch.tensor([0, 1, 1])), tuple(parameters(chain))
    )


# ------------------------------------------------------------------------------------------------ packed weights


def values_of(critic: MLPCritic, score: ScoreMLP, s: Tensor, a: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [critic(s, a), score.chain(s, a[0], None, table(3)), score(s, a[0], 1)]


@NATIVE
@pytest.mark.parametrize("low", DTYPES, ids=str)
def test_packed_weights_follow_their_owner(low):
    """After a change that is told of, after loading, and in copies, whose changes the original does not see."""
    generator, draw = torch.Generator().manual_seed(2), Draw(8)
    critic = MLPCritic(2, 4, 2, (32, 32), "silu", generator, norm=True)
    score = ScoreMLP(4, 2, 3, (32, 64), 8, False, generator)
    s, a = draw(5, 4), draw(1, 5, 2)
    for net in (critic, score):
        net.accelerate()
        net.dtype = low

    def require_current() -> None:
        plain = copy.deepcopy(critic), copy.deepcopy(score)
        for net in plain:
            net.dtype = net.packed = None
        for got, want in zip(values_of(critic, score, s, a), values_of(*plain, s, a)):
            assert float((got - want).norm()) <= (1e-5 if low == torch.float32 else 0.02) * float(want.norm())

    require_current()
    before = values_of(critic, score, s, a)
    copies = copy.deepcopy((critic, score))
    state = copy.deepcopy((critic.state_dict(), score.state_dict()))
    with torch.no_grad():
        for net in (critic, score):
            for weight in net.weights:
                weight.mul_(1.5)
        score.embedding.mul_(1.5)
        for net in (critic, score):
            assert net.packed is not None
            net.packed.invalidate()
    require_current()
    after = values_of(critic, score, s, a)
    assert all(not torch.allclose(one, two) for one, two in zip(before, after))
    assert all(torch.equal(one, two) for one, two in zip(before, values_of(*copies, s, a)))
    critic.load_state_dict(state[0])
    score.load_state_dict(state[1])
    assert all(torch.equal(one, two) for one, two in zip(before, values_of(critic, score, s, a)))


@NATIVE
def test_other_weights_with_the_same_packed_forms_are_packed_anew():
    draw = Draw(2)
    net, s, a = draw.ensemble(3, 6, (32, 32), "silu"), draw(5, 4), draw(1, 5, 2)
    values = ops.ensemble_mlp(frozen(net), s, a)
    some = net.with_groups([[p[1:].detach() for p in group] for group in net.groups])
    require_equal([ops.ensemble_mlp(some, s, a)], [values[1:]])


# ------------------------------------------------------------------------------------------------ what is left to the
# reference


def _odd(name: str) -> tuple[ops.EnsembleWeights, Tensor, Tensor]:
    dtype = torch.float64 if name == "float64" else torch.float32
    draw = Draw(9, dtype)
    net = draw.ensemble(2, 6, (40, 32) if name == "odd widths" else (32, 32), "silu")
    s, a = draw(0 if name == "no rows" else 5, 4), draw(1, 0 if name == "no rows" else 5, 2)
    if name == "not packed":
        net = net._replace(packed=None)
    if name == "no hidden layer":
        net = draw.ensemble(2, 6, (), "silu")
    if name == "a state that learns":
        s.requires_grad_()
    if name == "another device":
        net = net.with_groups([[p.detach().to("meta") for p in group] for group in net.groups])
        s, a = s.to("meta"), a.to("meta")
    return net, s, a


@pytest.mark.parametrize(
    "name",
    ["float64", "odd widths", "no rows", "not packed", "no hidden layer", "a state that learns", "another device"],
)
def test_the_reference_serves_what_the_kernels_do_not(name, monkeypatch):
    net, s, a = _odd(name)
    with only(False, monkeypatch):
        found = ops.ensemble_mlp(net, s, a)
    wanted = reference.ensemble_mlp(net, s, a)
    assert found.shape == wanted.shape
    assert found.device == wanted.device
    if name not in ("another device", "no rows"):
        require_equal([found], [wanted])


def test_compiled_and_fake_tensors_are_left_to_the_reference(monkeypatch):
    draw = Draw(9)
    net, s, a = frozen(draw.ensemble(2, 6, (32, 32), "silu")), draw(5, 4), draw(1, 5, 2)
    wanted = reference.ensemble_mlp(net, s, a)
    with only(False, monkeypatch):
        compiled = torch.compile(lambda n, s, a: ops.ensemble_mlp(n, s, a), backend="eager")(net, s, a)
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = ops.ensemble_mlp(net, mode.from_tensor(s), mode.from_tensor(a))
    require_equal([compiled], [wanted])
    assert fake.shape == wanted.shape


@NATIVE
def test_second_derivatives_are_the_references():
    draw = Draw(11)
    net, s, a = draw.ensemble(2, 6, (32, 32), "silu", norm=True), draw(5, 4), draw(2, 5, 2).requires_grad_()
    t = draw(2, 5)
    chain, start = draw.chain(5, 3, 2, (32, 32)), draw(5, 2)

    def second(operations) -> list[Tensor]:
        found = []
        values = (
            (operations.ensemble_mlp(net, s, a), [a, *parameters(net)]),
            (operations.ensemble_mse(net, s, a[0].detach(), t, 0.3), parameters(net)),
            (operations.denoising_chain(chain, start, None, table(3)), parameters(chain)),
        )
        for value, inputs in values:
            first = torch.autograd.grad(value.square().sum(), inputs, create_graph=True)
            loss = torch.stack([g.square().sum() for g in first]).sum()
            found += [g for g in torch.autograd.grad(loss, inputs, allow_unused=True) if g is not None]
        return found

    require_equal(second(ops), second(reference))


@NATIVE
@pytest.mark.parametrize("low", DTYPES, ids=str)
def test_a_number_that_is_not_one_is_not_fitted_in_silence(low):
    draw = Draw(7)
    net, t = draw.ensemble(2, 6, (32, 32), "silu", low, norm=True), draw(2, 70)
    t[1, 66] = torch.nan
    loss = ops.ensemble_mse(net, draw(70, 4), draw(70, 2), t, 1.0)
    assert loss.isnan()
    gradients = torch.autograd.grad(loss, parameters(net))
    assert all(g[0].isfinite().all() and g[1].isnan().any() for g in gradients)


@NATIVE
def test_tensors_that_do_not_fit_are_refused_by_the_registered_operations():
    draw = Draw(7)
    net = frozen(draw.ensemble(2, 6, (32, 32), "relu"))
    assert ops.native_available()
    registered, packed = torch.ops.saddlepoint, torch.ops.saddlepoint.ensemble_pack(net.weights, 4, False, False)
    for s, a in (
        (torch.zeros(5, 3), torch.zeros(1, 5, 2)),
        (torch.zeros(5, 4), torch.zeros(1, 5, 2, dtype=torch.float64)),
    ):
        with pytest.raises(ValueError, match="take a dense Float tensor"):
            registered.ensemble_forward(net.weights, net.biases, [], packed, s, a, False, False, False, False)
    with pytest.raises(ValueError, match="a gain and a shift"):
        registered.ensemble_forward(net.weights, net.biases, net.biases[:1], packed, s, a, False, False, False, False)
    with pytest.raises(ValueError, match="multiples of 32"):
        registered.ensemble_pack([torch.zeros(2, 6, 40), torch.zeros(2, 40, 1)], 4, False, False)
