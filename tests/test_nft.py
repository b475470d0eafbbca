"""Constrained DiffusionNFT, centred ratios and a second reward: against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saddlepoint.diffusion.kernel import Gaussian
from saddlepoint.safediffusion.config import SafeDiffusionConfig
from saddlepoint.safediffusion.grpo import (
    centred_log_prob,
    clipped_above,
    clipped_share,
    combined_rewards,
    step_log_prob,
)
from saddlepoint.safediffusion.nft import nft_loss, optimality
from saddlepoint.safediffusion.tables import DenoisingTable, FlowTable
from saddlepoint.types import UserError

torch.set_num_threads(1)


def test_optimality_is_an_advantage_within_its_clip():
    assert optimality(torch.tensor([-2.5, 0.0, 1.25, 2.5, 9.0]), 2.5).tolist() == [0.0, 0.5, 0.75, 1.0, 1.0]


def test_the_loss_is_its_formula_and_its_gradient_where_nothing_has_moved():
    """At v = v_old the gradient is 2 b (2 r - 1) (v - target) / elements / batch: towards the target for r > 1/2, away
    below, none at 1/2."""
    torch.manual_seed(0)
    old, target = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    weight, beta = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64), 0.7
    v = torch.randn(3, 2, 4, dtype=torch.float64)
    towards, away = ((1 - beta) * old + beta * v).numpy(), ((1 + beta) * old - beta * v).numpy()
    squares = [((side - target.numpy()) ** 2).reshape(3, -1).mean(1) for side in (towards, away)]
    r = weight.numpy()
    np.testing.assert_allclose(
        nft_loss(v, old, target, weight, beta), np.mean(r * squares[0] + (1 - r) * squares[1]), rtol=1e-12
    )
    answer = old.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nft_loss(answer, old, target, weight, beta), answer)
    wanted = 2 * beta * (2 * weight - 1).view(3, 1, 1) * (old - target) / 8 / 3
    torch.testing.assert_close(gradient, wanted)


def test_the_optimum_moves_along_the_improvement_direction():
    """One noised picture of probability p being good: the loss is quadratic, so its minimum is (2 E r - 1) (target -
    old) / b away in the mean case."""
    old, targets = torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]])  # a good and a bad picture at the same point
    v = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([v], lr=0.2)
    for _ in range(200):
        optimiser.zero_grad()
        nft_loss(v.expand(2, 1), old, targets, torch.tensor([1.0, 0.0]), 0.5).backward()
        optimiser.step()
    # r |b v - 1|^2 of the good one and |-b v + 1|^2 of the bad one: both are 0 at v = 1 / b.
    assert float(v) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noised_pictures_and_targets_of_ddim(prediction):
    alpha_bar = torch.tensor([0.1, 0.6], dtype=torch.float64)
    table = DenoisingTable(torch.tensor([900, 100]), alpha_bar, alpha_bar, prediction).to(torch.device("cpu"))
    clean, noise, k = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.tensor([1, 0])
    x, target = table.noised(clean, noise, k)
    a = alpha_bar[k].float().view(2, 1, 1, 1)
    torch.testing.assert_close(x, a.sqrt() * clean + (1 - a).sqrt() * noise)
    # from the right answer one step of length 0 leads back to x
    step = table.kernel(target, x, k, torch.zeros(2), "ddim")
    torch.testing.assert_close(step.mean, x, rtol=1e-5, atol=1e-5)


def test_noised_pictures_and_targets_of_a_flow():
    table = FlowTable(torch.tensor([1000.0, 300.0]), torch.tensor([1.0, 0.3]), torch.tensor([0.3, 0.0]))
    clean, noise, k = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.tensor([1, 0])
    x, velocity = table.noised(clean, noise, k)
    landed = table.kernel(velocity, x, k, torch.zeros(2), "flow").mean
    torch.testing.assert_close(landed[0], clean[0])  # the last step ends at the clean picture
    torch.testing.assert_close(landed[1], 0.7 * clean[1] + 0.3 * noise[1])
    # no noise in the last step
    assert not table.kernel(velocity, x, torch.tensor([1, 1]), torch.ones(2), "flow").std.any()


def test_the_centred_ratio_has_mean_one_and_clips_both_sides_alike():
    """KL 0.2 over 1,024 elements: the mean log-ratio is -0.2 / 1024 before, 0 after; twice the clip range, so one side
    is clipped more before."""
    generator = torch.Generator().manual_seed(0)
    images, elements, std = 4000, 1024, 0.5
    shift = torch.randn(elements, generator=generator)
    shift *= (2 * 0.2 * std**2) ** 0.5 / shift.norm()  # KL = |shift|^2 / (2 std^2)
    noise = torch.randn(images, elements, generator=generator)
    old, new = (
        Gaussian(torch.zeros(images, elements), torch.tensor(std)),
        Gaussian(shift.expand(images, elements), torch.tensor(std)),
    )
    point = old.sample(noise)
    before, after = step_log_prob(old, point, "mean"), step_log_prob(new, point, "mean")
    error = float((after - before).std()) / images**0.5
    assert float((after - before).mean()) == pytest.approx(-0.2 / elements, abs=4 * error)
    centred = centred_log_prob(after, new, old.mean, "mean")
    assert float((centred - before).mean()) == pytest.approx(0, abs=4 * error)
    shares = [
        (float(clipped_above(value, before, 1e-4)), float(clipped_share(value, before, 1e-4)))
        for value in (after, centred)
    ]
    (above, both), (above_centred, both_centred) = shares
    assert both - above > above + 0.15  # about 31 against 57 %
    assert both_centred - above_centred == pytest.approx(above_centred, abs=0.04)
    # nothing changes where nothing has moved
    torch.testing.assert_close(centred_log_prob(before, old, old.mean, "mean"), before)


def test_two_rewards_count_in_their_own_deviations():
    rewards, second = torch.randn(3, 8, dtype=torch.float64), 100 * torch.randn(3, 8, dtype=torch.float64)
    found = combined_rewards(rewards, second, 0.5)
    scales = [np.sqrt(np.mean(one.numpy().var(1, ddof=1))) for one in (rewards, second)]
    np.testing.assert_allclose(found, rewards.numpy() / scales[0] + 0.5 * second.numpy() / scales[1], rtol=1e-9)
    assert torch.equal(combined_rewards(rewards, torch.ones_like(second), 0.5), rewards / scales[0] + 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noisy_steps": (3,)}, "takes two numbers"),
        ({"noisy_steps": (3, 2)}, "takes two numbers"),
        ({"noisy_steps": (0, 51)}, "within the 50 steps"),
        ({"noisy_steps": (49, 50)}, "the last step alone"),
        ({"eta": 0.0}, "--eta must be greater than 0"),
        ({"method": "nft", "eta": -0.1}, "--eta must be greater than 0"),
        ({"method": "nft", "start": "group"}, "draws the same picture for a whole group"),
        ({"text_tokens": -1}, "--text-tokens must not be negative"),
        ({"height": -8}, "--height must be at least 0"),
        ({"second_reward": "beauty"}, "--second-reward must be alignment, none or the module:name"),
        ({"nft_beta": 0.0}, "--nft-beta must be greater than 0"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        replace(SafeDiffusionConfig(), **change).validate()


def test_options_of_the_other_method_are_refused():
    nft = SafeDiffusionConfig(method="nft")
    for name in ("clip_range", "log_prob", "noisy_steps", "ratio_center", "sde"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} does nothing here: it needs --method grpo"):
            nft.refuse_idle({name})
    with pytest.raises(UserError, match="--nft-beta does nothing"):
        SafeDiffusionConfig().refuse_idle({"nft_beta"})
    assert nft.resolved_eta(flow=True) == 0
    assert nft.resolved_start == "image"
    assert SafeDiffusionConfig().resolved_start == "group"
    assert (SafeDiffusionConfig().resolved_eta(flow=False), SafeDiffusionConfig().resolved_eta(flow=True)) == (1.0, 0.5)
    assert SafeDiffusionConfig(sde="flow").resolved_eta(flow=True) == 0.7
