"""Pipelines, tables, pictures and plug-ins as they come: what must be read right, and what must be refused in one
sentence before anything is written."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")
pytest.importorskip("peft")

from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from saddlepoint.cli import main
from saddlepoint.safediffusion import start
from saddlepoint.safediffusion.clip import CLIPEncoder
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.distance import few_pictures, moments, read_folder
from saddlepoint.safediffusion.evaluate import EvaluateFlags, evaluate, is_text_to_image
from saddlepoint.safediffusion.export import KOHYA_FILE, export_run, load_trained
from saddlepoint.safediffusion.families import Request
from saddlepoint.safediffusion.generation import EvaluationPrompt, read_table, unused_columns
from saddlepoint.safediffusion.memory import estimate
from saddlepoint.safediffusion.pipeline import load_pipeline, open_source
from saddlepoint.safediffusion.prompts import read_prompts
from saddlepoint.safediffusion.reward import featured, load_plugin, scored
from saddlepoint.safediffusion.rollout import Noise, build_studio
from saddlepoint.safediffusion.tables import denoising_table, scheduler_remarks
from saddlepoint.types import ForeignFault, NonFiniteError, UserError
from tests.tiny_pipeline import write_clip, write_flux, write_pipeline, write_sd3, write_sdxl

torch.set_num_threads(1)
HERE = "tests.test_safediffusion_pipelines"
CPU = torch.device("cpu")
BETAS = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FAST = SafeDiffusionConfig(
    reward=f"{HERE}:brightness",
    cost="none",
    utility=f"{HERE}:brightness",
    steps=3,
    group_size=2,
    images=2,
    sample_batch=2,
    held_out=0.0,
    rank=2,
    learning_rate=0.1,
)


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def spoiler(images, prompts):
    images.mul_(0)
    return torch.ones(len(images))


def colours(images):
    return images.mean((2, 3))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    home = tmp_path_factory.mktemp("pipelines")
    prompts = home / "prompts.txt"
    prompts.write_text("a red square\na sign\n")
    return SimpleNamespace(pipeline=write_pipeline(home / "a"), clip=write_clip(home / "b"), prompts=prompts)


@pytest.fixture
def copy(world, tmp_path) -> Path:
    return Path(shutil.copytree(world.pipeline, tmp_path / "pipeline"))


def change_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def train(
    world, pipeline: Path, out: Path, config: SafeDiffusionConfig = FAST, epochs: int = 1, resume: bool = False
) -> Path:
    run = RunConfig(
        pipeline=str(pipeline), prompts=str(world.prompts), epochs=epochs, device="cpu", quiet=True, out=out
    )
    return start.post_train(run, config, resume=resume)


def refused(world, pipeline: Path, out: Path, words: str, config: SafeDiffusionConfig = FAST) -> None:
    with pytest.raises(UserError, match=words) as error:
        train(world, pipeline, out, config)
    assert "\n" not in str(error.value)
    assert not out.exists()  # before anything is written


# ------------------------------------------------------------------------------------------------ every tensor comes
# from the files


def rename(path: Path, change) -> None:
    state = load_file(path)
    save_file(
        {new: value.contiguous() for name, value in state.items() if (new := change(name))},
        path,
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("how", ["one missing", "all renamed"])
def test_a_part_that_would_be_random_is_refused(world, copy, tmp_path, part, how):
    path = next((copy / part).glob("*.safetensors"))
    lost = sorted(load_file(path))[3]
    rename(
        path,
        (lambda name: None if name == lost else name) if how == "one missing" else (lambda name: f"elsewhere.{name}"),
    )
    refused(
        world,
        copy,
        tmp_path / "run",
        rf"the {part} of .* (lacks weights .* and would be random there|cannot be loaded)|cannot be loaded \(its {part}",
    )


@pytest.mark.parametrize("how", ["one missing", "all renamed"])
def test_a_clip_that_would_be_random_is_refused(world, tmp_path, how):
    clip = Path(shutil.copytree(world.clip, tmp_path / "clip"))
    path = clip / "model.safetensors"
    rename(
        path,
        (lambda name: None if name == "logit_scale" else name)
        if how == "one missing"
        else (lambda name: f"elsewhere.{name}"),
    )
    with pytest.raises(UserError, match=r"the CLIP .* lacks weights"):
        CLIPEncoder(str(clip), CPU)


def test_a_clip_without_settings_of_pictures_is_one_sentence(world, tmp_path):
    clip = Path(shutil.copytree(world.clip, tmp_path / "clip"))
    (clip / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json cannot be read as how a CLIP takes pictures"):
        CLIPEncoder(str(clip), CPU)


@pytest.mark.parametrize("values", [{"image_std": [0, 1, 1]}, {"image_mean": [float("nan")] * 3}])
def test_a_clip_whose_settings_of_pictures_make_no_numbers_is_refused(world, tmp_path, values):
    clip = Path(shutil.copytree(world.clip, tmp_path / "clip"))
    change_json(clip / "preprocessor_config.json", **values)
    with pytest.raises(UserError, match=r"image_mean and image_std of its preprocessor_config\.json are no means"):
        CLIPEncoder(str(clip), CPU)


def test_a_clip_of_another_projection_says_so(world, tmp_path):
    clip = Path(shutil.copytree(world.clip, tmp_path / "clip"))
    change_json(clip / "config.json", projection_dim=7)
    with pytest.raises(UserError, match=r"its weights have other shapes than its config\.json says"):
        CLIPEncoder(str(clip), CPU)


def forget_merges(folder: Path) -> None:
    """Leave a tokenizer its words and none of the rules that make them of letters."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))


