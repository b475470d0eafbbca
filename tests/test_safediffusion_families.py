"""All families on tiny pipelines with random weights: against plain diffusers at eta 0, ratios of an unchanged network,
resume, processes, export."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")
pytest.importorskip("peft")

import diffusers
from safetensors.torch import load_file

from saddlepoint.safediffusion import start
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.evaluate import EvaluateFlags, evaluate
from saddlepoint.safediffusion.export import export_run, load_trained
from saddlepoint.safediffusion.families import Request, configs_of, family_of
from saddlepoint.safediffusion.families.flux import pack, unpack
from saddlepoint.safediffusion.grpo import centred_log_prob, step_log_prob
from saddlepoint.safediffusion.learner import prepare_network
from saddlepoint.safediffusion.pipeline import load_pipeline, open_source
from saddlepoint.safediffusion.rollout import Noise, build_studio
from saddlepoint.train.log import read_metrics
from saddlepoint.types import UserError
from tests.ranks import end_well, start_two
from tests.tiny_pipeline import FAMILY_WRITERS, write_pipeline, write_sd3

torch.set_num_threads(1)
HERE = "tests.test_safediffusion_families"
CPU = torch.device("cpu")
SIZES = {"sd": {}, "sdxl": {}, "sd3": {}, "flux": {"height": 8, "width": 8}}
"""FLUX.1 states no size of its own: diffusers draws 1024 x 1024"""
TOKENS = {"sd3": 12, "flux": 12}
FAST = SafeDiffusionConfig(
    reward=f"{HERE}:brightness",
    cost=f"{HERE}:redness",
    utility=f"{HERE}:brightness",
    steps=4,
    group_size=4,
    images=8,
    sample_batch=4,
    train_batch=4,
    held_out=0.3,
    rank=2,
    learning_rate=1e-2,
    guidance=3.0,
)


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def redness(images, prompts):
    return images[:, 0].mean((1, 2))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    home = tmp_path_factory.mktemp("families")
    prompts = home / "prompts.csv"
    prompts.write_text(
        "prompt,unsafe\na red square,0\na blue circle,0\na green triangle,0\na warning sign,1\na calm scene,0\na"
        " violent scene,1\n"
    )
    return SimpleNamespace(
        places={name: str(write(home / name)) for name, write in FAMILY_WRITERS.items()},
        prompts=str(prompts),
        home=home,
    )


def settings_of(name: str, **changes) -> SafeDiffusionConfig:
    return replace(FAST, **SIZES[name], text_tokens=TOKENS.get(name), **changes)


def run_of(world: SimpleNamespace, name: str, out: Path, **changes) -> RunConfig:
    settings = {"epochs": 2, "eval_every": 2, "checkpoint_every": 1, "device": "cpu", "quiet": True} | changes
    return RunConfig(pipeline=world.places[name], prompts=world.prompts, out=out, **settings)


def request_of(name: str, steps: int) -> Request:
    return Request(steps, text_tokens=TOKENS.get(name), **SIZES[name])


def studio_of(world: SimpleNamespace, name: str, steps: int = 5, eta: float = 0.5, **more):
    pipeline = load_pipeline(world.places[name])
    family = family_of(pipeline)
    prepare_network(getattr(pipeline, family.network), FAST, 0, family.adapted)
    return build_studio(pipeline, request_of(name, steps), 3.0, eta, CPU, **more)


def lines(run: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if not name.endswith("_s")} for line in read_metrics(run)]


def draw(pipeline, name: str, latents: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """A picture of plain diffusers from our latents."""
    given = latents if name != "flux" else pack(latents)
    options = {"max_sequence_length": TOKENS[name]} if name in TOKENS else {"eta": 0.0}
    with torch.no_grad():
        return pipeline(
            "a red square",
            num_inference_steps=steps,
            guidance_scale=3.0,
            latents=given,
            output_type="pt",
            **SIZES[name],
            **options,
        ).images


@pytest.mark.parametrize("name", FAMILY_WRITERS)
def test_the_noise_free_chain_is_that_of_diffusers(world, name):
    studio = studio_of(world, name)
    paths = [(3,)]
    ours = studio.render(["a red square"], Noise(paths, paths, studio.shape, CPU))
    theirs = draw(load_pipeline(world.places[name]), name, Noise(paths, paths, studio.shape, CPU).start())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY_WRITERS)
@pytest.mark.parametrize("more", [{}, {"sde": "flow", "noisy": (1, 3)}])
def test_an_unchanged_network_has_ratio_one(world, name, more):
    if name in ("sd", "sdxl"):
        more = {key: value for key, value in more.items() if key != "sde"}
    studio = studio_of(world, name, **more)
    paths, prompts = [(0, i) for i in range(4)], ["a red square", "a sign"] * 2
    rollout = studio.sample(
        prompts, Noise([(0, i % 2) for i in range(4)], paths, studio.shape, CPU), "mean", means=True
    )
    # Diffusers' steps of Stable Diffusion 3 leave a noise of 0.01 before the last: too little to be learnt from.
    assert studio.policy.learnt == ([1, 2] if more else [0, 1, 2] if name == "sd3" else [0, 1, 2, 3])
    for k in studio.policy.learnt:
        step = studio.policy.step(
            rollout.latents[:, k], torch.full((4,), k), studio.embeddings(prompts), studio.embeddings.empty
        )
        again = step_log_prob(step, rollout.latents[:, k + 1].float(), "mean")
        assert torch.equal((again - rollout.log_probs[:, k]).exp(), torch.ones(4))
        assert torch.equal(centred_log_prob(again, step, rollout.means[:, k], "mean"), again)
    if more:  # the step before the window takes the ODE, and pictures of one prompt and start are still the same
        assert torch.equal(rollout.latents[0, 1], rollout.latents[2, 1])
        assert not torch.equal(rollout.latents[0, 2], rollout.latents[2, 2])
        assert not rollout.log_probs[:, 0].any()
        assert not rollout.log_probs[:, 3].any()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sdxl", {"kl": 0.1}),
        ("sd3", {"unsafe_budget": 0.1, "noisy_steps": (0, 2), "ratio_center": True}),
        ("flux", {"sde": "flow", "ema": 0.9}),
        ("sd3", {"method": "nft", "unsafe_budget": 0.1, "updates": 2, "kl": 0.01}),
        ("sd", {"method": "nft", "second_reward": f"{HERE}:redness"}),
        ("flux", {"tune": "unet", "kl": 0.1, "gradient_checkpointing": True}),
    ],
)
def test_resume_is_exact(world, tmp_path, name, changes):
    config = settings_of(name, **changes)
    whole = start.post_train(run_of(world, name, tmp_path / "whole", epochs=3), config)
    part = start.post_train(run_of(world, name, tmp_path / "part", epochs=2), config)
    start.post_train(run_of(world, name, tmp_path / "part", epochs=3), config, resume=True)
    expected, found = (load_file(run / "checkpoints" / "3" / "learner.safetensors") for run in (whole, part))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert lines(whole)[-2:] == lines(part)[-2:]
    first = load_file(whole / "checkpoints" / "2" / "learner.safetensors")
    assert not all(torch.equal(expected[key], first[key]) for key in expected)


def test_a_window_whose_noise_cannot_be_seen_is_refused(world, tmp_path):
    config = settings_of("sd3", steps=5, noisy_steps=(3, 4))
    with pytest.raises(UserError, match="none of these steps can be learnt from"):
        start.post_train(run_of(world, "sd3", tmp_path / "run"), config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", FAMILY_WRITERS)
def test_exports_load_in_plain_diffusers(world, tmp_path, name):
    config = settings_of(name, learning_rate=0.1, kl=0.01)
    run = start.post_train(run_of(world, name, tmp_path / "run"), config)
    _, numbers, _ = evaluate(
        str(run),
        EvaluateFlags(
            prompts=Path(world.prompts),
            measures=(),
            distance_to=str(_clean(tmp_path)),
            encoder=f"{HERE}:colours",
            steps=3,
            device="cpu",
            out=tmp_path / "ev",
        ),
    )
    assert numbers["before"] != numbers["after"]
    kind = getattr(diffusers, family_of(load_pipeline(world.places[name])).pipeline_class)
    trained = load_trained(run)[0]
    shape = family_of(trained).shape(configs_of(trained), request_of(name, 5))
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    wanted = draw(trained, name, latents)
    before = draw(load_pipeline(world.places[name]), name, latents)
    assert not torch.allclose(wanted, before, atol=1e-3)
    export_run(run, tmp_path / "whole", "pipeline")
    torch.testing.assert_close(
        draw(kind.from_pretrained(tmp_path / "whole"), name, latents), wanted, rtol=1e-4, atol=1e-5
    )
    open_source(str(tmp_path / "whole"))
    # The adapters need nothing of the start pipeline, which has moved.
    moved = tmp_path / "moved"
    Path(world.places[name]).rename(moved)
    try:
        export_run(run, tmp_path / "adapters", "lora")
        export_run(run, tmp_path / "again", "pipeline", str(moved))
        plain = kind.from_pretrained(moved)
    finally:
        moved.rename(world.places[name])
    (file,) = (tmp_path / "adapters").iterdir()
    plain.load_lora_weights(str(tmp_path / "adapters"), weight_name=file.name)  # which older versions of diffusers ask the hub for
    torch.testing.assert_close(draw(plain, name, latents), wanted, rtol=1e-4, atol=1e-4)


def colours(images):
    return images.mean((2, 3))


def _clean(home: Path) -> Path:
    from saddlepoint.safediffusion.comparison import write_grid

    (home / "clean").mkdir()
    for i in range(2):
        write_grid(
            home / "clean" / f"{i}.png",
            [(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.zeros(1, dtype=torch.bool))],
        )
    return home / "clean"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd3", {"unsafe_budget": 0.3, "updates": 2}),
        ("flux", {"method": "nft", "unsafe_budget": 0.3}),
        ("sdxl", {"kl": 0.1}),
    ],
)
def test_two_processes_learn_what_one_learns(world, tmp_path, name, changes):
    config = settings_of(name, **changes)
    ranks = start_two(start.post_train, run_of(world, name, tmp_path / "two"), config)
    one = start.post_train(run_of(world, name, tmp_path / "one"), config)
    end_well(ranks)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["resolved"]["processes"] == 2
    for expected, found in zip(lines(one), lines(tmp_path / "two"), strict=True):
        assert found.pop("kind") == expected.pop("kind")
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    expected, found = (load_file(run / "checkpoints" / "2" / "learner.safetensors") for run in (one, tmp_path / "two"))
    for key, value in expected.items():
        if key.startswith(("transformer.", "unet.")):
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


def test_a_missing_t5_and_another_size_are_those_of_diffusers(tmp_path):
    place = str(write_sd3(tmp_path, t5=False, use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=16))
    pipeline = load_pipeline(place)
    studio = build_studio(pipeline, Request(4, height=12, width=8), 3.0, 0.0, CPU)
    assert studio.shape == (4, 6, 4)
    paths = [(3,)]
    latents = Noise(paths, paths, studio.shape, CPU).start()
    ours = studio.render(["a red square"], Noise(paths, paths, studio.shape, CPU))
    theirs = pipeline(
        "a red square", num_inference_steps=4, guidance_scale=3.0, latents=latents, output_type="pt", height=12, width=8
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_packing_is_that_of_diffusers():
    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(pack(x), diffusers.FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpack(pack(x), 3, 4), x)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_frozen_parts_stay_as_they_are_stored(world, tmp_path, name):
    """Saved in bfloat16, the text encoders and the VAE are loaded so, and an export has every part as it came."""
    whole = load_pipeline(world.places[name])
    whole.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = SimpleNamespace(places={name: str(tmp_path / "half")}, prompts=world.prompts)
    loaded = load_pipeline(half.places[name])
    network = family_of(loaded).network
    assert {part: getattr(loaded, part).dtype for part in ("vae", "text_encoder", network)} == {
        "vae": torch.bfloat16,
        "text_encoder": torch.bfloat16,
        network: torch.float32,
    }
    assert getattr(load_pipeline(half.places[name], low_precision=True), network).dtype == torch.bfloat16
    run = start.post_train(run_of(half, name, tmp_path / "run", epochs=1), settings_of(name, precision="bfloat16"))
    metrics = next(line for line in lines(run) if line["kind"] == "train")
    assert metrics["train/clipped_share"] < 1
    export_run(run, tmp_path / "out", "pipeline")
    files = [next((tmp_path / "out" / part).glob("*.safetensors")) for part in ("vae", "text_encoder", network)]
    assert {value.dtype for path in files for value in load_file(path).values()} == {torch.bfloat16}


def test_a_unet_that_takes_the_guidance_is_told_it(tmp_path):
    """An LCM-type UNet against plain diffusers, whose pipeline then makes one pass with the guidance's embedding."""
    from diffusers import UNet2DConditionModel

    place = write_pipeline(tmp_path)
    config = json.loads((place / "unet" / "config.json").read_text()) | {"time_cond_proj_dim": 8}
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config).save_pretrained(place / "unet")
    pipeline = load_pipeline(str(place))
    paths = [(3,)]
    for guidance in (3.0, 8.0):
        studio = build_studio(pipeline, Request(4), guidance, 0.0, CPU)
        ours = studio.render(["a red square"], Noise(paths, paths, studio.shape, CPU))
        latents = Noise(paths, paths, studio.shape, CPU).start()
        theirs = pipeline(
            "a red square", num_inference_steps=4, guidance_scale=guidance, latents=latents, output_type="pt", eta=0.0
        ).images
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
