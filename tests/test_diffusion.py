"""The diffusion core against closed forms: Gaussians and two-mode mixtures, whose noised scores are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saddlepoint.diffusion.energy_score import energy_score
from saddlepoint.diffusion.kernel import Gaussian, ancestral_reverse, ddim_kernel, euler_reverse, guided_ddpm_reverse
from saddlepoint.diffusion.network import ScoreMLP, ScoreNetwork
from saddlepoint.diffusion.schedule import linear_betas, prior_reaching_betas, ve_schedule, vp_schedule
from saddlepoint.nn import ops

F64 = torch.float64


# ---------------------------------------------------------------------------------------------------- schedules


def test_ve_schedule_is_geometric():
    sigma = ve_schedule(7, 0.02, 3.0).sigma.numpy()
    np.testing.assert_allclose(sigma, np.geomspace(0.02, 3.0, 7), rtol=1e-14)
    assert ve_schedule(1, 0.02, 3.0).sigma.tolist() == [0.02]
    assert float(ve_schedule(7, 0.02, 3.0).delta_sigma2.sum()) == pytest.approx(9.0, rel=1e-14)


@given(st.integers(1, 40), st.floats(1e-3, 0.5), st.floats(0.9, 0.999))
def test_prior_reaching_betas_reach_the_prior(steps, low, high):
    schedule = vp_schedule(prior_reaching_betas(steps, low, high))
    assert float(schedule.sigma[0]) == pytest.approx(low, rel=1e-9)
    if steps > 1:
        assert float(schedule.sigma[-1]) == pytest.approx(high, rel=1e-9)
    torch.testing.assert_close(schedule.alpha_bar + schedule.sigma.square(), torch.ones(steps, dtype=F64))


def test_released_betas_do_not_reach_it():
    assert float(vp_schedule(linear_betas(5)).alpha_bar[-1]) == pytest.approx(0.951, abs=1e-3)


@pytest.mark.parametrize("bad", [(0, 0.1, 1.0), (3, 0.0, 1.0), (3, 2.0, 1.0)])
def test_impossible_ve_schedules_are_refused(bad):
    with pytest.raises(ValueError, match="VE schedule"):
        ve_schedule(*bad)


def test_impossible_vp_schedules_are_refused():
    with pytest.raises(ValueError, match="betas"):
        vp_schedule(torch.tensor([0.1, 1.0]))


# ---------------------------------------------------------------------------------------------------- kernels


def test_gaussian_log_prob_is_the_normal_density():
    mean, std, point = torch.randn(3, 4, dtype=F64), torch.rand(3, 4, dtype=F64) + 0.1, torch.randn(3, 4, dtype=F64)
    torch.testing.assert_close(
        Gaussian(mean, std).log_prob(point), torch.distributions.Normal(mean, std).log_prob(point)
    )


def gaussian_score(schedule, mean: float, std: float):
    """Exact score of the noised N(mean, std^2): -(x - alpha mean) / (alpha^2 std^2 + sigma^2)."""

    def score(x, k):
        alpha, sigma = schedule.alpha[k], schedule.sigma[k]
        return -(x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return score


@pytest.mark.parametrize("kind", ["ve", "vp"])
def test_ancestral_chain_recovers_a_point_exactly(kind):
    """For data at one point the posterior of the forward process is exact at any number of steps."""
    schedule = ve_schedule(4, 0.05, 5.0) if kind == "ve" else vp_schedule(prior_reaching_betas(4))
    process = ancestral_reverse(schedule)
    generator = torch.Generator().manual_seed(0)
    start, noise = (
        torch.randn(8, 1, generator=generator, dtype=F64),
        torch.randn(4, 8, 1, generator=generator, dtype=F64),
    )
    chain = ops.reverse_chain(gaussian_score(schedule, 0.7, 0.0), process.start * start, noise, process.table)
    torch.testing.assert_close(chain[0], torch.full((8, 1), 0.7, dtype=F64))


@pytest.mark.parametrize("kind", ["ve", "vp", "euler"])
def test_fine_chains_recover_mean_and_variance(kind):
    """The chain of an exact score is linear, so its mean and variance follow a recursion: no sampling error."""
    schedule = vp_schedule(prior_reaching_betas(400, 0.01, 0.9999)) if kind == "vp" else ve_schedule(400, 0.01, 50.0)
    process = euler_reverse(schedule) if kind == "euler" else ancestral_reverse(schedule)
    score = gaussian_score(schedule, 1.5, 0.6)
    mean, variance = 0.0, process.start**2
    for k in reversed(range(400)):
        zero, one = (
            float(process.kernel(k, torch.tensor(x, dtype=F64), score(torch.tensor(x, dtype=F64), k)).mean)
            for x in (0.0, 1.0)
        )
        gain = one - zero
        mean, variance = zero + gain * mean, gain**2 * variance + float(process.std[k]) ** 2
    assert mean == pytest.approx(1.5, abs=0.02)
    assert math.sqrt(variance) == pytest.approx(0.6, abs=0.02)


def test_ddim_with_eta_one_is_the_ancestral_step():
    betas = linear_betas(20)
    schedule = vp_schedule(betas)
    process, x, eps = ancestral_reverse(schedule), torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    for k in (1, 7, 19):
        ours = process.kernel(k, x, -eps / schedule.sigma[k])
        ddim = ddim_kernel(eps, x, schedule.alpha_bar[k], schedule.alpha_bar[k - 1], 1.0, "epsilon")
        torch.testing.assert_close(ddim.mean, ours.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ddim.std, ours.std, rtol=1e-9, atol=1e-9)


def test_ddim_prediction_types_agree():
    """One (x0, eps) pair said in three ways gives one step."""
    x0, eps, ab, prev = torch.randn(4, dtype=F64), torch.randn(4, dtype=F64), 0.6, 0.8
    x, v = ab**0.5 * x0 + (1 - ab) ** 0.5 * eps, ab**0.5 * eps - (1 - ab) ** 0.5 * x0
    steps = [ddim_kernel(o, x, ab, prev, 0.3, t) for o, t in ((eps, "epsilon"), (v, "v_prediction"), (x0, "sample"))]
    for step in steps[1:]:
        torch.testing.assert_close(step.mean, steps[0].mean)
    with pytest.raises(ValueError, match="prediction_type"):
        ddim_kernel(eps, x, ab, prev, 0.3, "noise")


def test_guidance_moves_the_released_chain_by_its_weight():
    process = guided_ddpm_reverse(linear_betas(5), guidance=0.05)
    x, eps, unit = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    moved = process.kernel(2, x, unit, eps).mean - process.kernel(2, x, 0 * unit, eps).mean
    torch.testing.assert_close(moved, (0.05 * unit).expand(3, 2))


# ---------------------------------------------------------------------------------------------------- Monte-Carlo score


def mixture(x, means, std, weights):
    """log density and score of a Gaussian mixture (dim 2), by hand."""
    means, weights = torch.tensor(means, dtype=F64), torch.tensor(weights, dtype=F64)
    difference = x[..., None, :] - means
    log = -0.5 * difference.square().sum(-1) / std**2 + weights.log()
    share = torch.softmax(log, -1)
    return torch.logsumexp(log, -1), -(share[..., None] * difference).sum(-2) / std**2


CASES = {
    "gaussian": ([[0.4, -0.3]], [1.0]),
    "two modes": ([[1.0, 0.2], [-0.9, -0.4]], [0.3, 0.7]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["gradient", "mean"])
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_energy_score_is_the_score_of_the_noised_density(case, form, alpha):
    """exp(-E/beta) is a mixture of std s; noised, each mode becomes alpha*mean with variance alpha^2 s^2 + sigma^2."""
    means, weights = CASES[case]
    s, beta, sigma = 0.5, 0.7, 0.4 * torch.ones(3, dtype=F64)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200_000, 3, 2, generator=generator, dtype=F64)
    point = alpha * torch.tensor([[0.0, 0.0], [0.5, -0.2], [-0.6, 0.3]], dtype=F64)
    got = energy_score(lambda a: -beta * mixture(a, means, s, weights)[0], point, alpha, sigma, noise, beta, form=form)
    noised = [[alpha * m for m in mean] for mean in means]
    _, exact = mixture(point, noised, math.sqrt(alpha**2 * s**2 + 0.4**2), weights)
    torch.testing.assert_close(got, exact, rtol=0, atol=0.02)


def test_energy_score_clips_and_refuses():
    seen = []

    def energy(a):
        seen.append(a.detach())
        return a.square().sum(-1)

    noise = torch.randn(50, 2, 2)
    energy_score(energy, torch.zeros(2, 2), 1.0, 3.0, noise, 1.0, low=-torch.ones(2), high=torch.ones(2))
    assert seen[0].abs().max() <= 1
    with pytest.raises(ValueError, match="form"):
        energy_score(energy, torch.zeros(2, 2), 1.0, 3.0, noise, 1.0, form="both")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5))
def test_energy_score_carries_no_gradient_and_weights_are_shift_invariant(proposals, batch):
    point = torch.randn(batch, 2, dtype=F64, requires_grad=True)
    noise = torch.randn(proposals, batch, 2, dtype=F64)
    one = energy_score(lambda a: a.square().sum(-1), point, 1.0, 0.5, noise, 0.3)
    two = energy_score(lambda a: a.square().sum(-1) + 123.0, point, 1.0, 0.5, noise, 0.3)
    assert not one.requires_grad
    torch.testing.assert_close(one, two)


# ---------------------------------------------------------------------------------------------------- network


def test_score_network_is_the_plain_mlp_on_the_concatenation(generator):
    """The split first layer equals one product on concat(state, u, embedding)."""
    network = ScoreMLP(5, 2, 4, (8, 6), 3, True, generator).double()
    state, u, k = torch.randn(7, 5, dtype=F64), torch.randn(7, 2, dtype=F64), torch.randint(4, (7,))
    h = torch.cat([state, u, network.embedding[k]], -1)
    for w, b in zip(network.weights, network.biases):
        h = torch.relu(h @ w.T + b)
    for head in ("score", "eps"):
        wanted = h @ network.head_weights[head].T + network.head_biases[head]
        torch.testing.assert_close(network(state, u, k, head), wanted)
    same = network(state, u, 2)
    torch.testing.assert_close(same, network(state, u, torch.full((7,), 2)))


class Wave(ScoreNetwork):
    """A network of the user's own."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.3, dtype=F64))

    def forward(self, state, x, k, head="score"):
        return self.scale * torch.sin(x + state[:, :1] + k)


def test_the_chain_of_any_network_is_the_loop_over_its_outputs_with_gradients(generator):
    table = ops.ReverseTable((1.0, 0.9, 0.8), (0.1, 0.2, 0.3), (0.0, 0.5, 0.6))
    state, start, noise = torch.randn(4, 2, dtype=F64), torch.randn(4, 3, dtype=F64), torch.randn(3, 4, 3, dtype=F64)
    for network in (Wave(), ScoreMLP(2, 3, 3, (8, 8), 4, False, generator).double()):
        x = start
        for k in (2, 1, 0):
            x = table.keep[k] * x + table.drift[k] * network(state, x, k) + table.std[k] * noise[k]
        latents = network.chain(state, start, noise, table)
        torch.testing.assert_close(latents[0], x)
        assert torch.equal(latents[3], start)
        parameter = next(network.parameters())
        (wanted,), (found,) = (torch.autograd.grad(end.square().sum(), parameter) for end in (x, latents[0]))
        torch.testing.assert_close(found, wanted)
