"""MBDPO's planners and the two-hot code, against closed forms and independent lines of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saddlepoint.diffusion.schedule import linear_betas, vp_schedule
from saddlepoint.mbdpo.planner import denoise, mppi, plan_score, plan_weights, propose, visited
from saddlepoint.nn.normed import NormedMLP
from saddlepoint.nn.ops.reference_normed import mish, simnorm
from saddlepoint.nn.products import linear
from saddlepoint.nn.twohot import symexp, two_hot, two_hot_inverse, two_hot_loss

SCHEDULE = vp_schedule(linear_betas(20, 1e-4, 1e-2))
OPTIMUM = torch.tensor([[0.5, -0.3], [-0.6, 0.2], [0.1, 0.7]])


def quadratic(plans: Tensor) -> Tensor:
    """A return whose best plan is OPTIMUM: (..., horizon, action) -> (...)."""
    return -(plans - OPTIMUM).square().sum((-2, -1))


@given(st.lists(st.floats(-2e4, 2e4), min_size=1, max_size=20))
def test_two_hot_round_trip(numbers):
    x = torch.tensor(numbers, dtype=torch.float64)
    code = two_hot(x)
    assert code.shape == (len(numbers), 101)
    torch.testing.assert_close(code.sum(-1), torch.ones_like(x))
    assert int((code > 0).sum(-1).max()) <= 2
    torch.testing.assert_close(two_hot_inverse(code.log()).squeeze(-1), x, rtol=1e-6, atol=1e-9)


def test_two_hot_beyond_the_bins_and_loss(generator):
    ends = symexp(torch.tensor([-10.0, 10.0], dtype=torch.float64))
    torch.testing.assert_close(two_hot(ends * 5), torch.eye(101, dtype=torch.float64)[[0, 100]])
    x = torch.randn(7, generator=generator, dtype=torch.float64) * 30
    logits = torch.randn(3, 7, 101, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(two_hot_loss(logits, x), -(two_hot(x) * logits.log_softmax(-1)).sum(-1))


@pytest.mark.parametrize("elites", [0, 5])
def test_plan_score_is_numpys(generator, elites):
    point = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    plans = torch.rand(16, 3, 2, generator=generator, dtype=torch.float64)
    values = torch.randn(16, generator=generator, dtype=torch.float64)
    values[3] = torch.nan
    v = np.nan_to_num(values.numpy())
    logits = (v - v.mean()) / v.std(ddof=1) / 0.5
    weights = np.exp(logits - logits.max())
    if elites:
        weights[np.argsort(-v)[elites:]] = 0
    mean = (weights[:, None, None] * plans.numpy()).sum(0) / weights.sum()
    want = (np.sqrt(0.9) * mean - point.numpy()) / (1 - 0.9)
    np.testing.assert_allclose(plan_score(point, plans, values, 0.9, 0.5, elites).numpy(), want, rtol=1e-6)
    both = plan_score(point.expand(2, -1, -1), plans.expand(2, -1, -1, -1), values.expand(2, -1), 0.9, 0.5, elites)
    np.testing.assert_allclose(both[1].numpy(), want, rtol=1e-6)


def test_equal_values_are_averaged():
    torch.testing.assert_close(plan_weights(torch.full((8,), 3.0), 0.5, 0), torch.full((8,), 0.125))


def test_visited_levels():
    assert visited(20) == list(range(19, 0, -1))
    assert visited(20, 4) == [19, 13, 7, 1]
    assert visited(8, 100) == visited(8)
    assert visited(20, 1) == [19]


def test_the_step_of_the_process_is_the_released_one(generator):
    """x <- (x + (1 - alpha_bar) score) / sqrt(alpha): for a known mean plan m that is sqrt(alpha_bar of the next level) * m."""
    mean = torch.rand(1, 3, 2, generator=generator, dtype=torch.float64)
    seen = []

    def score(x: Tensor, tau: int) -> Tensor:
        seen.append(x)
        return (SCHEDULE.alpha[tau] * mean - x) / (1 - SCHEDULE.alpha_bar[tau])

    plan = denoise(torch.zeros_like(mean), SCHEDULE, visited(20), score)
    torch.testing.assert_close(seen[1], SCHEDULE.alpha[18] * mean)
    torch.testing.assert_close(plan, SCHEDULE.alpha[0] * mean)


def test_denoising_reaches_the_best_plan(generator):
    noise = torch.randn(19, 1, 512, 3, 2, generator=generator)

    def score(x: Tensor, tau: int) -> Tensor:
        alpha_bar = float(SCHEDULE.alpha_bar[tau])
        plans = propose(x, alpha_bar, noise[tau - 1])
        return plan_score(x, plans, quadratic(plans), alpha_bar, 0.5, 64)

    plan = denoise(torch.zeros(1, 3, 2), SCHEDULE, visited(20), score)
    assert float((plan[0] - OPTIMUM).abs().max()) < 0.05


def test_mppi_reaches_the_best_plan(generator):
    noise = torch.randn(8, 1, 512, 3, 2, generator=generator)

    def keep(plans: Tensor, _: int) -> Tensor:
        return plans

    arguments = (torch.zeros(1, 3, 2), noise, keep, lambda plans, _: quadratic(plans), 0.5, 32, (0.05, 2.0))
    plan, action = mppi(*arguments, None)
    assert float((plan[0] - OPTIMUM).abs().max()) < 0.1
    torch.testing.assert_close(action, plan[:, 0])
    _, explored = mppi(*arguments, torch.tensor([[0.3, 1.0, -1.0]]))
    assert float((explored[0] - OPTIMUM[0]).abs().max()) < 0.5


def test_mish_and_simnorm(generator):
    x = torch.randn(6, 16, generator=generator, requires_grad=True)
    torch.testing.assert_close(mish(x), torch.nn.functional.mish(x))
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (mish, torch.nn.functional.mish))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(simnorm(x, 8), x.view(6, 2, 8).softmax(-1).view(6, 16))


def test_linear_has_the_gradients_of_pytorchs(generator):
    x, weight, bias = (torch.randn(shape, generator=generator, requires_grad=True) for shape in ((2, 20, 7), (5, 7), (5,)))
    up = torch.randn(2, 20, 5, generator=generator)
    ours, theirs = (torch.autograd.grad((f(x, weight, bias) * up).sum(), (x, weight, bias)) for f in (linear, torch.nn.functional.linear))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_parts_of_the_input_are_its_columns(generator):
    """An ensemble on parts, one with fewer rows, equals each member on the concatenated input, with its gradients."""
    net = NormedMLP((4, 3), (8, 8), 5, generator, members=3).double()
    z, a = torch.randn(1, 4, generator=generator, dtype=torch.float64), torch.randn(6, 3, generator=generator, dtype=torch.float64)
    joined = torch.cat([z.expand(6, -1), a], dim=-1)

    def reference(member: int) -> Tensor:
        weights = [torch.cat(list(net.first), dim=-1)[member], *(w[member] for w in net.weights)]
        h = joined
        for i, weight in enumerate(weights):
            h = h @ weight.T + net.biases[i][member]
            if i < 2:
                h = torch.nn.functional.mish(torch.nn.functional.layer_norm(h, (8,), net.gains[i][member], net.shifts[i][member]))
        return h

    torch.testing.assert_close(net(z, a), torch.stack([reference(m) for m in range(3)]))
    torch.testing.assert_close(net(z, a, chosen=[2, 0]), torch.stack([reference(2), reference(0)]))
    parameters = list(net.parameters())
    ours = torch.autograd.grad(net(z, a).square().sum(), parameters)
    theirs = torch.autograd.grad(torch.stack([reference(m) for m in range(3)]).square().sum(), parameters)
    for g, h in zip(ours, theirs):
        torch.testing.assert_close(g, h)
    assert not net(z, a, frozen=True).requires_grad


def test_dropout_keeps_the_mean(generator):
    net = NormedMLP((4,), (64, 64), 5, generator, members=2, dropout=0.1)
    mask = net.drop_mask(500, generator)
    assert mask.shape == (2, 500, 64)
    assert float((mask == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.01)
    assert NormedMLP((4,), (8,), 5, generator).drop_mask(9, generator) is None
