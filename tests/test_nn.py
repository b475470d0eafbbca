"""Critics of every kind, initialisers, the squash, and flat networks with their optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from saddlepoint.nn import ops
from saddlepoint.nn.critics import Critic, DeepCritic, MLPCritic, make_critic
from saddlepoint.nn.layers import ActionBox, truncated_normal
from saddlepoint.nn.optim import Flat, Optimiser, frozen
from saddlepoint.types import NonFiniteError, UserError

F64 = torch.float64
KINDS = [("mlp", "scalar"), ("mlp", "two_hot"), ("layer_norm", "scalar"), ("layer_norm", "two_hot"), ("residual", "scalar"), ("residual", "two_hot")]


def by_loops(critic: MLPCritic, state: Tensor, action: Tensor) -> Tensor:
    """The ensemble member by member and proposal by proposal, on the concatenated input."""
    values = []
    for m in range(critic.members):
        for proposal in action:
            h = torch.cat([state, proposal], -1)
            for layer, (weight, bias) in enumerate(zip(critic.weights, critic.biases)):
                h = h @ weight[m] + bias[m]
                if layer + 1 < len(critic.weights):
                    h = h.relu() if critic.activation == "relu" else h * h.sigmoid()
            values.append(h[:, 0])
    return torch.stack(values).unflatten(0, (critic.members, -1))


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("members", "proposals", "batch", "depth"), [(1, 1, 1, 1), (3, 4, 5, 2), (2, 1, 7, 3)])
def test_an_ensemble_is_its_members_one_by_one(members, proposals, batch, depth, activation, generator):
    critic = MLPCritic(members, 3, 2, (6,) * depth, activation, generator).double()
    state = torch.randn(batch, 3, dtype=F64, generator=generator)
    action = torch.randn(proposals, batch, 2, dtype=F64, generator=generator)
    torch.testing.assert_close(critic(state, action), by_loops(critic, state, action))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gradients_of_an_ensemble_are_those_of_finite_differences(activation, generator):
    critic = MLPCritic(2, 3, 2, (5, 4), activation, generator).double()
    state, action = torch.randn(4, 3, dtype=F64), torch.randn(2, 4, 2, dtype=F64, requires_grad=True)
    parameters = [(p + 0.1 * torch.rand_like(p)).detach().requires_grad_() for p in critic.parameters()]  # no unit at ReLU's kink

    def values(action: Tensor, *parameters: Tensor) -> Tensor:
        half = len(parameters) // 2
        return ops.ensemble_mlp(ops.EnsembleWeights(list(parameters[:half]), list(parameters[half:]), activation), state, action)

    assert torch.autograd.gradcheck(values, (action, *parameters))


@pytest.mark.parametrize("kind", ["mlp", "layer_norm", "residual"])
def test_a_critic_of_scalars_is_fitted_by_squared_error(kind, generator):
    critic = make_critic(kind, "scalar", 3, 4, 2, (16, 16), "silu", generator).double()
    state, action = torch.randn(6, 4, dtype=F64), torch.randn(6, 2, dtype=F64)
    for target in (torch.randn(3, 6, dtype=F64), torch.randn(6, dtype=F64)):
        wanted = 0.3 * (critic(state, action[None])[:, 0] - target).square().sum()
        torch.testing.assert_close(critic.loss(state, action, target, 0.3), wanted)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_critic_fits_a_function_and_takes_proposals(kind, generator):
    """Q(s, a) = 3 s_0 a_0 to a tenth of its variance; proposals are independent of each other."""
    critic = make_critic(*kind, 2, 3, 1, (32, 32), "silu", generator)
    optimiser = Optimiser({"critic": (critic, 3e-3)})
    for update in range(1200):
        state, action = torch.rand(64, 3, generator=generator) * 2 - 1, torch.rand(64, 1, generator=generator) * 2 - 1
        loss = critic.loss(state, action, 3 * state[:, 0] * action[:, 0], 1 / 64)
        optimiser.step(loss, update, loss=loss)
    state, action = torch.rand(200, 3, generator=generator) * 2 - 1, torch.rand(3, 200, 1, generator=generator) * 2 - 1
    with torch.no_grad():
        values = critic(state, action)
        torch.testing.assert_close(values[:, 1:2], critic(state, action[1:2]), rtol=1e-4, atol=1e-4)
    wanted = 3 * state[:, 0] * action[..., 0]
    assert values.shape == (2, 3, 200)
    assert float((values - wanted).square().mean()) < 0.1 * float(wanted.square().mean())


def test_layer_norm_bounds_what_an_action_far_outside_can_do(generator):
    plain, normed = (make_critic(kind, "scalar", 1, 3, 1, (32, 32), "relu", generator) for kind in ("mlp", "layer_norm"))
    state, far = torch.zeros(1, 3), torch.full((1, 1, 1), 1e4)
    with torch.no_grad():
        assert plain(state, far).abs() > 100
        assert normed(state, far).abs() < 20


class Linear(Critic):
    """A critic of the user's own."""

    def __init__(self, members, state, action, hidden, activation, generator):
        super().__init__()
        self.members = members
        self.weight = nn.Parameter(torch.randn(members, state + action, generator=generator))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.einsum("mi,pbi->mpb", self.weight, torch.cat([state.expand(len(action), -1, -1), action], -1))


