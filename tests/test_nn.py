"""Critics' hand-written backward passes against autograd; initialisers; the squash; flat networks against PyTorch's Adam."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saddlepoint.nn.critics import Ensemble, action_gradient, trace, weight_gradients
from saddlepoint.nn.flat import Adam, Flat
from saddlepoint.nn.layers import ActionBox, truncated_normal

F64 = torch.float64


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["relu", "silu"]),
    st.integers(1, 3),
)
def test_action_gradient_is_autograds(members, proposals, batch, action, activation, depth):
    generator = torch.Generator().manual_seed(members * 7 + batch)
    critic = Ensemble(members, 3, action, (6,) * depth, activation, generator).double()
    state = torch.randn(batch, 3, dtype=F64, generator=generator)
    actions = torch.randn(proposals, batch, action, dtype=F64, generator=generator).requires_grad_()
    upstream = torch.randn(members, proposals, batch, dtype=F64, generator=generator)
    values = torch.stack([critic(state, a) for a in actions], 1)
    (wanted,) = torch.autograd.grad((values * upstream).sum(), actions)
    saved = trace(critic.layers(), state, actions.detach(), activation)
    torch.testing.assert_close(saved.values, values.detach())
    torch.testing.assert_close(action_gradient(critic.layers(), saved, upstream, activation, 3), wanted)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_weight_gradients_are_autograds(activation, generator):
    critic = Ensemble(4, 5, 2, (8, 7), activation, generator).double()
    state, action = torch.randn(9, 5, dtype=F64), torch.randn(9, 2, dtype=F64)
    upstream = torch.randn(4, 9, dtype=F64)
    (critic(state, action) * upstream).sum().backward()
    saved = trace(critic.layers(), state, action[None], activation)
    weights, biases = weight_gradients(critic.layers(), saved, torch.cat([state, action], -1), upstream, activation)
    for got, parameter in zip((*weights, *biases), (*critic.weights, *critic.biases)):
        torch.testing.assert_close(got, parameter.grad)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("members", [1, 3])
def test_leaving_rows_out_changes_nothing(members, share, generator):
    critic = Ensemble(members, 5, 2, (16, 16), "silu", generator)
    state, actions = torch.randn(40, 5), torch.randn(3, 40, 2, requires_grad=True)
    upstream = torch.randn(members, 3, 40) * (torch.rand(members, 3, 40, generator=generator) < share)
    values = torch.stack([critic(state, a) for a in actions], 1)
    (wanted,) = torch.autograd.grad((values * upstream).sum(), actions)
    saved = trace(critic.layers(), state, actions.detach(), "silu")
    got = action_gradient(critic.layers(), saved, upstream, "silu", 5)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_one_float32_member_keeps_its_axis(generator):
    critic = Ensemble(1, 5, 2, (8,), "relu", generator)
    state, action = torch.randn(20, 5), torch.randn(20, 2)
    saved = trace(critic.layers(), state, action[None], "relu")
    weights, biases = weight_gradients(critic.layers(), saved, torch.cat([state, action], -1), torch.ones(1, 20), "relu")
    assert [g.shape for g in (*weights, *biases)] == [p.shape for p in critic.parameters()]


def test_bfloat16_products_stay_near_float32(generator):
    critic = Ensemble(4, 20, 3, (64, 64), "silu", generator)
    state, actions = torch.randn(32, 20), torch.randn(5, 32, 3)
    fine, coarse = critic.layers(), critic.layers(torch.bfloat16)
    one, two = trace(fine, state, actions, "silu"), trace(coarse, state, actions, "silu")
    assert two.values.dtype == torch.float32
    assert (one.values - two.values).norm() / one.values.norm() < 0.02
    up = torch.ones_like(one.values)
    a, b = (action_gradient(x, t, up, "silu", 20) for x, t in ((fine, one), (coarse, two)))
    assert (a - b).norm() / a.norm() < 0.02


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


def test_flat_networks_step_as_pytorchs_adam_steps_them_and_take_up_its_state(generator):
    module, wanted = (nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)) for _ in range(2))
    wanted.load_state_dict(module.state_dict())
    flat, pytorch = Flat(module), torch.optim.Adam(wanted.parameters(), lr=1e-2, fused=True)
    adam = Adam([(flat, 1e-2)])
    assert not adam.state_dict()["state"]
    for step in range(4):
        if step == 2:  # another goes on from PyTorch's state
            adam = Adam([(flat, 1e-2)])
            adam.load_state_dict(pytorch.state_dict())
        for p, q in zip(module.parameters(), wanted.parameters()):
            q.grad = torch.randn(q.shape, generator=generator)
            p.grad.copy_(q.grad)
        adam.step()
        pytorch.step()
    for p, q in zip(module.parameters(), wanted.parameters()):
        torch.testing.assert_close(p, q)
    torch.testing.assert_close(torch.cat([p.flatten() for p in module.parameters()]), flat.whole)
    torch.testing.assert_close(adam.state_dict()["state"], pytorch.state_dict()["state"])
