"""Stochastic steps of flow matching against closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from saddlepoint.diffusion.kernel import ddim_kernel, flow_kernel

PAIRS = [(1.0, 0.9), (0.7, 0.4), (0.2, 0.05), (0.9999, 0.5), (0.3, 0.0)]


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sde", ["ddim", "flow"])
@pytest.mark.parametrize(("s", "following"), PAIRS)
def test_without_noise_a_step_is_that_of_the_ode(sde, s, following):
    x, v = double(3, 4, 2), double(3, 4, 2, seed=1)
    step = flow_kernel(v, x, s, following, 0.0, sde)
    torch.testing.assert_close(step.mean, x + (following - s) * v, rtol=1e-12, atol=1e-12)
    assert not step.std.any()


@pytest.mark.parametrize(("s", "following"), PAIRS[1:4])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_ddim_form_is_ddim_on_the_variance_preserving_image(s, following, eta):
    """x / sqrt((1 - s)^2 + s^2) is a variance-preserving path with alpha_bar = (1 - s)^2 / ((1 - s)^2 + s^2)."""
    x, v = double(5, 3), double(5, 3, seed=1)
    size, size_next = (np.hypot(1 - level, level) for level in (s, following))
    wanted = ddim_kernel(
        x + (1 - s) * v, x / size, ((1 - s) / size) ** 2, ((1 - following) / size_next) ** 2, eta, "epsilon"
    )
    found = flow_kernel(v, x, s, following, eta)
    torch.testing.assert_close(found.mean, size_next * wanted.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.std, size_next * wanted.std, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("s", "following"), PAIRS)
def test_the_ddim_form_keeps_the_marginals_where_the_clean_point_is_drawn_from_its_posterior(s, following, eta):
    """x0 ~ N(2, 0.5^2): given x0 and x_s the step's mean is linear in both, so mean and variance of x_s' follow
    exactly; they must be those of the path."""
    mean_0, var_0 = 2.0, 0.25
    zero = torch.zeros(1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)

    def mean_of(x0: torch.Tensor, x: torch.Tensor) -> float:
        return float(flow_kernel((x - x0) / s, x, s, following, eta).mean)

    from_clean, from_noisy = mean_of(one, zero), mean_of(zero, one)
    std = float(flow_kernel(zero, zero, s, following, eta).std)
    var_s = (1 - s) ** 2 * var_0 + s**2
    covariance = (1 - s) * var_0
    mean = from_clean * mean_0 + from_noisy * (1 - s) * mean_0
    variance = from_clean**2 * var_0 + from_noisy**2 * var_s + 2 * from_clean * from_noisy * covariance + std**2
    assert mean == pytest.approx((1 - following) * mean_0, abs=1e-12)
    assert variance == pytest.approx((1 - following) ** 2 * var_0 + following**2, abs=1e-12)


@pytest.mark.parametrize(("sde", "eta"), [("ddim", 0.5), ("flow", 0.7)])
def test_both_forms_tend_to_the_marginals_of_a_gaussian(sde, eta):
    """With the exact velocity E[e - x0 | x] of x0 ~ N(1, 0.3^2) every step is affine, so the chain's mean and variance
    are computed without a draw."""
    mean_0, var_0 = 1.0, 0.09
    errors = []
    for steps in (50, 400):
        levels = np.linspace(1, 0, steps + 1)
        mean, variance = 0.0, 1.0
        for s, following in pairwise(levels):
            total = (1 - s) ** 2 * var_0 + s**2
            slope = (s - (1 - s) * var_0) / total
            centre = (1 - s) * mean_0

            def output(x: float, slope=slope, centre=centre, s=s, following=following):
                x = torch.tensor([x], dtype=torch.float64)
                return flow_kernel(-mean_0 + slope * (x - centre), x, s, following, eta, sde)

            at_zero, at_one = output(0.0), output(1.0)
            gain = float(at_one.mean - at_zero.mean)
            mean, variance = float(at_zero.mean) + gain * mean, gain**2 * variance + float(at_zero.std) ** 2
        errors.append(abs(mean - mean_0) + abs(variance**0.5 - var_0**0.5))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3


def test_noise_at_the_ends_of_the_path():
    x, v = double(2, 3), double(2, 3, seed=1)
    assert float(flow_kernel(v, x, 1.0, 0.8, 0.5).std) == pytest.approx(0.4)  # eta s'
    assert float(flow_kernel(v, x, 0.1, 0.0, 1.0).std) == 0
    first = flow_kernel(v, x, 1.0, 0.8, 0.7, "flow")
    assert float(first.std) == pytest.approx(0.7 * np.sqrt(1 / 0.2) * np.sqrt(0.2))  # finite, with s' in 1 - s
    torch.testing.assert_close(first.mean, x * (1 - 0.49 / 0.2 * 0.2 / 2) - 0.2 * v)


def test_the_flow_form_is_its_formula_and_the_limit_of_the_ddim_form():
    x, v, s, following, a = double(4, 3), double(4, 3, seed=1), 0.6, 0.5, 0.7
    q, dt = a * np.sqrt(s / (1 - s)), following - s
    step = flow_kernel(v, x, s, following, a, "flow")
    torch.testing.assert_close(step.mean, x * (1 + q**2 * dt / (2 * s)) + v * (1 + q**2 * (1 - s) / (2 * s)) * dt)
    assert float(step.std) == pytest.approx(q * np.sqrt(-dt))
    close = 0.6 - 1e-6
    # a = sqrt(2) eta
    ddim, flow = flow_kernel(v, x, s, close, 0.5, "ddim"), flow_kernel(v, x, s, close, 0.5 * 2**0.5, "flow")
    assert float(ddim.std) == pytest.approx(float(flow.std), rel=1e-4)


def test_rows_have_levels_of_their_own_and_another_sde_is_refused():
    x, v = double(2, 3, 4, 4), double(2, 3, 4, 4, seed=1)
    levels, following, eta = torch.tensor([0.9, 0.4]), torch.tensor([0.7, 0.1]), torch.tensor([0.5, 0.0])
    together = flow_kernel(v, x, levels, following, eta, "flow")
    for row in range(2):
        alone = flow_kernel(
            v[row : row + 1], x[row : row + 1], levels[row].item(), following[row].item(), eta[row].item(), "flow"
        )
        torch.testing.assert_close(together.mean[row : row + 1], alone.mean, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="ddim or flow"):
        flow_kernel(v, x, 0.9, 0.7, 0.5, "cps")


def test_a_step_that_leaves_no_noise_has_gradients_that_drown_the_others():
    """|d mean / d velocity| / std is the size of a log-probability's gradient: why such a step is not learnt from."""

    def size(s: float, following: float) -> float:
        one, none = (flow_kernel(torch.full((1,), v), torch.zeros(1), s, following, 0.5) for v in (1.0, 0.0))
        return float((one.mean - none.mean).abs() / one.std)

    # the last steps of diffusers' Stable Diffusion 3 (12 steps, shift 3) but the very last
    assert size(0.2366, 0.0089) == pytest.approx(51.4, rel=0.01)
    assert size(0.4039, 0.2366) == pytest.approx(1.73, rel=0.01)
