"""The shared DDIM step against numbers recorded from SafeDiffusion-R1's released program."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from saddlepoint.diffusion.kernel import ddim_kernel
from tests.parity.fixtures import Recording


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.load("r1", "r1")


def ends(recording: Recording, timesteps: Tensor, steps: int) -> Tensor:
    """The timesteps where steps end that start at ``timesteps``, of a sampler with so many ``steps``. Shape as ``timesteps``."""
    return (timesteps - len(recording["sched.alphas_cumprod"]) // steps).clamp(min=0)


def test_ddim_step_and_its_log_probability(recording):
    """Every sampler, kind of network output and eta that the recording has."""
    found = {re.fullmatch(r"ddim(\d+)\.(\w+)\.eta([\d.]+)\.mean", name) for name in recording.arrays} - {None}
    assert found
    alpha_bar = recording["sched.alphas_cumprod"]
    for match in found:
        steps, prediction, eta = match.groups()
        sampler, name = f"ddim{steps}", match.group().removesuffix(".mean")
        t, sample, noise = recording[f"{sampler}.t"], recording[f"{sampler}.sample"], recording[f"{sampler}.noise"]
        levels = alpha_bar[t], alpha_bar[ends(recording, t, int(steps))]
        output = recording[f"{sampler}.model_output"].clone().requires_grad_()
        step = ddim_kernel(output, sample, *levels, float(eta), prediction)
        recording.close(step.mean, f"{name}.mean")
        recording.close(step.std.flatten(), f"{name}.std")
        log_prob = step.log_prob(recording[f"{sampler}.prev_sample"]).mean((1, 2, 3))
        recording.close(log_prob, f"{name}.log_prob")
        (gradient,) = torch.autograd.grad(log_prob.sum(), output)
        recording.close(gradient, f"{name}.grad")
        recording.close(step.sample(noise), f"{name}.sampled_prev")
        recording.close(step.log_prob(step.sample(noise)).mean((1, 2, 3)), f"{name}.sampled_log_prob")
        clean = ddim_kernel(output, sample, levels[0], 1.0, 0.0, prediction).mean  # a step to the level without noise
        recording.close(clean, f"{sampler}.{prediction}.x0")