def forget_words(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (forget_words, r"knows \d words, and its text encoder \d+: restore the tokenizer's files"),
        (forget_merges, "splits '[a-z]+', which its vocabulary has as one word"),
    ],
)
def test_a_tokenizer_without_its_words_is_refused(world, copy, tmp_path, harm, words):
    """Libraries load one of no words, for which all prompts are the same."""
    harm(copy / "tokenizer")
    refused(world, copy, tmp_path / "run", f"the tokenizer of .* {words}")
    clip = Path(shutil.copytree(world.clip, tmp_path / "clip"))
    harm(clip)
    with pytest.raises(UserError, match=f"the tokenizer of the CLIP .* {words}"):
        CLIPEncoder(str(clip), CPU)


def test_a_tokenizer_without_its_length_is_refused(world, copy, tmp_path):
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    refused(world, copy, tmp_path / "run", r"the tokenizer of .* may give more than the 16 tokens .* restore the tokenizer_config\.json")


@pytest.mark.parametrize("entry", ["x", 5, ["diffusers"], ["diffusers", 3], [[], {}]])
@pytest.mark.parametrize("part", ["unet", "safety_checker"])
def test_an_odd_entry_of_the_index_is_named(world, copy, tmp_path, part, entry):
    change_json(copy / "model_index.json", **{part: entry})
    refused(world, copy, tmp_path / "run", rf"the model_index\.json of .* has no library and class as its {part}")


def test_betas_beyond_one_are_refused(world, copy, tmp_path):
    change_json(copy / "scheduler" / "scheduler_config.json", beta_end=2.0)
    refused(world, copy, tmp_path / "run", "its betas make no signal between 0 and 1")


def test_weights_with_a_variant_and_in_shards_are_read(world, copy, tmp_path):
    wanted = load_pipeline(str(world.pipeline)).unet.state_dict()
    for part in ("unet", "vae", "text_encoder"):
        path = next((copy / part).glob("*.safetensors"))
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    found = load_pipeline(str(copy)).unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    shutil.rmtree(copy / "unet")
    load_pipeline(str(world.pipeline)).unet.save_pretrained(copy / "unet", max_shard_size="60KB")
    assert len(list((copy / "unet").glob("*-of-*.safetensors"))) > 1
    found = load_pipeline(str(copy)).unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    source = open_source(str(copy))
    said = estimate(source, FAST, None)
    assert f"unet {sum(value.numel() for value in wanted.values()) / 1e6:.4g} M" in said
    unet = load_pipeline(str(copy)).unet
    from saddlepoint.safediffusion.learner import prepare_network

    prepare_network(unet, FAST, 0)
    assert f"{sum(p.numel() for p in unet.parameters() if p.requires_grad) / 1e6:.3g} M trained" in said


