"""The C++ passes (nn/fused.cpp) against PyTorch's, autograd's, and themselves with other threads."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import PARITY, PARITY_VP, ALGDConfig
from saddlepoint.constrained.budget import CostBudget
from saddlepoint.nn import fused, fused_normed, native
from saddlepoint.nn.critics import Ensemble, action_gradient, fit, trace
from saddlepoint.nn.normed import NormedMLP
from saddlepoint.types import Batch, EnvShape

pytestmark = pytest.mark.skipif(not fused.works(torch.float32), reason="no C++ compiler, or no AVX-512")
LOW = pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not fused.works(torch.bfloat16), reason="no products in bfloat16"))
CONFIG = ALGDConfig(critic_hidden=(64, 32), policy_hidden=(32, 96, 64), batch_size=70)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(
    ("members", "state", "action", "hidden", "proposals", "batch"),
    [(1, 3, 1, (32,), 1, 1), (3, 33, 2, (64, 96), 3, 70), (2, 60, 5, (32, 64, 32), 2, 128), (6, 32, 17, (256, 256), 1, 33)],
)
def test_passes_are_those_of_autograd(dtype, activation, members, state, action, hidden, proposals, batch, generator):
    critic = Ensemble(members, state, action, hidden, activation, generator)
    with torch.no_grad():
        for bias in critic.biases:
            bias.normal_(std=0.3, generator=generator)
    s = torch.randn(batch, state, generator=generator)
    a = torch.randn(proposals, batch, action, generator=generator).requires_grad_()
    values = torch.stack([critic(s, one) for one in a], 1)
    upstream = torch.randn(values.shape, generator=generator) * (torch.rand(values.shape, generator=generator) < 0.6)
    slopes = torch.autograd.grad(values, a, upstream)[0]
    a = a.detach()
    targets, shared = torch.randn(2, members, batch, generator=generator), torch.randn(batch, generator=generator)
    losses = [0.3 * (critic(s, a[0]) - target).square().sum() for target in (*targets, shared)]
    wanted = [[loss.detach(), *torch.autograd.grad(loss, list(critic.parameters()))] for loss in losses]

    def found() -> list[Tensor]:
        net = critic.layers(dtype)
        saved = trace(net, s, a, activation, "slopes")
        parts = [saved.values, trace(net, s, a, activation, "nothing").values, action_gradient(net, saved, upstream, activation, state)]
        for target in (*targets, shared):
            loss, gradients = fit(net, s, a[0], target, 0.3, activation)
            parts += [loss, *gradients]
        return [part.detach() for part in parts]

    exact = [values.detach(), values.detach(), slopes, *(part for parts in wanted for part in parts)]
    layered = found()
    critic.fuse()
    assert isinstance(critic.layers(dtype), fused.FusedNet)
    for got, by_pytorch, want in zip(found(), layered, exact, strict=True):
        assert got.shape == want.shape
        # Exact in float32; in bfloat16, where a ReLU near 0 goes either way, no further off than PyTorch's.
        allowed = 1e-5 * want.norm() if dtype == torch.float32 else 0.01 * want.norm() + 1.5 * (by_pytorch - want).norm()
        assert (got - want).norm() <= allowed


def test_passes_take_up_weights_that_have_moved(generator):
    critic = Ensemble(2, 4, 2, (32, 32), "silu", generator)
    s, a = torch.randn(5, 4, generator=generator), torch.randn(1, 5, 2, generator=generator)
    critic.fuse()
    with torch.no_grad():
        before = trace(critic.layers(), s, a, "silu").values
        critic.weights[1].mul_(2)
        after = trace(critic.layers(), s, a, "silu").values
        torch.testing.assert_close(after[:, 0], critic(s, a[0]))
    assert not torch.allclose(before, after)


@pytest.mark.parametrize(("state", "hidden"), [(60, 256), (33, 96)])
def test_float32_products_are_as_exact_as_pytorchs(state, hidden, generator):
    """Also where they are sums of products of bfloat16 parts (nn/split.h): with large biases a ReLU network is a chain of products."""
    critic = Ensemble(3, state, 2, (hidden, hidden), "relu", generator)
    with torch.no_grad():
        for bias in critic.biases[:-1]:
            bias.fill_(100)
    s, a = torch.randn(200, state, generator=generator), torch.randn(1, 200, 2, generator=generator)
    wanted = torch.zeros(200)
    double = copy.deepcopy(critic).double()
    exact = fit(double.layers(), s.double(), a[0].double(), wanted.double(), 1.0, "relu")
    layered = fit(critic.layers(), s, a[0], wanted, 1.0, "relu")
    critic.fuse()
    found = fit(critic.layers(), s, a[0], wanted, 1.0, "relu")
    for got, by_pytorch, want in zip(found.gradients, layered.gradients, exact.gradients, strict=True):
        assert (got - want).norm() <= 2 * (by_pytorch - want).norm() + 1e-7 * want.norm()


@pytest.mark.skipif(not getattr(fused.library(), "has_parts", int)(), reason="no AMX: every other test is without it")
def test_the_passes_without_the_matrix_unit():
    """SADDLEPOINT_AMX=0 has oneDNN multiply in float32, as on processors without one."""
    chosen = ["tests/test_fused.py", "tests/test_fused_normed.py", "-k", "(autograd or exact) and not bfloat16 and not dtype1"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, env=os.environ | {"SADDLEPOINT_AMX": "0"}, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
def test_what_is_not_a_number_is_not_fitted_in_silence(dtype, generator):
    critic = Ensemble(2, 4, 2, (32, 32), "silu", generator)
    critic.fuse()
    wanted = torch.randn(2, 70, generator=generator)
    wanted[1, 66] = torch.nan
    found = fit(critic.layers(dtype), torch.randn(70, 4, generator=generator), torch.randn(70, 2, generator=generator), wanted, 1.0, "silu")
    assert found.loss.isnan()
    assert all(gradient[0].isfinite().all() and gradient[1].isnan().any() for gradient in found.gradients)


VARIANTS = {
    "default": {}, "no entropy": {"entropy": "none"}, "action space": {"score_space": "action"}, "variance preserving": {"schedule": "vp"},
    "clean": {"prediction": "clean"}, "score": {"prediction": "score"}, "attached": {"detach_point": False, "score_pairing": "after"},
    "mean form": {"score_form": "mean", "proposals": 6}, "plain": {"energy": "plain"}, "one step": {"steps": 1, "schedule": "vp"},
}  # fmt: skip


def agents(config: ALGDConfig, constraints: int = 1) -> tuple[ALGD, ALGD]:
    shape = EnvShape(33, (-1.0, -2.0), (1.0, 0.5), constraints)
    budgets = (CostBudget(0.01),) * constraints
    one, two = (ALGD(config, shape, budgets, seed=3, compile=compiled) for compiled in (False, True))
    return one, two


def batch_of(rows: int, constraints: int, generator: torch.Generator) -> Batch:
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    ends = (torch.rand(rows, generator=generator) < 0.1).float()
    return Batch(draw(rows, 33), torch.tanh(draw(rows, 2)), draw(rows), draw(rows, constraints).abs(), draw(rows, 33), ends)


def follow_each_other(config: ALGDConfig, constraints: int, generator: torch.Generator) -> None:
    eager, compiled = agents(config, constraints)
    assert compiled.policy.network._fused
    assert not eager.policy.network._fused
    spent = torch.full((constraints,), 0.5, dtype=torch.float64) if config.multiplier_actions == "recent" else None
    for _ in range(3):
        batch = batch_of(config.batch_size, constraints, generator)
        metrics = [agent.update_batch(batch, agent.draw(config.batch_size), spent) for agent in (eager, compiled)]
    for name in metrics[0]:
        assert float(metrics[1][name]) == pytest.approx(float(metrics[0][name]), rel=1e-3, abs=1e-5), name
    for (name, one), two in zip(eager.state_dict().items(), compiled.state_dict().values(), strict=True):
        if one.is_floating_point():  # Adam's steps are the signs of gradients at first: those that are 0 but for rounding go either way
            assert (one - two).norm() <= 2e-3 * one.norm() + 1e-4, name


@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_updates_are_eager_ones(name, generator):
    follow_each_other(replace(CONFIG, **VARIANTS[name]), 1, generator)


@pytest.mark.parametrize("preset", [PARITY, PARITY_VP], ids=["parity", "parity-vp"])
def test_compiled_updates_of_the_release_are_eager_ones(preset, generator):
    follow_each_other(replace(preset, critic_hidden=(64, 32), policy_hidden=(32, 64), batch_size=64), 1, generator)


def test_compiled_updates_with_several_constraints(generator):
    follow_each_other(CONFIG, 2, generator)


@pytest.mark.skipif(not fused.works(torch.bfloat16), reason="no products in bfloat16")
@pytest.mark.parametrize(
    ("change", "most"),
    [({}, 0.05), ({"entropy": "none", "step_noise": "euler"}, 0.05), ({"schedule": "vp", "prediction": "noise"}, 0.05), ({"schedule": "vp"}, 0.1)], ids=str,
)  # fmt: skip
@pytest.mark.parametrize("rows", [64, 70])
def test_chains_in_bfloat16_have_the_gradients_of_those_in_float32(change, most, rows, generator):
    """Of the same updates, with the same critics: the policy's gradients; and actions, which stay as they are. The score of a clean action is its distance in
    units of sigma^2, 0.01 at the first level, so that rounding of the action weighs more."""
    config = replace(CONFIG, batch_size=rows, precision="bfloat16", **change)
    low, high = (agents(config)[1] for _ in range(2))
    assert low.policy.network._learning["score"].low
    high.policy.network._learning = high.policy.network._fused
    batch, gradients = batch_of(rows, 1, generator), []
    noise = high.draw(rows)
    for agent in (low, high):
        agent.update_batch(batch, noise, torch.zeros(1, dtype=torch.float64))
        gradients.append(agent.flat["policy"].gradient.clone())
    assert 0 < float((gradients[0] - gradients[1]).norm()) < most * float(gradients[1].norm())  # a ReLU near 0 goes either way
    low.load_state_dict(high.state_dict())
    states = torch.randn(9, 33, generator=generator)
    acts = [agent.act(states, "explore", torch.Generator().manual_seed(1)) for agent in (low, high)]
    assert torch.equal(*acts)


def test_compiled_agents_act_as_eager_ones(generator):
    eager, compiled = agents(CONFIG)
    states = torch.randn(9, 33, generator=generator)
    for mode in ("explore", "deterministic"):
        for rows in (1, 9):
            one, two = (agent.act(states[:rows], mode, torch.Generator().manual_seed(1)) for agent in (eager, compiled))
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_agents_made_in_inference_mode_take_up_their_weights(generator):
    state = torch.randn(5, 33, generator=generator)
    with torch.inference_mode():  # where PyTorch counts no changes
        eager, compiled = agents(CONFIG)
        for _ in range(2):
            one, two = (agent.act(state, "stochastic", torch.Generator().manual_seed(1)) for agent in (eager, compiled))
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
            for agent in (eager, compiled):
                for parameter in agent.policy.network.parameters():
                    parameter.mul_(1.5)


def test_a_stored_agent_goes_on_to_the_bit(generator):
    _, agent = agents(CONFIG)
    batches, spent = [batch_of(70, 1, generator) for _ in range(2)], torch.zeros(1, dtype=torch.float64)
    agent.update_batch(batches[0], agent.draw(70), spent)
    _, other = agents(CONFIG)
    other.load_state_dict(agent.state_dict())
    for each in (agent, other):
        each.update_batch(batches[1], each.draw(70), spent)
    for (name, one), two in zip(agent.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_threads_do_not_change_a_bit(generator):
    batch, found = batch_of(256, 1, generator), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            _, agent = agents(replace(CONFIG, batch_size=256))
            step, _ = agent.critic_step(batch, agent.draw(256))
            found.append([*step.reward_gradients, *step.cost_gradients])
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_gradient_that_is_not_finite_is_found(generator):
    _, agent = agents(CONFIG)
    batch = batch_of(70, 1, generator)
    batch.reward[3] = float("nan")
    with pytest.raises(Exception, match="not finite"):
        agent.update_batch(batch, agent.draw(70), torch.zeros(1, dtype=torch.float64))
    batch = batch_of(70, 1, generator)
    batch.observation[3, 5] = float("inf")
    with pytest.raises(Exception, match="not finite"):
        agent.update_batch(batch, agent.draw(70), torch.zeros(1, dtype=torch.float64))


def test_widths_that_do_not_fit_stay_with_pytorch(generator):
    critic = Ensemble(2, 4, 2, (40, 32), "silu", generator)
    critic.fuse()
    assert isinstance(critic.layers(), list)


def test_without_a_compiler_pytorch_goes_on(monkeypatch, generator, caplog):
    def broken(_: str) -> None:
        raise RuntimeError("no compiler\nlong story")

    monkeypatch.setattr("torch._inductor.codecache.CppCodeCache.load", broken)
    for cached in (native.library, fused.works, fused_normed.works):
        cached.cache_clear()
    try:
        critic = Ensemble(2, 4, 2, (32, 32), "silu", generator)
        critic.fuse()
        assert isinstance(critic.layers(), list)
        assert "cannot be built here (no compiler)" in caplog.text
        assert not NormedMLP((4, 2), (32,), 3, generator).fuse()
    finally:
        for cached in (native.library, fused.works, fused_normed.works):
            cached.cache_clear()


def test_wrong_tensors_are_refused(generator):
    critic = Ensemble(2, 4, 2, (32, 32), "relu", generator)
    critic.fuse()
    net = critic.layers()
    with pytest.raises(ValueError, match=r"dense torch\.float32 tensor"):
        trace(net, torch.zeros(5, 3), torch.zeros(1, 5, 2), "relu")
    with pytest.raises(ValueError, match=r"dense torch\.float32 tensor"):
        trace(net, torch.zeros(5, 4), torch.zeros(1, 5, 2, dtype=torch.float64), "relu")