def test_a_critic_of_ones_own_is_found_by_its_name_and_wrong_names_are_one_sentence(generator):
    critic = make_critic(f"{__name__}:Linear", "scalar", 2, 3, 1, (8,), "relu", generator)
    assert isinstance(critic, Linear)
    assert critic(torch.randn(5, 3), torch.randn(4, 5, 1)).shape == (2, 4, 5)
    for name, words in (("tansformer", "no choice"), ("nowhere:Linear", "cannot be imported"), (f"{__name__}:Nothing", "has no 'Nothing'")):
        with pytest.raises(UserError, match=words):
            make_critic(name, "scalar", 2, 3, 1, (8,), "relu", generator)


def test_frozen_modules_get_no_gradient_and_come_back(generator):
    critic = DeepCritic(2, 3, 1, (8,), "relu", generator)
    action = torch.randn(1, 4, 1, requires_grad=True)
    with frozen(critic):
        critic(torch.randn(4, 3), action).sum().backward()
    assert action.grad is not None
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())


def test_packed_weights_are_marked_stale_by_every_change_and_not_shared_with_a_copy(generator):
    critic = MLPCritic(2, 3, 1, (8,), "relu", generator)
    critic.accelerate()
    twin = copy.deepcopy(critic)
    assert twin.packed is not critic.packed
    optimiser, target = Optimiser({"critic": (critic, 1e-3)}), Flat(twin)
    changes = {
        "step": lambda: optimiser.step(critic.loss(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2), 1.0), 0),
        "load": lambda: critic.load_state_dict(twin.state_dict()),
    }
    for name, change in changes.items():
        critic.packed.forms["made"] = object()
        change()
        assert "made" not in critic.packed.forms, name
    twin.packed.forms["made"] = object()
    target.follow(optimiser.flats["critic"], 0.5)
    assert "made" not in twin.packed.forms


def test_truncated_normal_is_truncated_at_two_std(generator):
    sample = truncated_normal((200, 200), 0.3, generator)
    assert sample.abs().max() <= 0.6
    assert sample.std().item() == pytest.approx(0.3 * 0.8796, rel=0.02)  # std of N(0,1) cut at 2


def test_squash_and_its_jacobian():
    box = ActionBox.from_bounds(torch.tensor([-1.0, -3.0], dtype=F64), torch.tensor([2.0, -1.0], dtype=F64))
    x = torch.tensor([[0.0, 0.0], [0.3, -4.0], [30.0, -30.0]], dtype=F64)
    torch.testing.assert_close(box.squash(x)[0], torch.tensor([0.5, -2.0], dtype=F64))
    assert (box.squash(x) >= box.low).all()
    assert (box.squash(x) <= box.high).all()
    jacobian = torch.func.vmap(torch.func.jacrev(box.squash))(x[:2])
    torch.testing.assert_close(box.log_jacobian(x[:2]), torch.linalg.slogdet(jacobian).logabsdet)
    assert torch.isfinite(box.log_jacobian(x)).all()


def test_an_optimiser_steps_flat_networks_as_adam_steps_each_parameter(generator):
    module, wanted = (nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)) for _ in range(2))
    wanted.load_state_dict(module.state_dict())
    optimiser, adam = Optimiser({"net": (module, 1e-2)}), torch.optim.Adam(wanted.parameters(), lr=1e-2)
    for update in range(4):
        x = torch.randn(6, 5, generator=generator)
        loss = module(x).square().mean()
        optimiser.step(loss, update, loss=loss)
        adam.zero_grad()
        wanted(x).square().mean().backward()
        adam.step()
    for p, q in zip(module.parameters(), wanted.parameters()):
        torch.testing.assert_close(p, q)
    torch.testing.assert_close(torch.cat([p.flatten() for p in module.parameters()]), optimiser.flats["net"].whole)


def test_no_step_is_taken_with_a_number_that_is_not_finite(generator):
    module = nn.Linear(2, 1)
    optimiser, before = Optimiser({"net": (module, 1e-2)}), copy.deepcopy(module.state_dict())
    for factor, words in ((float("nan"), "loss is not finite at update 7"), (1.0, "gradient of net.weight")):
        if factor == 1.0:
            module.weight.register_hook(lambda gradient: gradient * float("inf"))
        loss = module(torch.ones(3, 2)).sum() * factor
        with pytest.raises(NonFiniteError, match=words):
            optimiser.step(loss, 7, loss=loss)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_polyak_step_moves_by_its_share(generator):
    online, target = nn.Linear(3, 2), nn.Linear(3, 2)
    wanted = {name: target.state_dict()[name].lerp(value, 0.3) for name, value in online.state_dict().items()}
    Flat(target).follow(Flat(online), 0.3)
    torch.testing.assert_close(target.state_dict(), wanted, check_dtype=False)