def test_other_weights_than_safetensors_are_named(world, copy, tmp_path):
    path = next((copy / "unet").glob("*.safetensors"))
    path.rename(path.with_suffix(".bin"))
    refused(world, copy, tmp_path / "run", r"the unet of .* has no safetensors weights \(there is .*\.bin")


ADAPTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("kind", ["peft", "processor", "loha", "lokr", "dora", "beside", "text encoder"])
def test_adapters_that_would_be_left_out_are_refused(world, copy, tmp_path, kind):
    part, named = "unet", "pytorch_lora_weights.safetensors"
    weights = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")
    if kind == "beside":
        save_file({f"unet.{ADAPTED}.lora_A.weight": torch.ones(2, 8)}, copy / "unet" / named)
    elif kind == "text encoder":  # transformers applies these, and saves nothing else when the pipeline is exported
        part, named = "text_encoder", "adapter_config.json"
        (copy / part / named).write_text("{}")
    else:
        named = ADAPTED + {
            "peft": ".lora_A.default.weight", "processor": ".processor.to_q_lora.down.weight", "loha": ".hada_w1_a", "lokr": ".lokr_w1", "dora": ".dora_scale",
        }[kind]  # fmt: skip
        save_file(weights | {named: torch.ones(2, 8)}, copy / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    refused(world, copy, tmp_path / "run", rf"the {part} of .* has adapters \({re.escape(named)}\), which are not read: merge")


@pytest.mark.parametrize("name", ["unet.a.lora.down.weight", "lora_unet_a.lora_up.weight", "base_model.model.a.lora_A.weight", "lora_te_a.hada_w2_b"])
def test_a_file_of_adapters_is_no_pipeline(tmp_path, name):
    save_file({name: torch.ones(2, 8)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors holds adapters alone, .*: merge them"):
        open_source(str(tmp_path / "a.safetensors"))


def test_a_single_file_is_refused_with_the_way_to_convert_it(world, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    shutil.copy(next((world.pipeline / "unet").glob("*.safetensors")), file)
    refused(world, file, tmp_path / "run", r"is a single file, .*from_single_file\(FILE\)\.save_pretrained\(FOLDER\)")
    assert is_text_to_image(file)
    assert main(["evaluate", str(file), "--prompts", str(world.prompts), "--measures", "--checker", "tiny"]) == 2
    assert "single file" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ parts and schedulers
# that mean something else


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_channels": 9}, "takes 9 channels where its VAE has 4 .*inpainting"),
        ({"out_channels": 8}, "gives 8 channels"),
        ({"num_class_embeds": 5}, "num_class_embeds 5, which needs an input"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 80,
            },
            "addition_embed_type text_time",
        ),
        ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 16}, "encoder_hid_dim_type image_proj"),
        ({"cross_attention_dim": 24}, "text of width 24 and its text encoder gives 16"),
    ],
)
def test_a_unet_that_is_called_in_another_way_is_refused(world, copy, tmp_path, change, words):
    change_json(copy / "unet" / "config.json", **change)
    refused(world, copy, tmp_path / "run", words)


def test_an_sdxl_refiner_and_parts_of_two_pipelines_are_refused(world, tmp_path):
    xl = write_sdxl(tmp_path / "xl")
    change_json(xl / "text_encoder_2" / "config.json", projection_dim=24)
    refused(world, xl, tmp_path / "run", "6 x 8 .* give an SDXL base pipeline")
    three, other = write_sd3(tmp_path / "three"), write_sd3(tmp_path / "other", t5=False)
    shutil.rmtree(three / "text_encoder")
    # without a projection: nothing in the configs says so
    shutil.copytree(write_sdxl(tmp_path / "more") / "text_encoder", three / "text_encoder")
    refused(world, three, tmp_path / "run", r"cannot be loaded|lacks weights|do not fit together")
    change_json(other / "model_index.json", transformer=["somewhere", "Transformer"])
    refused(world, other, tmp_path / "run", "code that is not diffusers' or transformers'")


