"""The shared DDIM step against numbers recorded from SafeDiffusion-R1's released program."""

from __future__ import annotations

import pytest
import torch

from saddlepoint.diffusion.kernel import ddim_kernel
from tests.parity.fixtures import Recording


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.load("r1", "r1")


def test_ddim_step_and_its_log_probability(recording):
    cases = sorted(
        {next(iter(name.split(".", 2)[1:])) for name in recording.arrays if name.startswith("ddim50.") and ".eta" in name}
    )
    etas = sorted(
        {name.split(".eta")[1][:3] for name in recording.arrays if name.startswith("ddim50.") and ".eta" in name}
    )
    assert cases
    assert etas
    alpha_bar = recording["sched.alphas_cumprod"]
    timesteps = recording["sched.timesteps50"]
    stride = int(timesteps[0] - timesteps[1])
    t = recording["ddim50.t"]
    now, before = alpha_bar[t], alpha_bar[(t - stride).clamp(min=0)]
    sample, noise = recording["ddim50.sample"], recording["ddim50.noise"]
    for prediction in cases:
        for eta in etas:
            output = recording["ddim50.model_output"].clone().requires_grad_()
            step = ddim_kernel(output, sample, now, before, float(eta), prediction)
            name = f"ddim50.{prediction}.eta{eta}"
            recording.close(step.mean, f"{name}.mean")
            recording.close(step.std.flatten(), f"{name}.std")
            log_prob = step.log_prob(recording["ddim50.prev_sample"]).mean((1, 2, 3))
            recording.close(log_prob, f"{name}.log_prob")
            (gradient,) = torch.autograd.grad(log_prob.sum(), output)
            recording.close(gradient, f"{name}.grad")
            recording.close(step.sample(noise), f"{name}.sampled_prev")
            recording.close(step.log_prob(step.sample(noise)).mean((1, 2, 3)), f"{name}.sampled_log_prob")
