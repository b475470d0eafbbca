"""What is computed once instead of twice gives the same numbers and gradients as the long way."""

from __future__ import annotations

import contextlib

import pytest
import torch

from saddlepoint.safediffusion.adapters import add_adapters
from saddlepoint.safediffusion.config import SafeDiffusionConfig
from saddlepoint.safediffusion.families import Request, stable_diffusion
from saddlepoint.safediffusion.pipeline import load_pipeline
from saddlepoint.safediffusion.rollout import Noise, build_studio
from tests.tiny_pipeline import write_pipeline

CPU = torch.device("cpu")


@pytest.fixture
def studio(tmp_path):
    """Of a pipeline whose adapters have moved."""
    write_pipeline(tmp_path)
    pipeline = load_pipeline(str(tmp_path / "pipeline"))
    add_adapters(pipeline.unet, SafeDiffusionConfig(), 0, stable_diffusion.ATTENTION)
    generator = torch.Generator().manual_seed(1)
    for parameter in learning(pipeline.unet):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return build_studio(pipeline, Request(5), 5.0, 1.0, CPU)


def learning(network):
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def answer_and_gradients(studio, prompts=("a red square", "a sign")):
    network = studio.policy.network
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(prompts), *studio.shape, generator=generator)
    answer = studio.policy.answer(x, torch.tensor([0, 3]), studio.embeddings(prompts), studio.embeddings.empty)
    return answer.detach(), torch.autograd.grad(answer.square().sum(), learning(network))


def require_close(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    size = max(float(gradient.abs().max()) for gradient in theirs[1])
    assert size > 0
    for gradient, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6 * size)


def test_what_precedes_the_text_is_computed_once(studio, monkeypatch):
    unet, rows = studio.policy.network, {}
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    watched = {
        "conv_in": unet.conv_in,
        "resnet": unet.down_blocks[0].resnets[0],
        "self": attention.attn1.to_q,
        "queries": attention.attn2.to_q,
        "text": attention.attn2.to_out[0],
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda module, args, output, name=name: rows.update({name: len(args[0])}))
    short = answer_and_gradients(studio)
    assert rows == {"conv_in": 2, "resnet": 2, "self": 2, "queries": 2, "text": 4}
    monkeypatch.setattr(stable_diffusion, "halves_alike", lambda network: contextlib.nullcontext())
    long = answer_and_gradients(studio)
    assert rows == {"conv_in": 4, "resnet": 4, "self": 4, "queries": 4, "text": 4}
    require_close(short, long)


def test_nothing_is_shared_where_activations_are_computed_again(studio):
    rows = []
    studio.policy.network.conv_in.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    short = answer_and_gradients(studio)
    studio.policy.network.enable_gradient_checkpointing()
    studio.policy.network.train()
    require_close(answer_and_gradients(studio), short)
    assert rows == [2, 4]


def test_adapters_of_narrow_layers_are_one_product(studio):
    fused = [module for module in studio.policy.network.modules() if "forward" in vars(module)]
    assert len(fused) > 10
    ours = answer_and_gradients(studio)
    for module in fused:
        del module.forward  # peft's own again
    require_close(ours, answer_and_gradients(studio))


def test_adapters_of_wide_layers_are_pefts(tmp_path):
    write_pipeline(tmp_path)
    pipeline = load_pipeline(str(tmp_path / "pipeline"))
    add_adapters(pipeline.unet, SafeDiffusionConfig(rank=1), 0, stable_diffusion.ATTENTION)
    assert not [module for module in pipeline.unet.modules() if "forward" in vars(module)]


def test_the_first_step_is_computed_once_for_pictures_of_one_prompt_and_one_start(studio):
    asked = []
    answer = studio.policy.answer
    studio.policy.answer = lambda latents, *more: asked.append(len(latents)) or answer(latents, *more)
    paths = [(0, i) for i in range(6)]
    prompts = ["a red square"] * 4 + ["a sign"] * 2
    group = studio.sample(prompts, Noise([(7,)] * 6, paths, studio.shape, CPU), "mean")
    assert asked == [2, 6, 6, 6, 6]
    studio.sample(prompts, Noise(paths, paths, studio.shape, CPU), "mean")
    assert asked[5:] == [6] * 5
    # Its log-probabilities are those of a step of all six.
    told = studio.embeddings(prompts)
    step = studio.policy.step(group.latents[:, 0], torch.zeros(6, dtype=torch.int64), told, studio.embeddings.empty)
    torch.testing.assert_close(
        step.log_prob(group.latents[:, 1]).flatten(1).mean(1), group.log_probs[:, 0], rtol=1e-4, atol=1e-5
    )