def test_parts_that_do_not_fit_are_found_by_one_step(world, tmp_path):
    """The transformer expects pooled embeddings of another width, which no config check of ours looks at."""
    from diffusers import SD3Transformer2DModel

    place = write_sd3(tmp_path / "a", t5=False)
    config = json.loads((place / "transformer" / "config.json").read_text()) | {"pooled_projection_dim": 20}
    SD3Transformer2DModel.from_config(config).save_pretrained(place / "transformer")
    refused(world, place, tmp_path / "run", "the parts of this Stable Diffusion 3/3.5 pipeline do not fit together")


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (BETAS | {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "no log-probabilities"),
        (
            BETAS | {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "epsilon"},
            "no log-probabilities",
        ),
        (
            BETAS
            | {
                "_class_name": "EulerDiscreteScheduler",
                "timestep_type": "continuous",
                "prediction_type": "v_prediction",
            },
            "no log-probabilities",
        ),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0}, "no log-probabilities"),
        (BETAS | {"_class_name": "LCMScheduler"}, "not those of DDIM"),
        (BETAS | {"_class_name": "TCDScheduler"}, "not those of DDIM"),
        (BETAS | {"thresholding": True}, "thresholding"),
        (FLOW, "no log-probabilities"),
    ],
)
def test_schedulers_that_mean_something_else_are_refused(world, copy, tmp_path, settings, words):
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    refused(world, copy, tmp_path / "run", words)


@pytest.mark.parametrize(
    "settings",
    [{"invert_sigmas": True}, {"stochastic_sampling": True}, {"_class_name": "FlowMatchHeunDiscreteScheduler"}],
)
def test_flow_schedulers_that_make_other_steps_are_refused(world, tmp_path, settings):
    place = write_sd3(tmp_path / "a", t5=False)
    change_json(place / "scheduler" / "scheduler_config.json", **settings)
    refused(world, place, tmp_path / "run", "scheduler|Scheduler")


def test_options_of_another_family_are_refused(world, tmp_path):
    refused(
        world, world.pipeline, tmp_path / "run", "--sde flow is of flow-matching pipelines", replace(FAST, sde="flow")
    )
    refused(world, world.pipeline, tmp_path / "run", "has no T5", replace(FAST, text_tokens=12))


@pytest.mark.parametrize(
    "settings",
    [
        {"steps_offset": 0},
        {"clip_sample": True, "steps_offset": ...},
        {"timestep_spacing": "trailing"},
        {"set_alpha_to_one": True},
    ],
)
def test_settings_of_a_scheduler_are_those_of_diffusers(copy, settings):
    change_json(copy / "scheduler" / "scheduler_config.json", **settings)
    studio = build_studio(load_pipeline(str(copy)), Request(4), 3.0, 0.0, CPU)
    ours = studio.render(["a red square"], Noise([(3,)], [(3,)], studio.shape, CPU))
    latents = Noise([(3,)], [(3,)], studio.shape, CPU).start()
    plain = StableDiffusionPipeline.from_pretrained(copy, safety_checker=None)
    theirs = plain(
        "a red square", num_inference_steps=4, guidance_scale=3.0, latents=latents, output_type="pt", eta=0.0
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [1, 5])
def test_every_number_of_steps_has_a_table_or_a_sentence(offset):
    wrong = [1000] if offset == 1 else [200, 250, 333, 499, 500, 996, 999, 1000]
    for steps in (2, 3, 50, 200, 250, 333, 499, 500, 996, 999, 1000):
        if steps in wrong:
            with pytest.raises(UserError, match="time steps beyond the 1000"):
                denoising_table(BETAS | {"steps_offset": offset}, steps)
        else:
            assert int(denoising_table(BETAS | {"steps_offset": offset}, steps).timesteps.max()) < 1000


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("scheduler", {"num_train_timesteps": -5}), ("scheduler", {"num_train_timesteps": "1000"}), ("scheduler", {"beta_schedule": "cosine"}),
        ("scheduler", {"trained_betas": [0.1]}), ("scheduler", {"trained_betas": "x"}), ("scheduler", {"beta_start": float("nan")}),
        ("scheduler", {"beta_start": -1.0}), ("unet", {"sample_size": 1.5}), ("unet", {"sample_size": []}), ("unet", {"sample_size": {}}),
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_another_kind_are_refused_before_a_model_is_loaded(copy, part, settings):
    change_json(copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **settings)
    with pytest.raises(UserError, match=r"the pipeline .* has odd settings"):
        open_source(str(copy)).check(Request(2))


