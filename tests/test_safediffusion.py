"""SafeDiffusion-R1: configuration, prompts, rewards and the arithmetic of GRPO, without any model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saddlepoint.diffusion.kernel import Gaussian
from saddlepoint.safediffusion.config import CLIP_RANGES, PARITY, PRESETS, RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.evaluate_flags import EvaluateFlags
from saddlepoint.safediffusion.grpo import (
    common_deviation,
    equal_groups,
    group_advantages,
    grpo_loss,
    lagrangian_rewards,
    reward_scale,
    step_kl,
    step_log_prob,
)
from saddlepoint.safediffusion.prompts import Prompt, epoch_prompts, read_prompts, split
from saddlepoint.safediffusion.red_team import RedTeamFlags
from saddlepoint.safediffusion.reward import (
    SteeredAlignment,
    UnsafeCoordinate,
    UnsafeProbability,
    load_plugin,
    read_anchors,
    safety_direction,
    scored,
    steer,
)
from saddlepoint.types import NonFiniteError, UserError

# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    PRESETS[name].validate()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group_size": 12}, "does not divide --images"),
        ({"updates": 3}, "does not divide --group-size"),
        ({"eta": 0.0}, "--eta must be greater than 0"),
        ({"eta": 1.5}, "above 1"),
        ({"group_size": 1}, "--group-size must be at least 2"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"reward": "clipp"}, "--reward must be auto, steered, alignment or the module:name"),
        ({"unsafe_budget": 0.1, "cost": "none"}, "bounds a cost"),
        ({"unsafe_budget": -0.1}, "must not be negative"),
        ({"unsafe_budget": 1.0}, "bounds nothing: a probability is never above 1"),
        ({"clip_range": 0.0}, "--clip-range must be greater"),
        ({"step_share": 0.0}, "--step-share"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        replace(SafeDiffusionConfig(), **change).validate()


def test_a_seed_that_no_generator_takes_is_refused():
    for flags in (
        RunConfig(pipeline="p", prompts="q", seed=10**26),
        EvaluateFlags(prompts=Path("q"), seed=10**26),
        RedTeamFlags(prompts=Path("q"), out=Path("nowhere"), seed=10**26),
    ):
        with pytest.raises(UserError, match="--seed must lie from 0 to"):
            flags.validate()


def test_idle_options_are_refused():
    with pytest.raises(UserError, match="--multiplier-rule does nothing here: it needs --unsafe-budget"):
        SafeDiffusionConfig().refuse_idle({"multiplier_rule"})
    with pytest.raises(UserError, match="--alpha does nothing"):
        SafeDiffusionConfig(reward="alignment").refuse_idle({"alpha"})
    with pytest.raises(UserError, match="--alpha does nothing"):
        SafeDiffusionConfig(unsafe_budget=0.1).refuse_idle({"alpha"})  # the reward is then plain alignment
    with pytest.raises(UserError, match="--rho does nothing here: it needs --unsafe-budget and a --multiplier-rule"):
        SafeDiffusionConfig(unsafe_budget=0.1).refuse_idle({"rho"})  # the default rule has no such weight
    SafeDiffusionConfig(unsafe_budget=0.1, reward="steered", multiplier_rule="augmented").refuse_idle({"rho", "alpha"})


def test_clip_range_belongs_to_the_reduction():
    assert PARITY.resolved_clip_range == CLIP_RANGES["mean"]
    assert (PARITY.resolved_clip_range, PARITY.advantage_clip) == (1e-4, 2.5)  # the release
    assert SafeDiffusionConfig(log_prob="sum").resolved_clip_range == CLIP_RANGES["sum"]
    assert SafeDiffusionConfig(log_prob="sum", clip_range=0.3).resolved_clip_range == 0.3


# ------------------------------------------------------------------------------------------------ prompts


def test_prompts_are_read_from_three_formats(tmp_path):
    (tmp_path / "a.txt").write_text("a red square\n\n a red square\na sign\n")
    (tmp_path / "a.csv").write_text('prompt,unsafe,other\n"a square, red",0,x\na sign,1,y\nplain,,z\n')
    (tmp_path / "a.jsonl").write_text('{"prompt": "a sign", "unsafe": true}\n\n{"prompt": "plain"}\n')
    assert read_prompts(tmp_path / "a.txt") == (Prompt("a red square"), Prompt("a sign"))
    assert read_prompts(tmp_path / "a.csv") == (Prompt("a square, red", False), Prompt("a sign", True), Prompt("plain"))
    assert read_prompts(tmp_path / "a.jsonl") == (Prompt("a sign", True), Prompt("plain"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.png", b"x", "must end in"),
        ("a.csv", b"text\nhello\n", "no column named prompt"),
        ("a.csv", b"prompt,unsafe\nhello,maybe\n", "line 2: unsafe must be 0 or 1"),
        ("a.jsonl", b'{"prompt": 3}\n', "line 1 must be an object"),
        ("a.jsonl", b"{", "is not JSON"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("b.txt", None, "cannot be read"),
    ],
)
def test_prompt_files_that_are_none(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_prompts(tmp_path / name)


def test_split_is_a_partition_and_depends_on_the_seed_alone():
    prompts = [Prompt(str(i)) for i in range(20)]
    sets = split(prompts, 0.25, 3)
    assert len(sets.held_out) == 5
    assert sorted(sets.training + sets.held_out) == sorted(prompts)
    assert sets == split(prompts, 0.25, 3)
    assert sets.digest() != split(prompts, 0.25, 4).digest()
    assert split(prompts, 0.0, 3).held_out == ()
    with pytest.raises(UserError, match="leaves nothing to learn from"):
        split(prompts[:1], 0.1, 0)


def test_every_pass_shows_every_prompt_once():
    prompts = [Prompt(str(i)) for i in range(7)]
    shown = [prompt for epoch in range(7) for prompt in epoch_prompts(prompts, epoch, 3, seed=1)]
    passes = [shown[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(one) == prompts for one in passes)
    assert passes[0] != passes[1]


# ------------------------------------------------------------------------------------------------ rewards


def test_anchor_sets_have_their_published_sizes(tmp_path):
    sizes = {name: tuple(map(len, read_anchors(name))) for name in ("compact", "scaled", "unsafe-only")}
    assert sizes == {"compact": (5, 3), "scaled": (25, 20), "unsafe-only": (0, 3)}
    (tmp_path / "unsafe.txt").write_text("a sign\n")
    assert read_anchors(str(tmp_path)) == ([], ["a sign"])
    with pytest.raises(UserError, match="is no set of anchors"):
        read_anchors(str(tmp_path / "none"))


def test_steering_in_the_plane():
    """Closed forms with v = (0, 1): a prompt at (1, 0) is turned by arctan(alpha); projection first takes its own part along v away."""
    safe, unsafe = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, -1.0], [0.0, -3.0]])
    v = safety_direction(safe, unsafe)
    torch.testing.assert_close(v, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(safety_direction(safe[:0], unsafe), v)
    turned = steer(torch.tensor([[3.0, 0.0]]), v, 0.5)
    torch.testing.assert_close(turned, torch.tensor([[1.0, 0.5]]) / 1.25**0.5)
    torch.testing.assert_close(steer(torch.tensor([[3.0, -3.0]]), v, 0.5, "projection"), torch.tensor([[0.5**0.5, 0.5]]) / 0.75**0.5)


class PlaneCLIP:
    """An encoder whose embeddings are given: what a score makes of them can be computed by hand."""

    scale = 10.0

    def images(self, images):
        return images.flatten(1)[:, :2]

    def phrases(self, phrases):
        return torch.stack([{"safe": torch.tensor([0.0, 1.0]), "unsafe": torch.tensor([0.6, -0.8])}[phrase] for phrase in phrases])


def test_scores_of_given_embeddings():
    clip, v = PlaneCLIP(), torch.tensor([0.0, 1.0])
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    prompts = ["safe", "unsafe"]
    always = SteeredAlignment(clip, v, 0.5, "translation", "always")(images, prompts)
    wanted = np.array([[0.0, 1.0], np.array([0.6, -0.3]) / np.hypot(0.6, 0.3)])
    np.testing.assert_allclose(always, [wanted[0, 0], wanted[1, 1]], atol=1e-6)
    only = SteeredAlignment(clip, v, 0.5, "translation", "unsafe")(images.flip(0), prompts)
    np.testing.assert_allclose(only, [1.0, wanted[1, 0]], atol=1e-6)  # the safe prompt is left as it is
    np.testing.assert_allclose(UnsafeCoordinate(clip, v)(images, prompts), [1.0, 0.0], atol=1e-6)
    probability = UnsafeProbability(clip, clip.phrases(["safe"]), clip.phrases(["unsafe"]))(images, prompts)
    logits = np.array([[0.0, 6.0], [10.0, -8.0]])  # scale times the cosines with safe and unsafe
    np.testing.assert_allclose(probability, np.exp(logits[:, 1]) / np.exp(logits).sum(1), rtol=1e-5)


def test_own_scores_are_found_and_checked():
    assert load_plugin("--cost", "tests.test_safediffusion:brightness") is brightness
    for name, words in (("no_such_module:x", "cannot be imported"), ("math:nothing", "has no 'nothing'"), ("math:pi", "cannot be called")):
        with pytest.raises(UserError, match=words):
            load_plugin("--cost", name)
    images = torch.rand(3, 3, 2, 2)
    torch.testing.assert_close(scored(brightness, "--cost", images, ["a"] * 3), images.mean((1, 2, 3)))
    with pytest.raises(UserError, match="--cost returned numbers of shape"):
        scored(lambda images, prompts: images.mean(), "--cost", images, ["a"] * 3)
    with pytest.raises(UserError, match="negative"):
        scored(lambda images, prompts: -brightness(images, prompts), "--cost", images, ["a"] * 3)
    with pytest.raises(NonFiniteError, match="--reward"):
        scored(lambda images, prompts: brightness(images, prompts) / 0, "--reward", images, ["a"] * 3)


def brightness(images, prompts):
    return images.mean((1, 2, 3))


# ------------------------------------------------------------------------------------------------ GRPO


def test_equal_rewards_give_no_advantage():
    """In float32 the mean of sixteen 0.3 is not 0.3; divided by 1e-8 that would be a large advantage."""
    rewards = torch.stack([torch.full((16,), 0.3), torch.linspace(0, 1, 16)])
    advantages = group_advantages(rewards, 2.5)
    assert not advantages[0].any()
    assert advantages[1].any()
    assert equal_groups(rewards).tolist() == [True, False]
    x = rewards[1].double().numpy()
    np.testing.assert_allclose(advantages[1], np.clip((x - x.mean()) / (x.std(ddof=1) + 1e-8), -2.5, 2.5), rtol=1e-6)
    assert group_advantages(torch.tensor([0.0] * 15 + [1.0]), 2.5).max() == 2.5


def test_surrogate_of_one_step():
    advantages, change = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([0.2, 0.2, -0.2, -0.2])
    ratio = np.exp(change.numpy())
    wanted = np.mean([-1.1, ratio[1], -ratio[2], 0.9])  # a gain is cut at the range, a loss is not
    np.testing.assert_allclose(grpo_loss(change, torch.zeros(4), advantages, 0.1), wanted, rtol=1e-6)


def test_reductions_differ_by_the_number_of_elements():
    step, point = Gaussian(torch.randn(2, 3, 4, 4), torch.full((2, 1, 1, 1), 0.5)), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(step_log_prob(step, point, "sum"), 48 * step_log_prob(step, point, "mean"))
    wanted = torch.distributions.Normal(step.mean, 0.5).log_prob(point).sum((1, 2, 3))
    torch.testing.assert_close(step_log_prob(step, point, "sum"), wanted)


def test_kl_of_a_step_is_the_closed_form():
    a, b = (torch.distributions.Normal(torch.randn(2, 3, 4, 4), 0.3) for _ in range(2))
    ours = step_kl(*(Gaussian(d.loc, torch.full((2, 1, 1, 1), 0.3)) for d in (a, b)), "sum")
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(a, b).sum((1, 2, 3)))


def test_the_lagrangian_slope_is_that_of_the_augmented_penalty():
    from saddlepoint.constrained.lagrangian import augmented_penalty

    rewards, costs = torch.rand(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64).requires_grad_()
    multiplier = torch.tensor(0.7, dtype=torch.float64)
    penalty = augmented_penalty(costs.mean() - 0.2, multiplier, 5.0)
    (slope,) = torch.autograd.grad(penalty, costs)  # per image: the slope of the mean over 12 images
    scale = np.sqrt(np.mean(rewards.numpy().var(1, ddof=1)))
    torch.testing.assert_close(reward_scale(rewards), torch.tensor(scale))
    found = lagrangian_rewards(rewards, costs.detach(), 0.2, multiplier, 5.0)
    torch.testing.assert_close(found, rewards / scale - 12 * slope * costs.detach())


def test_with_a_common_deviation_costs_that_are_equal_in_a_group_do_not_amplify_its_reward():
    """Group 0 is all unsafe, group 1 mixed: as lambda grows, what is left of group 0's objective counts for ever less beside group 1's."""
    rewards = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs = torch.stack([torch.ones(16), (torch.arange(16) % 2).float()]).double()
    sizes = []
    for multiplier in (0.0, 5.0, 50.0):
        objective = rewards - multiplier * costs
        found = group_advantages(objective, 100.0, common_deviation(objective))
        numbers = objective.numpy()
        wanted = (numbers - numbers.mean(1, keepdims=True)) / np.sqrt(np.mean(numbers.var(1, ddof=1)))
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-7)
        sizes.append(float(found[0].square().mean().sqrt()))
    assert sizes[0] > 1.5 * sizes[1] > 7 * sizes[2]
    assert float(group_advantages(rewards - 50 * costs, 100.0)[0].square().mean().sqrt()) > 0.9  # each group's own deviation gives it full weight


def test_within_budget_the_reward_alone_counts():
    rewards, costs = torch.rand(3, 4), torch.rand(3, 4) * 0.01
    found = lagrangian_rewards(rewards, costs, 0.5, torch.tensor(0.0), 5.0)
    torch.testing.assert_close(found, rewards / reward_scale(rewards))
    assert reward_scale(torch.ones(2, 4)) == 1


def test_a_missing_extra_is_one_sentence(monkeypatch):
    from saddlepoint.safediffusion import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "peft" else SimpleNamespace())
    with pytest.raises(UserError, match=r"needs peft: pip install saddlepoint\[text-to-image\]"):
        extras.require_extra()
