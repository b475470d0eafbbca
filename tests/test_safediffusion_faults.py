"""Faults that were found in the post-training of text-to-image models, so that they do not come back: what must be refused, and in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save
from transformers import CLIPConfig, CLIPImageProcessor

from saddlepoint.cli import main
from saddlepoint.foreign import first_line
from saddlepoint.safediffusion.clip import CLIPEncoder
from saddlepoint.safediffusion.comparison import write_grid
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.evaluate import EvaluateFlags, evaluate
from saddlepoint.safediffusion.export import export_run
from saddlepoint.safediffusion.generation import read_table
from saddlepoint.safediffusion.harm import read_harms
from saddlepoint.safediffusion.held_out import HeldOut
from saddlepoint.safediffusion.pipeline import from_hub, load_pipeline, open_source, source_files
from saddlepoint.safediffusion.prompts import Prompt
from saddlepoint.safediffusion.reward import load_plugin, read_anchors
from saddlepoint.safediffusion.start import post_train
from saddlepoint.types import UserError
from tests.tiny_pipeline import write_clip, write_pipeline

HERE = "tests.test_safediffusion_faults"


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def colour_means(images):
    return images.mean((2, 3))


def flags_of(home: Path, name: str) -> EvaluateFlags:
    """Distances of colour means, which need no CLIP."""
    clean, table = home / "clean", home / "prompts.txt"
    if not clean.exists():
        clean.mkdir()
        table.write_text("a red square\na blue circle\n")
        for i in range(2):
            write_grid(clean / f"{i}.png", [(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.zeros(1, dtype=torch.bool))])
    return EvaluateFlags(
        prompts=table, measures=(), distance_to=str(clean), encoder=f"{HERE}:colour_means", steps=2, device="cpu", out=home / name
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ evaluation


def test_pictures_of_a_replaced_pipeline_are_not_taken_up(tmp_path):
    pipeline, flags = write_pipeline(tmp_path / "a"), flags_of(tmp_path, "out")
    first = evaluate(str(pipeline), flags)[1]
    assert evaluate(str(pipeline), flags)[1] == first
    assert any(name.startswith("unet/") for name in source_files(str(pipeline)))
    write_pipeline(tmp_path / "a", seed=1)
    with pytest.raises(UserError, match="other pictures"):
        evaluate(str(pipeline), flags)
    assert evaluate(str(pipeline), replace(flags, out=tmp_path / "anew"))[1] != first


def test_a_fingerprint_is_of_what_is_in_a_file_wherever_it_lies(tmp_path):
    content = bytearray(range(256)) * 4096  # 1 MiB, read whole
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(content)
    os.utime(tmp_path / "b" / "w.safetensors", (1, 1))
    assert source_files(str(tmp_path / "a")) == source_files(str(tmp_path / "b"))
    content[777_777] ^= 1
    (tmp_path / "b" / "w.safetensors").write_bytes(content)
    assert source_files(str(tmp_path / "a")) != source_files(str(tmp_path / "b"))


def test_a_run_does_not_go_on_with_other_anchors_or_weights(tmp_path):
    pipeline, clip, prompts = write_pipeline(tmp_path / "a"), write_clip(tmp_path / "b"), tmp_path / "prompts.txt"
    anchors = tmp_path / "anchors"
    anchors.mkdir()
    (anchors / "unsafe.txt").write_text("a warning sign\n")
    (anchors / "safe.txt").write_text("a peaceful scene\n")
    prompts.write_text("a red square\na sign\n")
    run = RunConfig(pipeline=str(pipeline), prompts=str(prompts), epochs=1, device="cpu", quiet=True, out=tmp_path / "run")
    config = SafeDiffusionConfig(clip=str(clip), anchors=str(anchors), images=4, group_size=2, sample_batch=4, steps=3, rank=2, held_out=0.0)
    post_train(run, config)
    (anchors / "unsafe.txt").write_text("a red square\n")
    with pytest.raises(UserError, match=r"the phrases of --anchors of .* have changed since it started"):
        post_train(replace(run, epochs=2), config, resume=True)
    (anchors / "unsafe.txt").write_text("a warning sign\n")
    post_train(replace(run, epochs=2), config, resume=True)
    write_pipeline(tmp_path / "a", seed=1)
    with pytest.raises(UserError, match=r"the weights or configs of --pipeline of .* have changed since it started"):
        post_train(replace(run, epochs=3), config, resume=True)
    with pytest.raises(UserError, match=r"the weights or configs of .* have changed since .* started from them"):
        export_run(tmp_path / "run", tmp_path / "out", "pipeline")


def test_an_export_keeps_the_safety_checker_that_training_leaves_out(tmp_path):
    pipeline, prompts = write_pipeline(tmp_path / "a"), tmp_path / "prompts.txt"
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=tower, vision_config=tower | {"image_size": 8, "patch_size": 4}, projection_dim=8))
    whole = load_pipeline(str(pipeline))
    whole.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor(size=8, crop_size=8))
    whole.register_to_config(requires_safety_checker=True)
    whole.save_pretrained(tmp_path / "guarded", safe_serialization=True)
    prompts.write_text("a red square\na sign\n")
    run = RunConfig(pipeline=str(tmp_path / "guarded"), prompts=str(prompts), epochs=1, device="cpu", quiet=True, out=tmp_path / "run")
    score = f"{HERE}:brightness"
    post_train(run, SafeDiffusionConfig(reward=score, cost="none", utility=score, images=4, group_size=2, steps=3, rank=2, held_out=0.0))
    export_run(tmp_path / "run", tmp_path / "out", "pipeline")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["requires_safety_checker"] is True
    found = load_pipeline(str(tmp_path / "out"), whole=True).safety_checker
    for name, value in checker.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_pictures_of_a_run_that_was_made_anew_are_not_taken_up(tmp_path):
    pipeline, flags = str(write_pipeline(tmp_path / "a")), flags_of(tmp_path, "out")
    config = SafeDiffusionConfig(
        reward=f"{HERE}:brightness", cost="none", utility=f"{HERE}:brightness", steps=3, group_size=2, images=2, held_out=0.0, rank=2,
    )  # fmt: skip
    settings = RunConfig(pipeline=pipeline, prompts=str(flags.prompts), out=tmp_path / "run", epochs=1, device="cpu", quiet=True)
    run = post_train(settings, config)
    evaluate(str(run), flags)
    evaluate(str(run), flags)
    run.rename(tmp_path / "old")
    post_train(replace(settings, seed=1), config)
    with pytest.raises(UserError, match="other pictures"):
        evaluate(str(run), flags)


def test_a_pipeline_of_another_picture_size_is_compared(tmp_path):
    small, large = str(write_pipeline(tmp_path / "a")), str(write_pipeline(tmp_path / "b", side=8))
    out, numbers, _ = evaluate(small, replace(flags_of(tmp_path, "out"), against=large))
    assert list(numbers) == ["before", "after"]
    assert (out / "grid.png").is_file()
    assert [load_file(out / "pictures" / f"{side}-000000.safetensors")["images"].shape[-1] for side in numbers] == [16, 8]


def test_results_are_written_before_the_grid(tmp_path, monkeypatch):
    def fail(path, sides):
        raise OSError("disk full")

    monkeypatch.setattr("saddlepoint.safediffusion.evaluate.write_grid", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(str(write_pipeline(tmp_path / "a")), flags_of(tmp_path, "out"))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        ({"beta_end": 0.02}, "noise schedule"),
        ({"beta_schedule": "linear"}, "noise schedule"),
        ({"num_train_timesteps": 500}, "noise schedule"),
        ({"trained_betas": [0.01] * 1000}, "noise schedule"),
        ({"prediction_type": "v_prediction"}, "prediction_type"),
    ],
)
def test_pipelines_of_different_noise_are_not_compared(tmp_path, scheduler, sentence):
    source, other = str(write_pipeline(tmp_path / "a")), str(write_pipeline(tmp_path / "b", scheduler))
    with pytest.raises(UserError, match=sentence):
        evaluate(source, replace(flags_of(tmp_path, "out"), against=other))
    assert not (tmp_path / "out").exists()


def test_the_device_is_chosen_as_in_training(monkeypatch):
    assert EvaluateFlags().device == "auto"
    for there, wanted in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert EvaluateFlags().resolve_device().type == wanted
        assert EvaluateFlags(device="cpu").resolve_device().type == "cpu"


# ------------------------------------------------------------------------------------------------ one sentence instead of a traceback


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("datetime:datetime", "cannot be built without arguments"),
        (":Unsafe", "the module's full name"),
        (".x:Unsafe", "the module's full name"),
        ("math:", "the module's full name"),
    ],
)
def test_a_plugin_that_cannot_be_had(name, sentence):
    with pytest.raises(UserError, match=sentence):
        load_plugin("--encoder", name)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", "9" * 5000])
@pytest.mark.parametrize("column", ["sd_seed", "sd_guidance_scale"])
def test_numbers_of_a_table_are_finite(tmp_path, column, value):
    path = tmp_path / "p.csv"
    path.write_text(f"prompt,{column}\na red square,{value}\n")
    with pytest.raises(UserError, match=f"line 2: {column} must be a finite number"):
        read_table(path)


def test_phrases_that_are_not_utf_8(tmp_path):
    (tmp_path / "neutral.txt").write_text("a calm scene\n", encoding="utf-8-sig")
    for name in ("unsafe", "violence"):
        (tmp_path / f"{name}.txt").write_text("a naïve scene\n", encoding="latin-1")
    for read in (lambda: read_anchors(str(tmp_path)), lambda: read_harms(tmp_path)):
        with pytest.raises(UserError, match=r"unsafe\.txt are not UTF-8"):
            read()
    for name in ("unsafe", "violence"):
        (tmp_path / f"{name}.txt").write_text("a naïve scene\n", encoding="utf-8")
    assert read_anchors(str(tmp_path)) == ([], ["a naïve scene"])
    assert read_harms(tmp_path)["neutral"] == ["a calm scene"]  # without the mark at the start of the file


def test_truncated_weights(tmp_path):
    clip, pipeline = write_clip(tmp_path / "b"), write_pipeline(tmp_path / "a")
    for path in (clip / "model.safetensors", pipeline / "unet" / "diffusion_pytorch_model.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"clip/model\.safetensors cannot be read as weights"):
        CLIPEncoder(str(clip), torch.device("cpu"))
    with pytest.raises(UserError, match=r"(the pipeline .* cannot be loaded|diffusion_pytorch_model\.safetensors cannot be read)"):
        load_pipeline(str(pipeline))


def test_a_run_is_exported_into_the_empty_folder_one_stands_in(tmp_path, monkeypatch):
    prompts, here = tmp_path / "prompts.txt", tmp_path / "here"
    prompts.write_text("a red square\n")
    config = SafeDiffusionConfig(
        reward=f"{HERE}:brightness", cost="none", utility=f"{HERE}:brightness", steps=2, group_size=2, images=2, held_out=0.0, rank=2,
    )  # fmt: skip
    settings = RunConfig(pipeline=str(write_pipeline(tmp_path / "a")), prompts=str(prompts), out=tmp_path / "run", epochs=1, device="cpu", quiet=True)
    run = post_train(settings, config)
    here.mkdir()
    monkeypatch.chdir(here)
    export_run(run, Path("."), "pipeline")
    assert Path("model_index.json").is_file()  # seen from within: the folder is still the same one
    load_pipeline(str(here))
    assert not (tmp_path / ".here.writing").exists()
    with pytest.raises(UserError, match="not an empty folder"):
        export_run(run, Path("."), "pipeline")
    with pytest.raises(UserError, match="could not be written"):
        export_run(run, prompts / "below-a-file", "pipeline")


def test_the_first_line_of_a_fault():
    assert first_line(ValueError("one.\ntwo")) == "one"
    assert first_line(ValueError(" \n")) == "ValueError"


# ------------------------------------------------------------------------------------------------ the held-out measure


def test_held_out_prompts_are_a_choice_that_depends_on_the_seed_alone():
    prompts = [Prompt(f"a sign {i}", unsafe=i >= 50) for i in range(100)]  # sorted by label
    config = SafeDiffusionConfig(held_out_images=20)
    studio = SimpleNamespace()

    def chosen(seed: int) -> list[Prompt]:
        return HeldOut(config, prompts, studio, None, seed).prompts

    places = [prompts.index(prompt) for prompt in chosen(0)]
    assert places == sorted(set(places))
    assert len(places) == 20
    assert {prompt.unsafe for prompt in chosen(0)} == {False, True}
    assert chosen(0) == chosen(0) != chosen(1)
    assert HeldOut(config, prompts[:20], studio, None, 0).prompts == prompts[:20]


def test_a_hub_id_is_evaluated_as_a_pipeline(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    assert main(["evaluate", "someone/nowhere", "--prompts", str(tmp_path / "prompts.txt"), "--measures", "--checker", "tiny"]) == 2
    assert "the pipeline someone/nowhere cannot be read" in capsys.readouterr().err


@pytest.fixture
def dead_hub(monkeypatch, tmp_path):
    """A hub that takes connections and never answers, and a cache of its own."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("saddlepoint.safediffusion.pipeline.HUB_SECONDS", 0.2)
        yield