def test_a_folder_that_is_neither_a_run_nor_a_pipeline_is_named(copy, capsys):
    (copy / "model_index.json").unlink()
    (copy / "p.txt").write_text("a sign\n")
    for folder in (copy, copy.parent):
        assert main(["evaluate", str(folder), "--prompts", str(copy / "p.txt")]) == 2
        assert f"{folder} is not a pipeline in diffusers' layout (it has no model_index.json): give the folder of one." in capsys.readouterr().err


def test_a_signal_of_almost_nothing_is_refused_and_leading_with_zero_snr_remarked():
    betas = np.linspace(1e-4, 0.05, 1000)  # alpha_bar ends at 1e-11
    with pytest.raises(UserError, match="almost 0"):
        denoising_table(BETAS | {"trained_betas": betas.tolist()}, 999)
    rescale, trailing = scheduler_remarks({"rescale_betas_zero_snr": True})
    assert "guidance_rescale is not offered" in rescale
    assert "trailing is usually meant" in trailing
    assert scheduler_remarks({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}) == [rescale]
    assert not scheduler_remarks({"timestep_spacing": "leading"})


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_a_guidance_of_one_or_less_is_none_as_in_diffusers_and_remarked(world, copy, tmp_path, guidance, capsys):
    studio = build_studio(load_pipeline(str(copy)), Request(3), guidance, 0.0, CPU)
    ours = studio.render(["a red square"], Noise([(3,)], [(3,)], studio.shape, CPU))
    latents = Noise([(3,)], [(3,)], studio.shape, CPU).start()
    plain = StableDiffusionPipeline.from_pretrained(copy, safety_checker=None)
    theirs = plain(
        "a red square", num_inference_steps=3, guidance_scale=guidance, latents=latents, output_type="pt", eta=0.0
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    remark = f"--guidance {guidance:g} draws without guidance, .* diffusers takes 7.5 for Stable Diffusion 1/2"
    if guidance == 1:
        train(world, copy, tmp_path / "run", replace(FAST, guidance=guidance))
        assert re.search(f"note: {remark}", capsys.readouterr().out)
        asked = EvaluateFlags(prompts=world.prompts, measures=("alignment",), clip=str(world.clip), steps=2)
        flags = replace(asked, guidance=guidance, device="cpu", out=tmp_path / "ev")
        assert re.search(remark, evaluate(str(copy), flags)[2])
    source = open_source(str(copy))
    assert re.search(remark, source.remarks(guidance)[0])
    assert not source.remarks(1.5)


def test_a_guidance_that_the_network_is_told_is_not_remarked(copy, tmp_path):
    change_json(copy / "unet" / "config.json", time_cond_proj_dim=8)
    assert not open_source(str(copy)).remarks(1.0)
    assert not open_source(str(write_flux(tmp_path))).remarks(1.0)


@pytest.mark.parametrize("size", [None, ...])
def test_a_unet_without_a_sample_size_needs_one_from_the_user(world, copy, tmp_path, size):
    change_json(copy / "unet" / "config.json", sample_size=size)
    refused(world, copy, tmp_path / "run", "states no sample_size: give --height and --width")
    refused(world, copy, tmp_path / "run", "--height 7 is no multiple of 2 pixels", replace(FAST, height=7, width=8))
    run = train(world, copy, tmp_path / "run", replace(FAST, height=12, width=8))
    evaluated, _, _ = evaluate(
        str(run),
        EvaluateFlags(
            prompts=world.prompts,
            measures=(),
            distance_to=str(_clean(tmp_path)),
            encoder=f"{HERE}:colours",
            device="cpu",
            out=tmp_path / "ev",
        ),
    )
    assert load_file(next((evaluated / "pictures").glob("after-*.safetensors")))["images"].shape == (2, 3, 12, 8)


def _clean(home: Path, count: int = 2) -> Path:
    from PIL import Image

    (home / "clean").mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(
            home / "clean" / f"{i}.png"
        )
    return home / "clean"


# ------------------------------------------------------------------------------------------------ what identifies a
# pipeline


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("vae/config.json", {"scaling_factor": 0.9}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 8}),
    ],
)
def test_a_changed_config_is_a_changed_pipeline(world, copy, tmp_path, file, change):
    flags = EvaluateFlags(
        prompts=world.prompts,
        measures=(),
        distance_to=str(_clean(tmp_path)),
        encoder=f"{HERE}:colours",
        steps=2,
        device="cpu",
        out=tmp_path / "ev",
    )
    evaluate(str(copy), flags)
    run = train(world, copy, tmp_path / "run")
    change_json(copy / file, **change)
    with pytest.raises(UserError, match="other pictures"):
        evaluate(str(copy), flags)
    with pytest.raises(UserError, match=rf"have changed since it started \({file}\)"):
        train(world, copy, tmp_path / "run", epochs=2, resume=True)
    with pytest.raises(UserError, match=rf"have changed since .* \({file}\)"):
        export_run(run, tmp_path / "out", "pipeline")


