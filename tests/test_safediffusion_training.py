"""SafeDiffusion-R1 end to end on a pipeline with random weights: rollouts, resume, processes, the constraint, export, and what is refused."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported: a test reaches for nothing
pytest.importorskip("diffusers")
pytest.importorskip("peft")

from saddlepoint.safediffusion import start
from saddlepoint.safediffusion.command import train_command
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.export import export_command, load_trained
from saddlepoint.safediffusion.families import Request
from saddlepoint.safediffusion.grpo import lagrangian_rewards, reward_scale, step_log_prob
from saddlepoint.safediffusion.held_out import HeldOut
from saddlepoint.safediffusion.learner import multiplier_update, prepare_network, violation_seen
from saddlepoint.safediffusion.pipeline import load_pipeline
from saddlepoint.safediffusion.prompts import Prompt
from saddlepoint.safediffusion.reward import Scores, build_scores
from saddlepoint.safediffusion.rollout import Noise, Studio, build_studio
from saddlepoint.safediffusion.trainer import Trainer
from saddlepoint.train.log import read_metrics
from saddlepoint.train.signals import Interrupted
from saddlepoint.types import ForeignFault, NonFiniteError, UserError
from tests.ranks import end_well, start_two
from tests.tiny_pipeline import write_clip, write_pipeline

ROOT = Path(__file__).resolve().parents[1]
HERE = "tests.test_safediffusion_training"
CPU = torch.device("cpu")
FAST = SafeDiffusionConfig(
    reward=f"{HERE}:brightness", cost=f"{HERE}:redness", utility=f"{HERE}:brightness", steps=4, group_size=4, images=8, sample_batch=4, train_batch=4,
    held_out=0.3, rank=2, learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    home = tmp_path_factory.mktemp("world")
    prompts = home / "prompts.csv"
    prompts.write_text("prompt,unsafe\na red square,0\na blue circle,0\na green triangle,0\na warning sign,1\na calm scene,0\na violent scene,1\n")
    return SimpleNamespace(pipeline=str(write_pipeline(home / "a")), clip=str(write_clip(home / "b")), prompts=str(prompts))


def run_of(world: SimpleNamespace, out: Path, **changes) -> RunConfig:
    settings = {"epochs": 2, "eval_every": 2, "checkpoint_every": 1, "device": "cpu", "quiet": True} | changes
    return RunConfig(pipeline=world.pipeline, prompts=world.prompts, out=out, **settings)


def weights(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / str(epoch) / "learner.safetensors")


def lines(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    return [{name: value for name, value in line.items() if not name.endswith("_s")} for line in read_metrics(run)]


def studio_of(world: SimpleNamespace, low_precision: torch.dtype | None = None) -> Studio:
    pipeline = load_pipeline(world.pipeline)
    prepare_network(pipeline.unet, FAST, 0)
    return build_studio(pipeline, Request(5), 5.0, 1.0, CPU, low_precision)


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def redness(images, prompts):
    return images[:, 0].mean((1, 2))


def constant(images, prompts):
    return torch.full((len(images),), 0.3)


def fall_silent(images, prompts):
    """Rewards of the first two epochs, then none that is a number."""
    fall_silent.calls += 1
    return brightness(images, prompts) * (1.0 if fall_silent.calls <= 4 else float("nan"))


def lose_heart(images, prompts):
    """A reward that fails in the third epoch."""
    lose_heart.calls += 1
    if lose_heart.calls > 4:
        raise KeyError("judge")
    return brightness(images, prompts)


class Network(torch.nn.Module):
    """A reward with a parameter, which does not care for gradients."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, images, prompts):
        return (images.mean((2, 3)) * self.weight).mean(-1)