def test_a_hub_that_never_answers_is_one_sentence_in_a_bounded_time(dead_hub):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"the pipeline someone/nowhere cannot be read from the hub \(.*timed out") as error:
        open_source("someone/nowhere")
    with pytest.raises(UserError, match=r"the CLIP someone/nowhere cannot be read from the hub \(.*timed out"):
        CLIPEncoder("someone/nowhere", torch.device("cpu"))
    assert time.monotonic() - began < 10
    assert "\n" not in str(error.value)


def test_what_was_taken_from_a_hub_that_is_dead_is_there(dead_hub, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "hub" / "models--someone--kept"
    (kept / "snapshots").mkdir(parents=True)
    write_pipeline(tmp_path / "a").rename(kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    source = open_source("someone/kept")
    assert source.revision == commit
    began = time.monotonic()
    assert load_pipeline(source).unet.config.in_channels == 4
    assert source_files("someone/kept") == {"revision": commit}
    assert time.monotonic() - began < 10


class Hub(BaseHTTPRequestHandler):
    """A hub whose models all have the same files."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    files: dict[str, bytes]

    def do_GET(self) -> None:
        path, etag = self.path.partition("?")[0], "a" * 40
        if "/api/" in path:
            listed = [{"type": "file", "path": name, "size": len(content), "oid": etag} for name, content in self.files.items()]
            about = {"id": "someone/model", "sha": self.commit, "siblings": [{"rfilename": name} for name in self.files]}
            body = json.dumps(listed if "/tree/" in path else about).encode()
        else:
            body = self.files[path.partition("/resolve/")[2].partition("/")[2]]
            etag = hashlib.sha1(body).hexdigest()
        self.send_response(200)
        for name, value in (("ETag", f'"{etag}"'), ("X-Repo-Commit", self.commit), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def live_hub(monkeypatch, tmp_path, files: dict[str, bytes]) -> Iterator[None]:
    """A hub with these files, and a cache of its own."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("saddlepoint.safediffusion.pipeline.HUB_SECONDS", 5.0)
    yield
    server.shutdown()
    server.server_close()


def test_what_was_downloaded_is_used_once_the_hub_is_gone(monkeypatch, tmp_path):
    with live_hub(monkeypatch, tmp_path, {"config.json": b"{}"}):
        fetched = from_hub("model", "someone/model", None, ["*.json"])
    assert fetched[1] == Hub.commit
    assert from_hub("model", "someone/model", None, ["*.json"]) == fetched


@pytest.mark.parametrize("whole_too", [False, True])
def test_a_hub_with_half_precision_weights_alone_is_loaded_and_beside_whole_ones_they_are_left(monkeypatch, tmp_path, whole_too):
    folder, files = write_pipeline(tmp_path / "a"), {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        if path.suffix != ".safetensors" or whole_too:
            files[name] = content
        if path.suffix == ".safetensors":
            half = {key: value.half() if value.is_floating_point() else value for key, value in load_file(path).items()}
            files[name.replace(".safetensors", ".fp16.safetensors")] = save(half, {"format": "pt"})
    with live_hub(monkeypatch, tmp_path, files):
        found = load_pipeline("someone/model").unet.state_dict()
    wanted = load_pipeline(str(folder)).unet.state_dict()
    assert all(torch.equal(found[name], value if whole_too else value.half().float()) for name, value in wanted.items())
    fetched = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*/*.safetensors")}
    assert {".fp16." in name for name in fetched} == {not whole_too}


def test_a_negative_guidance_is_refused():
    with pytest.raises(UserError, match="--guidance must be at least 0, not -3"):
        SafeDiffusionConfig(guidance=-3.0).validate()


def keep(hub, name: str, folder, commit: str) -> None:
    """As a model of the hub that this machine keeps, whose newest commit is this one."""
    home = hub / f"models--{name.replace('/', '--')}"
    (home / "snapshots").mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit)


def test_a_run_from_the_hub_goes_on_from_the_commits_that_it_began_with(dead_hub, tmp_path):
    hub, (old, new) = tmp_path / "hub", ("0" * 40, "1" * 40)
    pipeline, clip = write_pipeline(tmp_path / "a"), write_clip(tmp_path / "b")
    keep(hub, "someone/pipeline", pipeline, old)
    keep(hub, "someone/clip", clip, old)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\na sign\n")
    config = SafeDiffusionConfig(
        reward="alignment", cost="none", clip="someone/clip", steps=2, group_size=2, images=2, sample_batch=2, held_out=0.0, rank=2, learning_rate=0.1
    )  # fmt: skip
    asked = RunConfig(pipeline="someone/pipeline", prompts=str(prompts), device="cpu", quiet=True)
    whole = post_train(replace(asked, epochs=2, out=tmp_path / "whole"), config)
    post_train(replace(asked, epochs=1, out=tmp_path / "run"), config)
    for name, folder, part in (("pipeline", pipeline, "vae/config.json"), ("clip", clip, "preprocessor_config.json")):
        (folder / part).write_text(json.dumps(json.loads((folder / part).read_text()) | {"scaling_factor": 2.0, "image_mean": [0.1, 0.1, 0.1]}))
        keep(hub, f"someone/{name}", folder, new)
    run = post_train(replace(asked, epochs=2, out=tmp_path / "run"), config, resume=True)
    weights = json.loads((run / "config.json").read_text())["resolved"]["weights"]
    assert weights == {"pipeline": {"revision": old}, "clip": {"revision": old}}
    expected, found = (load_file(each / "checkpoints" / "2" / "learner.safetensors") for each in (whole, run))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    export_run(run, tmp_path / "out", "pipeline")
    assert json.loads((tmp_path / "out" / "vae" / "config.json").read_text())["scaling_factor"] != 2.0
    flags = EvaluateFlags(prompts=prompts, measures=("alignment",), steps=2, device="cpu", out=tmp_path / "ev")
    evaluate(str(run), flags)
    settings = json.loads((tmp_path / "ev" / "results.json").read_text())["settings"]
    assert settings["weights"]["before"] == {"revision": old}
    assert settings["clip_weights"] == {"revision": new}  # a measure is of today
    with pytest.raises(UserError, match=r"weights or configs of .* have changed"):
        export_run(run, tmp_path / "again", "pipeline", str(pipeline))