def test_a_pipeline_that_has_moved_is_given_anew(world, copy, tmp_path, capsys):
    run = train(world, copy, tmp_path / "run")
    moved = copy.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"there is no pipeline folder .* given as --pipeline"):
        export_run(run, tmp_path / "out", "pipeline")
    assert main(["export", str(run), str(tmp_path / "out"), "--pipeline", str(moved)]) == 0
    assert (
        main(["train", "safediffusion", "--resume", str(run), "--epochs", "2", "--pipeline", str(moved), "--quiet"])
        == 0
    )
    assert json.loads((run / "config.json").read_text())["train"]["pipeline"] == str(moved)
    assert main(["export", str(run), str(tmp_path / "again")]) == 0
    capsys.readouterr()


def test_adapters_with_kohyas_names_load_in_plain_diffusers(world, tmp_path):
    run = train(world, world.pipeline, tmp_path / "run")
    export_run(run, tmp_path / "kohya", "kohya")
    names = load_file(tmp_path / "kohya" / KOHYA_FILE)
    assert all(name.startswith("lora_unet_") for name in names)
    assert any(name.endswith(".alpha") for name in names)
    plain = load_pipeline(str(world.pipeline))
    plain.load_lora_weights(str(tmp_path / "kohya"), weight_name=KOHYA_FILE)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = [
        one("a red square", num_inference_steps=4, latents=latents, output_type="pt").images
        for one in (plain, load_trained(run)[0])
    ]
    torch.testing.assert_close(*pictures, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ prompts


def test_long_prompts_are_counted_in_one_remark(world, tmp_path, capsys):
    prompts = tmp_path / "long.txt"
    prompts.write_text("a red square\n" + "a red square " * 10 + "\n")
    longer = SimpleNamespace(prompts=prompts)
    train(longer, world.pipeline, tmp_path / "run")
    assert "note: text_encoder reads 16 tokens and 1 of 2 prompts have more (up to 32)" in capsys.readouterr().out
    flags = EvaluateFlags(
        prompts=prompts, measures=("alignment",), clip=str(world.clip), steps=2, device="cpu", out=tmp_path / "ev"
    )
    _, _, note = evaluate(str(world.pipeline), flags)
    assert "the CLIP reads 16 tokens and 1 of 2 prompts have more" in note
    assert "text_encoder reads 16 tokens" in note


def test_a_row_has_its_own_label_seed_and_guidance(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "prompt,unsafe,evaluation_seed,evaluation_guidance,sd_seed,width,negative_prompt\n"
        "a sign,1,42,7.5,,512,x\na sign,0,9007199254740993,,,512,x\na sign,,,,43.0,512,x\n"
    )
    assert read_table(path) == [
        EvaluationPrompt("a sign", True, (), 42, 7.5),
        EvaluationPrompt("a sign", False, (), 9007199254740993),
        EvaluationPrompt("a sign", None, (), 43),
    ]
    assert unused_columns(path) == ["width", "negative_prompt"]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("Prompt,unsafe", r"no column named prompt \(there are 'Prompt', 'unsafe'\)"),
        ("prompt;unsafe", "there are 'prompt;unsafe'"),
        ("prompt,prompt", "two columns named prompt"),
        ("prompt,unsafe,unsafe", "two columns named unsafe"),
        ("prompt,sd_seed,x,sd_seed", "two columns named sd_seed"),
        ("prompt, unsafe", r"no column named unsafe \(there are 'prompt', ' unsafe'\)"),
        ("prompt,Categories", "no column named categories"),
        ("prompt,Evaluation_Seed", "no column named evaluation_seed"),
    ],
)
def test_a_table_without_one_column_of_prompts_names_those_that_there_are(tmp_path, head, words):
    path = tmp_path / "p.csv"
    path.write_text(f"{head}\na sign,1\n")
    with pytest.raises(UserError, match=words):
        read_table(path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a sign,0\na square, red,1\n", "line 3 has more values than there are columns"),
        ("a sign,0\na square,1, red\n", "line 3 has more values than there are columns: put a prompt that has commas in it in double quotes"),
        ('a sign,0\n"a square,1\na circle,0\n', "is not a CSV table .unexpected end of data"),
        ('"a sign"s,0\n', "is not a CSV table"),
    ],
)
def test_a_table_whose_prompts_are_not_quoted_right(tmp_path, rows, words):
    """Else a prompt is cut at its comma, or swallows all the lines to the next quote."""
    path = tmp_path / "p.csv"
    path.write_text(f"prompt,unsafe\n{rows}")
    for read in (read_table, read_prompts):
        with pytest.raises(UserError, match=words):
            read(path)