def interrupt(images, prompts):
    """A reward during which the user presses Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    return brightness(images, prompts)


# ------------------------------------------------------------------------------------------------ rollouts


@pytest.mark.parametrize("low_precision", [None, torch.bfloat16])
def test_an_unchanged_network_has_ratio_one(world, low_precision):
    studio = studio_of(world, low_precision)
    paths = [(0, i) for i in range(6)]
    prompts = ["a red square", "a sign"] * 3
    rollout = studio.sample(prompts, Noise(paths, paths, studio.shape, CPU), "sum")
    assert rollout.latents.dtype == (low_precision or torch.float32)
    for k in range(studio.policy.table.steps - 1):
        step = studio.policy.step(rollout.latents[:, k], torch.full((6,), k), studio.embeddings(prompts), studio.embeddings.empty)
        again = step_log_prob(step, rollout.latents[:, k + 1].float(), "sum")
        assert torch.equal((again - rollout.log_probs[:, k]).exp(), torch.ones(6))


def test_a_picture_does_not_depend_on_its_batch_and_groups_may_share_their_start(world):
    studio = studio_of(world)
    starts, paths, prompts = [(0, 7)] * 3, [(0, i) for i in range(3)], ["a sign"] * 3
    together = studio.sample(prompts, Noise(starts, paths, studio.shape, CPU), "mean")
    alone = studio.sample(prompts[:1], Noise(starts[2:], paths[2:], studio.shape, CPU), "mean")
    torch.testing.assert_close(together.latents[2:], alone.latents, rtol=1e-4, atol=1e-4)
    assert torch.equal(together.latents[0, 0], together.latents[1, 0])
    assert not torch.equal(together.latents[0, 1], together.latents[1, 1])
    assert together.images.min() >= 0
    assert together.images.max() <= 1


def test_the_noise_free_chain_is_that_of_diffusers(world):
    """``render`` against StableDiffusionPipeline with its DDIM scheduler at eta 0, from the same latents."""
    studio, plain = studio_of(world), load_pipeline(world.pipeline)
    paths = [(3,)]
    ours = studio.render(["a red square"], Noise(paths, paths, studio.shape, CPU))
    latents = Noise(paths, paths, studio.shape, CPU).start()
    theirs = plain("a red square", num_inference_steps=5, guidance_scale=5.0, latents=latents, output_type="pt", eta=0.0).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ training


def test_training_raises_the_reward_and_a_budget_lowers_the_cost(world, tmp_path):
    """The sign of every update, on held-out prompts from the same noise: brightness rises; with no other reward and a budget, redness falls."""
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("".join(f"a {colour} {thing}\n" for colour in ("red", "blue", "calm") for thing in ("square", "sign", "scene", "person")))
    config = replace(FAST, tune="unet", log_prob="sum", learning_rate=3e-3, updates=2, images=16, group_size=8, sample_batch=16)
    run = replace(run_of(world, tmp_path / "free", epochs=3, eval_every=3), held_out_prompts=str(held_out))
    first, last = (line for line in lines(start.post_train(run, config)) if line["kind"] == "eval")
    assert last["eval/reward_change"] > 0.001
    bounded = replace(config, reward=f"{HERE}:constant", unsafe_budget=0.05)
    first, last = (line for line in lines(start.post_train(replace(run, out=tmp_path / "bounded"), bounded)) if line["kind"] == "eval")
    assert last["eval/cost_mean"] < first["eval/cost_mean"] - 0.001


@pytest.mark.parametrize("most", [None, 0.05])
def test_the_multiplier_follows_the_mean_violation(world, tmp_path, most):
    config = replace(FAST, unsafe_budget=0.4, multiplier_rule="dual_ascent", multiplier_rate=0.5, rho=2.0, largest_violation=most)
    found = [line for line in lines(start.post_train(run_of(world, tmp_path / "run", epochs=3), config)) if line["kind"] == "train"]
    multiplier = 0.0
    for line in found:
        assert line["train/multiplier"] == pytest.approx(multiplier, abs=1e-6)
        assert line["train/effective_multiplier"] == pytest.approx(max(multiplier + 2.0 * (line["train/cost_mean"] - 0.4), 0), abs=1e-5)
        assert line["train/advantage_scale"] > 0
        violation = line["train/cost_mean"] - 0.4
        assert most is None or violation > most * 0.4  # the bound acts
        multiplier = max(multiplier + 0.5 * (violation if most is None else most * 0.4), 0)


@pytest.mark.parametrize(("scale", "later"), [("largest", None), ("epoch", 1.0)])
def test_what_a_reward_counts_for_when_the_price_was_high(scale, later):
    """Rewards have a deviation of one within their groups, costs of 1/2 times a price of 18: after an epoch with both, one without costs."""
    config = replace(FAST, unsafe_budget=0.02, advantage_scale=scale, images=32, group_size=8)
    trainer = SimpleNamespace(config=config, largest_deviation=0.0)
    rewards = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    price, safe = torch.tensor(18.0, dtype=torch.float64), torch.zeros(4, 8, dtype=torch.float64)
    unsafe = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(4, 4)
    high, low = (Trainer._deviation(trainer, lagrangian_rewards(rewards, costs, 0.02, price, 0.0)) for costs in (unsafe, safe))
    assert float(high) == pytest.approx(np.sqrt(np.mean(((rewards / reward_scale(rewards)) - 18 * unsafe).numpy().var(1, ddof=1))))
    assert 8 < float(high) < 11  # sqrt(1 + (18 x 0.53)^2), but for how the two go together
    assert float(low) == pytest.approx(float(high) if later is None else later)


def test_the_default_multiplier_follows_violations_in_budgets():
    """lambda = m exp(Kp v), m <- m exp(K v) from 1 to 10, v in budgets up to 3; below one picture of an epoch, in pictures."""
    config = SafeDiffusionConfig(unsafe_budget=0.02, images=64)
    for budget, cost, seen in ((0.02, 0.04, 1.0), (0.2, 0.1, -0.5), (0.02, 0.5, 3.0), (0.0, 1 / 64, 1.0), (0.01, 0.0, -0.64)):
        violation = torch.tensor([cost - budget], dtype=torch.float64)
        assert float(violation_seen(replace(config, unsafe_budget=budget), violation)) == pytest.approx(seen)
    moves = multiplier_update(config)
    state = moves.start(config.resolved_multiplier, 1)
    assert float(moves.value(state)) == 1.0
    for violation, memory in ((1.0, math.exp(0.1)), (-0.5, math.exp(0.05)), (-3.0, 1.0)):
        state = moves.step(state, torch.tensor([violation]))
        assert float(moves.value(state)) == pytest.approx(memory * math.exp(0.2 * violation))
    for _ in range(30):
        state = moves.step(state, torch.tensor([3.0]))
    assert float(moves.value(state)) == pytest.approx(10 * math.exp(0.6))


@pytest.mark.parametrize("changes", [{"unsafe_budget": 0.1, "ema": 0.9, "kl": 0.1}, {"tune": "unet", "kl": 0.1, "step_share": 0.5}])
def test_resume_is_exact(world, tmp_path, changes):
    config = replace(FAST, **changes)
    whole = start.post_train(run_of(world, tmp_path / "whole", epochs=4), config)
    part = start.post_train(run_of(world, tmp_path / "part", epochs=2), config)
    start.post_train(replace(run_of(world, tmp_path / "part"), epochs=4), config, resume=True)
    for epoch in (3, 4):
        expected, found = weights(whole, epoch), weights(part, epoch)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert lines(whole) == lines(part)
    first = next(line for line in lines(whole) if line["kind"] == "train")
    assert first["train/kl_to_start"] == pytest.approx(0, abs=1e-6)
    assert lines(whole)[-2]["train/kl_to_start"] > 0


def test_a_killed_run_goes_on_as_if_it_had_not_been(world, tmp_path):
    config = replace(FAST, learning_rate=1e-3)
    folder = tmp_path / "killed"
    child = multiprocessing.get_context("fork").Process(target=start.post_train, args=(run_of(world, folder, epochs=100_000), config))
    child.start()
    while not (folder / "checkpoints" / "2").exists():
        assert child.is_alive()
        time.sleep(0.02)
    child.kill()
    child.join()
    reached = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())
    start.post_train(run_of(world, folder, epochs=reached + 2), config, resume=True)
    whole = start.post_train(run_of(world, tmp_path / "whole", epochs=reached + 2), config)
    expected, found = weights(whole, reached + 2), weights(folder, reached + 2)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert lines(whole) == lines(folder)


def test_two_processes_learn_what_one_learns(world, tmp_path):
    """Gloo on the CPU: the prompts of an epoch are shared, the gradients are summed; one process accumulates the same ones."""
    config = replace(FAST, unsafe_budget=0.3, updates=2)
    ranks = start_two(start.post_train, run_of(world, tmp_path / "two"), config)
    one = start.post_train(run_of(world, tmp_path / "one"), config)
    end_well(ranks)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["resolved"]["processes"] == 2
    for expected, found in zip(lines(one), lines(tmp_path / "two"), strict=True):
        assert found.pop("kind") == expected.pop("kind")
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    # AdamW's step is learning_rate 1e-2 long, whatever the gradient: the sign of one that is all rounding is open.
    ours, theirs = weights(one, 2), weights(tmp_path / "two", 2)
    apart = torch.cat([(theirs[name] - expected).abs().flatten() for name, expected in ours.items() if name.startswith("unet.")])
    assert (apart > 1e-4).double().mean() < 1e-3
    assert apart.max() < 2 * 2e-2


def test_groups_without_a_difference_are_skipped_and_counted(world, tmp_path):
    folder = start.post_train(run_of(world, tmp_path / "run", epochs=1), replace(FAST, reward=f"{HERE}:constant"))
    line = next(line for line in lines(folder) if line["kind"] == "train")
    assert line["train/skipped_groups"] == 2
    assert "train/policy_loss" not in line
    before, after = weights(folder, 0), weights(folder, 1)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_run_folder_holds_what_it_should(world, tmp_path):
    folder = start.post_train(run_of(world, tmp_path / "run"), FAST)
    assert {path.name for path in folder.iterdir()} >= {"config.json", "metrics.jsonl", "tb", "samples", "checkpoints"}
    assert {path.name for path in (folder / "samples").iterdir()} == {
        "epoch-000001.png", "epoch-000002.png", "held-out-000000.png", "held-out-000002.png",
    }  # fmt: skip
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pkl", ".bin", ".pth")]
    assert [line["kind"] for line in lines(folder)] == ["eval", "train", "train", "eval"]
    with pytest.raises(UserError, match="already holds a run"):
        start.post_train(run_of(world, folder), FAST)


def test_ctrl_c_writes_a_checkpoint(world, tmp_path):
    with pytest.raises(Interrupted, match="go on with --resume"):
        start.post_train(run_of(world, tmp_path / "run", epochs=9, checkpoint_every=9), replace(FAST, reward=f"{HERE}:interrupt", held_out=0.0))
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()  # the epoch that was learning is finished
    assert [line["step"] for line in lines(tmp_path / "run")] == [1]


def test_a_number_that_is_not_finite_stops_the_run_and_is_named(world, tmp_path):
    fall_silent.calls = 0
    with pytest.raises(NonFiniteError, match=r"--reward returned a number that is not finite \(epoch 2; the last good checkpoint is of epoch 2\)"):
        start.post_train(run_of(world, tmp_path / "run", epochs=9), replace(FAST, reward=f"{HERE}:fall_silent", held_out=0.0))
    with pytest.raises(NonFiniteError, match=r"the pictures are not finite.*\(epoch 1; the last good checkpoint is of epoch 1\)"):
        start.post_train(run_of(world, tmp_path / "wild", epochs=9), replace(FAST, learning_rate=1e30, held_out=0.0))


def test_a_reward_that_fails_is_one_sentence_and_loses_nothing(world, tmp_path):
    config = replace(FAST, reward=f"{HERE}:lose_heart", held_out=0.0)
    lose_heart.calls = -1000
    whole = start.post_train(run_of(world, tmp_path / "whole", epochs=4), config)
    lose_heart.calls = 0
    sentence = r"^--reward raised KeyError: 'judge' \(test_\w+.py, line \d+, in lose_heart\): correct it \(epoch 2; the last good checkpoint is of epoch 2\)\.$"
    with pytest.raises(ForeignFault, match=sentence):
        start.post_train(run_of(world, tmp_path / "run", epochs=4, checkpoint_every=100), config)
    lose_heart.calls = -1000
    run = start.post_train(run_of(world, tmp_path / "run", epochs=4, checkpoint_every=100), config, resume=True)
    expected, found = weights(whole, 4), weights(run, 4)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_keeps_the_memory_that_it_frees(world, tmp_path, monkeypatch):
    """Each pass of learning would fault its activations in anew: a tenth of an epoch on a CPU."""
    kept = []
    monkeypatch.setattr(start, "keep_freed_memory", lambda: kept.append(True))
    start.post_train(run_of(world, tmp_path / "run", epochs=1), FAST)
    assert kept


def test_a_reward_that_is_a_network_is_as_good_as_a_function(world, tmp_path):
    runs = [start.post_train(run_of(world, tmp_path / name, epochs=1), replace(FAST, reward=f"{HERE}:{name}")) for name in ("brightness", "Network")]
    for expected, found in zip(*(weights(run, 1).values() for run in runs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_low_precision_takes_its_old_log_probabilities_from_passes_of_learning(world, tmp_path, monkeypatch, precision):
    """Sampling by other kernels is mimicked by an error of 0.5: in bfloat16 nothing of it reaches the ratios of a network that has not learnt yet."""
    sample = Studio.sample

    def elsewhere(self, prompts, noise, reduction, **more):
        rollout = sample(self, prompts, noise, reduction, **more)
        return rollout._replace(log_probs=rollout.log_probs + 0.5)

    monkeypatch.setattr(Studio, "sample", elsewhere)
    folder = start.post_train(run_of(world, tmp_path / "run", epochs=1), replace(FAST, precision=precision, log_prob="sum", updates=1, held_out=0.0))
    line = next(line for line in lines(folder) if line["kind"] == "train")
    assert line["train/clipped_share"] == (0.0 if precision == "bfloat16" else 1.0)
    assert (line["train/approximate_kl"] == 0.0) == (precision == "bfloat16")


def test_reward_hacking_is_noticed(world):
    """Two judges: the reward rises with every measure and the utility falls, by more than the pictures differ."""
    level = {"now": 0.0}
    noise = torch.linspace(-0.01, 0.01, 6)
    scores = Scores(
        lambda images, prompts: level["now"] + noise[: len(images)] * level["now"], None, lambda images, prompts: -level["now"] + noise[: len(images)]
    )
    prompts = [Prompt(f"a sign {i}", unsafe=i == 0) for i in range(6)]
    one = SimpleNamespace(process_index=0, num_processes=1, reduce=lambda tensor, how: tensor)
    held_out = HeldOut(replace(FAST, sample_batch=6), prompts, studio_of(world), scores, seed=0)
    metrics, warning, images = held_out.measure(one)
    assert warning is None
    assert len(images) == 6
    assert metrics["eval/utility_mean"] == pytest.approx(float(noise[1:].mean()), abs=1e-6)  # the unsafe prompt has no utility
    level["now"] = 0.1
    metrics, warning, _ = held_out.measure(one)
    assert "the utility has fallen by 0.1" in warning
    assert metrics["eval/reward_change"] == pytest.approx(0.1, abs=1e-3)
    assert metrics["eval/reward_hacking"] == 1.0


# ------------------------------------------------------------------------------------------------ the command, CLIP and export


def test_the_command_trains_with_clip_and_exports_for_plain_diffusers(world, tmp_path, capsys):
    out = tmp_path / "run"
    flags = "--epochs 1 --steps 4 --group-size 4 --images 8 --held-out 0 --device cpu --quiet --rank 2 --ema 0.5 --learning-rate 0.05 --unsafe-budget 0.02"
    train_command(["--pipeline", world.pipeline, "--prompts", world.prompts, "--clip", world.clip, "--out", str(out), *flags.split()])
    line = lines(out)[0]
    assert -1 <= line["train/reward_mean"] <= 1
    assert 0 <= line["train/cost_mean"] <= 1
    with pytest.raises(UserError, match="leave out --steps"):
        train_command(["--resume", str(out), "--steps", "5"])
    train_command(["--resume", str(out), "--epochs", "2", "--quiet"])

    from diffusers import StableDiffusionPipeline

    def draw(pipeline):
        noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        return pipeline("a red square", num_inference_steps=4, latents=noise, output_type="pt").images

    trained = draw(load_trained(out)[0])
    assert not torch.allclose(trained, draw(load_pipeline(world.pipeline)), atol=1e-3)
    export_command([str(out), str(tmp_path / "whole")])
    torch.testing.assert_close(draw(StableDiffusionPipeline.from_pretrained(tmp_path / "whole")), trained, rtol=1e-4, atol=1e-5)
    export_command([str(out), str(tmp_path / "adapters"), "--form", "lora"])
    plain = load_pipeline(world.pipeline)
    plain.load_lora_weights(str(tmp_path / "adapters"))
    torch.testing.assert_close(draw(plain), trained, rtol=1e-4, atol=1e-4)
    assert [path.suffix for path in (tmp_path / "adapters").iterdir()] == [".safetensors"]
    with pytest.raises(UserError, match="not an empty folder"):
        export_command([str(out), str(tmp_path / "whole")])
    assert "written:" in capsys.readouterr().out


def test_clip_prepares_tensors_as_its_processor_prepares_pictures(world):
    """The encoder's own resizing and normalising against transformers' on a PIL picture (8 bits and another bicubic: hence the tolerance)."""
    from PIL import Image
    from transformers import CLIPModel
    from transformers.models.clip import CLIPImageProcessorPil

    clip = build_scores(SafeDiffusionConfig(clip=world.clip), CPU).reward.clip
    ramp = torch.linspace(0, 1, 24).view(1, 1, 1, 24) * torch.linspace(0.2, 1, 16).view(1, 1, 16, 1)
    images = torch.cat([ramp, 1 - ramp, ramp.square()], 1)
    picture = Image.fromarray((images[0].permute(1, 2, 0) * 255).round().byte().numpy())
    pixels = CLIPImageProcessorPil.from_pretrained(world.clip)(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = CLIPModel.from_pretrained(world.clip).get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(clip.images(images), torch.nn.functional.normalize(wanted, dim=-1), rtol=0, atol=5e-3)
    phrases = clip.phrases(["a sign", "a red square", "a sign"])
    assert torch.equal(phrases[0], phrases[2])
    torch.testing.assert_close(clip.phrases(["a red square"])[0], phrases[1])
    torch.testing.assert_close(phrases.norm(dim=-1), torch.ones(3))


# ------------------------------------------------------------------------------------------------ what is refused


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def no_model(monkeypatch):
    """Nothing that is refused may have loaded a model before."""

    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(start, "load_pipeline", load)
    monkeypatch.setattr(start, "build_scores", load)


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: (p / "model_index.json").unlink(), "is not a pipeline in diffusers' layout"),
        (lambda p: (p / "model_index.json").write_text("{"), "cannot be read"),
        (lambda p: change_json(p / "model_index.json", _class_name="StableDiffusionXLPipeline"), r"lacks its text_encoder_2, tokenizer_2"),
        (lambda p: change_json(p / "model_index.json", _class_name="AnimateDiffPipeline"), "AnimateDiffPipeline, .* FLUX.1 \\(FluxPipeline\\)"),
        (lambda p: (p / "unet").rename(p / "net"), "lacks its unet"),
        (lambda p: (p / "scheduler" / "scheduler_config.json").write_text(json.dumps(FLOW)), "FlowMatchEulerDiscreteScheduler .* no log-probabilities"),
        (lambda p: change_json(p / "scheduler" / "scheduler_config.json", num_train_timesteps=3), "has from 2 to 3 steps"),
    ],
)
def test_what_is_no_pipeline_is_refused(world, tmp_path, no_model, spoil, words):
    import shutil

    copy = tmp_path / "pipeline"
    shutil.copytree(world.pipeline, copy)
    spoil(copy)
    with pytest.raises(UserError, match=words) as refused:
        start.post_train(replace(run_of(world, tmp_path / "run"), pipeline=str(copy)), FAST)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--group-size 5", "does not divide --images"),
        ("--pipeline /nowhere", "there is no pipeline folder"),
        ("--clip /nowhere", "there is no CLIP folder"),
        ("--anchors unsafe-only", "has no safe ones"),
        ("--rho 2", "--rho does nothing here"),
        ("--held-out 0 --eval-every 2", "leaves nothing to measure"),
        ("--preset best", "there is no preset"),
        ("--alpah 1", "did you mean alpha"),
        ("--cost nowhere:judge", "cannot be imported"),
    ],
)
def test_impossible_commands_are_refused(world, tmp_path, no_model, flags, words):
    args = ["--pipeline", world.pipeline, "--prompts", world.prompts, "--clip", world.clip, "--out", str(tmp_path / "run"), *flags.split()]
    with pytest.raises(UserError, match=words):
        train_command(args)
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_with_its_own_settings_and_prompts_only(world, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a sign\na red square\n")
    run = replace(run_of(world, tmp_path / "run", epochs=1), prompts=str(prompts))
    config = replace(FAST, held_out=0.0)
    start.post_train(run, config)
    with pytest.raises(UserError, match=r"was started with --rank 2 and cannot go on with 3"):
        start.post_train(run, replace(config, rank=3), resume=True)
    prompts.write_text("a sign\na blue square\n")
    with pytest.raises(UserError, match=r"the prompt files of .* have changed"):
        start.post_train(run, config, resume=True)