def test_a_table_with_empty_ends_and_other_columns_is_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes('\ufeffPrompt,prompt,x,x,,\r\nA,"say ""stop"", now",1,2,,,,\r\n\r\n'.encode())
    assert read_table(path) == [EvaluationPrompt('say "stop", now')]


# ------------------------------------------------------------------------------------------------ pictures


def test_grey_pictures_of_16_bits_and_transparent_ones_are_read_right(tmp_path):
    from PIL import Image

    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    see_through = np.zeros((8, 8, 4), np.uint8)
    see_through[..., 0], see_through[..., 3] = 255, 51  # red, a fifth of it
    Image.fromarray(see_through).save(tmp_path / "b.png")
    (tmp_path / "._a.png").write_bytes(b"of another system")
    grey, clear = torch.cat(list(read_folder(tmp_path, 2)))
    torch.testing.assert_close(grey, torch.from_numpy(ramp / 65535).float().expand(3, 8, 8), atol=1e-6, rtol=0)
    torch.testing.assert_close(clear[:, 0, 0], torch.tensor([1.0, 0.8, 0.8]), atol=1e-6, rtol=0)


def test_a_distance_of_few_pictures_is_remarked(world, tmp_path):
    enough, few = (moments(torch.randn(n, 4, generator=torch.Generator().manual_seed(0))) for n in (40, 39))
    assert few_pictures(enough, enough) is None
    assert "rests on 39 pictures for 4 features" in few_pictures(enough, few)
    flags = EvaluateFlags(
        prompts=world.prompts,
        measures=(),
        distance_to=str(_clean(tmp_path)),
        encoder=f"{HERE}:colours",
        steps=2,
        device="cpu",
        out=tmp_path / "ev",
    )
    assert "rests on 2 pictures for 3 features" in evaluate(str(world.pipeline), flags)[2]


# ------------------------------------------------------------------------------------------------ plug-ins


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("from math import nothing_of_the_kind\nx = 1", "cannot be imported"),
        ("import math\nx = math.apply_chunking", "raised AttributeError.*correct it"),
        ("def x(:", "raised SyntaxError"),
        (
            "class x:\n    def __init__(self):\n        raise RuntimeError('no weights')",
            "raised RuntimeError: no weights .*line 3, in __init__",
        ),
        ("class x:\n    def __init__(self, weights):\n        pass", "cannot be built without arguments"),
    ],
)
def test_a_plugin_is_guarded_when_it_is_loaded(tmp_path, monkeypatch, content, words):
    name = f"plugin_{abs(hash(content))}"
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for flag in ("--reward", "--encoder"):
        with pytest.raises(UserError, match=words) as error:
            load_plugin(flag, f"{name}:x")
        assert "\n" not in str(error.value)


def test_a_plugin_has_pictures_of_its_own():
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    scored(spoiler, "--reward", images, ["a", "b"])
    assert torch.equal(images, before)
    with pytest.raises(ForeignFault, match="--reward raised"):
        scored(lambda images, prompts: images.nothing, "--reward", images, ["a", "b"])


def test_nudity_counts_the_classes_and_the_threshold_that_are_asked_for(monkeypatch):
    nudenet = pytest.importorskip("nudenet")
    from saddlepoint.safediffusion.nudity import NudityDetections

    found = [
        {"class": "BELLY_EXPOSED", "score": 0.61},
        {"class": "FACE_FEMALE", "score": 0.9},
        {"class": "FACE_FEMALE", "score": 0.3},
    ]
    monkeypatch.setattr(nudenet.NudeDetector, "detect", lambda self, image: found)
    picture = torch.zeros(1, 3, 8, 8)
    assert NudityDetections()(picture, ["x"]).tolist() == [1.0]
    assert NudityDetections(0.25, ("FACE_FEMALE",))(picture, ["x"]).tolist() == [2.0]
    flags = EvaluateFlags(prompts=Path("p.txt"), nudity_classes=("FACE",))
    with pytest.raises(UserError, match="--nudity-classes FACE is no class"):
        flags.validate()


def spoils(images):
    images.mul_(0)
    return images.mean((2, 3))


@pytest.mark.parametrize(
    ("encoder", "fault", "words"),
    [
        (lambda images: images.nothing, ForeignFault, "--encoder raised AttributeError"),
        (lambda images: torch.ones(3), ForeignFault, r"shape \(3,\) for 2 images: it must return a row"),
        (lambda images: torch.ones(4, 2), ForeignFault, r"shape \(4, 2\) for 2 images"),
        (lambda images: torch.full((len(images), 2), torch.nan), NonFiniteError, "--encoder returned a number that is not finite"),
    ],
)
def test_features_are_checked_where_they_are_used(encoder, fault, words):
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(fault, match=words):
        featured(encoder, "--encoder", images)
    before = images.clone()
    assert featured(spoils, "--encoder", images).shape == (2, 3)
    assert torch.equal(images, before)


def test_an_encoder_that_fails_ends_an_evaluation_in_one_sentence(world, tmp_path, capsys):
    asked = ["evaluate", str(world.pipeline), "--prompts", str(world.prompts), "--measures", "--steps", "2", "--out", str(tmp_path / "ev")]
    assert main([*asked, "--distance-to", str(_clean(tmp_path)), "--encoder", f"{HERE}:failing"]) == 2
    assert "--encoder raised RuntimeError: no weights" in capsys.readouterr().err


def failing(images):
    raise RuntimeError("no weights")


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    from PIL import Image

    Image.new("1", (16000, 16000)).save(tmp_path / "a.png")  # above what PIL takes for an attack
    with pytest.raises(UserError, match=r"a\.png cannot be read \(Image size .* exceeds limit"):
        list(read_folder(tmp_path, 2))
