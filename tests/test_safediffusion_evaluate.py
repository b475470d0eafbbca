"""Evaluation of text-to-image models: the distance against closed forms, the measures against what they must say, and the command end to end."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

from saddlepoint.safediffusion import evaluate as evaluation
from saddlepoint.safediffusion import subjects
from saddlepoint.safediffusion.clip import CLIPEncoder
from saddlepoint.safediffusion.comparison import Number, blurred, mean_of, write_grid
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.distance import Moments, RunningMoments, frechet_distance, moments, read_folder
from saddlepoint.safediffusion.evaluate import EvaluateFlags, evaluate, evaluate_command, is_text_to_image
from saddlepoint.safediffusion.generation import EvaluationPrompt, batches, read_table
from saddlepoint.safediffusion.harm import CATEGORIES, HarmCategories, read_harms
from saddlepoint.safediffusion.start import post_train
from saddlepoint.types import UserError
from tests.tiny_pipeline import write_clip, write_pipeline

HERE = "tests.test_safediffusion_evaluate"
I2P = """prompt,lexica_url,categories,hard,inappropriate_percentage,nudity_percentage,sd_seed,sd_guidance_scale
a red square,u,"hate, shocking",1,20.5,0.0,11,7
"a blue circle, of people",u,violence,0,80.0,2.0,12,3.5
a red square,u,hate,0,10.0,0.0,13,7
a green triangle,u,,0,0.0,0.0,,
"""


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def colour_means(images):
    return images.mean((2, 3))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """A pipeline, a CLIP, a table of prompts, and a run of one epoch on them."""
    home = tmp_path_factory.mktemp("evaluate")
    table = home / "i2p.csv"
    table.write_text(I2P)
    prompts = home / "prompts.csv"
    prompts.write_text("prompt,unsafe\na red square,0\na blue circle,0\na warning sign,1\n")
    pipeline, clip = str(write_pipeline(home / "a")), str(write_clip(home / "b"))
    config = SafeDiffusionConfig(
        reward=f"{HERE}:brightness", cost="none", utility=f"{HERE}:brightness", clip=clip, steps=3, group_size=2, images=2, sample_batch=2,
        held_out=0.0, rank=2, learning_rate=1e-1, tune="lora",
    )  # fmt: skip
    run = post_train(RunConfig(pipeline=pipeline, prompts=str(prompts), out=home / "run", epochs=1, device="cpu", quiet=True), config)
    return SimpleNamespace(home=home, pipeline=pipeline, clip=clip, table=table, prompts=prompts, run=run)


# ------------------------------------------------------------------------------------------------ the Frechet distance


def gaussian(mean, covariance) -> Moments:
    return Moments(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64), 100)


def test_frechet_distance_of_gaussians_along_axes_and_of_commuting_ones():
    # |m - n|^2 + sum (s - t)^2 for diagonal covariances s^2 and t^2.
    a, b = gaussian([1.0, 2.0], [[4.0, 0.0], [0.0, 9.0]]), gaussian([1.0, -1.0], [[1.0, 0.0], [0.0, 0.25]])
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 6.25, abs=1e-12)
    assert frechet_distance(b, a) == pytest.approx(16.25, abs=1e-12)
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    turned = [Moments(turn @ one.mean, turn @ one.covariance @ turn.T, one.pictures) for one in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(16.25, abs=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_of_any_gaussians_is_that_of_the_general_square_root():
    # An independent line: tr (S T)^1/2 from the eigenvalues of the non-symmetric product.
    rng = np.random.default_rng(1)
    factors = [rng.normal(size=(6, 6)) for _ in range(2)]
    s, t = (factor @ factor.T for factor in factors)
    wanted = np.trace(s + t) - 2 * np.sqrt(np.linalg.eigvals(s @ t).real.clip(0)).sum() + 4.0
    assert frechet_distance(gaussian([0.0] * 6, s.tolist()), gaussian([2.0] + [0.0] * 5, t.tolist())) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_of_singular_covariances_is_finite():
    features = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))  # fewer pictures than features
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moments(features), moments(features + 1)) == pytest.approx(20, rel=1e-5)


def test_running_moments_are_those_of_numpy_for_a_large_mean():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    running = RunningMoments()
    for part in features.split(7):
        running.add(part)
    found = running.moments()
    np.testing.assert_allclose(found.mean, features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.numpy().T), rtol=1e-6)
    with pytest.raises(UserError, match="two pictures"):
        RunningMoments().moments()


# ------------------------------------------------------------------------------------------------ prompts


def test_i2p_columns_are_read_and_repeated_prompts_stay(world):
    prompts = read_table(world.table)
    assert prompts[0] == EvaluationPrompt("a red square", True, ("hate", "shocking"), 11, 7.0)
    assert prompts[1].text == "a blue circle, of people"
    assert [prompt.seed for prompt in prompts] == [11, 12, 13, None]
    assert prompts[3] == EvaluationPrompt("a green triangle")
    assert batches(prompts, 5.0, 2) == [[1], [3], [0, 2]]  # one guidance a batch: 3.5, the default 5, and 7
    assert [prompt.unsafe for prompt in read_table(world.prompts)] == [False, False, True]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("a,x,7", "sd_seed must be a number"), ("a,1.5,7", "whole number"), ("a,1,-2", "must not be negative"), ("a,1,high", "sd_guidance_scale must be")],
)
def test_bad_cells_are_named(tmp_path, line, sentence):
    path = tmp_path / "p.csv"
    path.write_text(f"prompt,sd_seed,sd_guidance_scale\n{line}\n")
    with pytest.raises(UserError, match=rf"line 2.*{sentence}"):
        read_table(path)


# ------------------------------------------------------------------------------------------------ measures


def test_harm_categories_follow_the_nearest_class():
    class Words:
        """A CLIP whose embeddings are the pictures' own colours."""

        def phrases(self, phrases):
            return torch.tensor([{"calm": [0.0, 0.0, 1.0], "gore": [1.0, 0.0, 0.0], "theft": [0.0, 1.0, 0.0]}[phrase] for phrase in phrases])

        def images(self, images):
            return images.mean((2, 3))

    judge = HarmCategories(Words(), {"neutral": ["calm"], "violence": ["gore", "gore"], "illegal-activity": ["theft"]})
    pictures = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    assert judge(pictures, ["x"] * 3).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_the_built_in_harms_are_seven_and_a_folder_replaces_them(tmp_path):
    assert tuple(read_harms()) == ("neutral", *CATEGORIES)
    for name in ("neutral", "noise"):
        (tmp_path / f"{name}.txt").write_text(f"a scene of {name}\n\n")
    assert read_harms(tmp_path) == {"neutral": ["a scene of neutral"], "noise": ["a scene of noise"]}
    (tmp_path / "neutral.txt").unlink()
    with pytest.raises(UserError, match=r"neutral\.txt"):
        read_harms(tmp_path)


def test_nudity_counts_what_the_package_finds_in_a_file(tmp_path, monkeypatch):
    nudenet = pytest.importorskip("nudenet")
    from saddlepoint.safediffusion import nudity

    picture = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    seen = []
    found = [{"class": "BELLY_EXPOSED", "score": 0.61}, {"class": "BELLY_EXPOSED", "score": 0.59}, {"class": "FACE_FEMALE", "score": 0.9}]
    monkeypatch.setattr(nudenet.NudeDetector, "detect", lambda self, image: seen.append(image) or found)
    assert nudity.NudityDetections()(picture, ["x"]).tolist() == [1.0]
    # What the detector is handed is what OpenCV reads from the picture's file.
    cv2 = pytest.importorskip("cv2")
    write_grid(tmp_path / "p.png", [(picture.repeat_interleave(3, 2).repeat_interleave(3, 3), torch.zeros(1, dtype=torch.bool))])
    assert np.array_equal(seen[0].repeat(3, 0).repeat(3, 1), cv2.imread(str(tmp_path / "p.png")))


def test_the_real_detector_finds_nothing_on_a_plain_picture():
    pytest.importorskip("nudenet")
    from saddlepoint.safediffusion.nudity import NudityDetections

    assert NudityDetections()(torch.full((1, 3, 32, 32), 0.5), ["x"]).tolist() == [0.0]


def test_a_blurred_picture_keeps_its_mean_and_loses_its_detail():
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    soft = blurred(picture)
    assert soft.shape == picture.shape
    assert float(soft.mean()) == pytest.approx(float(picture.mean()), abs=0.02)
    assert float(soft.std()) < 0.1 * float(picture.std())


def test_means_have_standard_errors():
    assert mean_of(torch.tensor([0.0, 1.0, 1.0, 0.0])) == Number(0.5, pytest.approx(np.std([0, 1, 1, 0], ddof=1) / 2), 4)
    assert mean_of(torch.tensor([3.0])) == Number(3.0, None, 1)


# ------------------------------------------------------------------------------------------------ the command


def test_a_run_is_compared_with_its_start_and_an_evaluation_goes_on(world, monkeypatch, capsys):
    out = world.home / "compared"
    flags = EvaluateFlags(prompts=world.table, measures=("alignment", "inappropriate"), batch=2, out=out)
    assert is_text_to_image(world.run)
    assert is_text_to_image(Path(world.pipeline))
    assert not is_text_to_image(world.home)
    folder, numbers, note = evaluate(str(world.run), flags)
    assert note == ""
    assert list(numbers) == ["before", "after"]
    assert numbers["before"]["CLIP text score"].pictures == 4
    assert numbers["before"] != numbers["after"]  # one update with a large step changed the pictures
    assert sum(numbers["before"][f"  {name}"].value for name in CATEGORIES) == pytest.approx(numbers["before"]["inappropriate (CLIP)"].value)
    content = json.loads((folder / "results.json").read_text())
    assert len(content["pictures"]) == 4
    assert content["settings"]["steps"] == 3
    assert content["numbers"]["after"]["CLIP text score"]["value"] == numbers["after"]["CLIP text score"].value

    # The pictures are there: nothing is drawn again, and other measures of them may be taken; a lost batch is drawn again to the bit.
    from saddlepoint.safediffusion.rollout import Studio

    drawn = []
    real = Studio.render
    monkeypatch.setattr(Studio, "render", lambda self, prompts, noise: (drawn.append(list(prompts)), real(self, prompts, noise))[1])
    assert evaluate(str(world.run), flags)[1] == numbers
    assert drawn == []
    (out / "pictures" / "after-000002.safetensors").unlink()
    (out / "pictures" / "before-000000.safetensors").write_bytes(b"half")
    assert evaluate(str(world.run), flags)[1] == numbers
    assert drawn == [["a blue circle, of people"], ["a red square", "a red square"]]
    # So are pictures with another bit, those in another's place, and those of another evaluation.
    one, other = (out / "pictures" / f"{side}-000000.safetensors" for side in ("before", "after"))
    flipped, (whole, second) = bytearray(one.read_bytes()), (one.read_bytes(), other.read_bytes())
    flipped[-5] ^= 128
    elsewhere = evaluate(str(world.run), replace(flags, seed=5, out=world.home / "elsewhere"))[0] / "pictures" / one.name
    for first, then, again in ((bytes(flipped), second, 1), (second, whole, 2), (elsewhere.read_bytes(), second, 1)):
        one.write_bytes(first)
        other.write_bytes(then)
        drawn.clear()
        assert evaluate(str(world.run), flags)[1] == numbers
        assert len(drawn) == again
        assert (one.read_bytes(), other.read_bytes()) == (whole, second)
    with pytest.raises(UserError, match="other pictures"):
        evaluate_command(str(world.run), ["--prompts", str(world.table), "--measures", "alignment", "--seed", "3", "--out", str(out)])
    evaluate_command(str(world.run), ["--prompts", str(world.table), "--measures", "alignment", "--batch", "2", "--out", str(out)])
    said = capsys.readouterr().out
    assert "CLIP text score" in said
    assert "no picture of the grid is blurred" in said


def test_a_pipeline_against_itself_has_no_change_and_the_distance_uses_harmless_prompts(world):
    clean = world.home / "clean"
    clean.mkdir()
    for i in range(3):
        picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        write_grid(clean / f"{i}.png", [(picture, torch.zeros(1, dtype=torch.bool))])
    flags = EvaluateFlags(
        prompts=world.prompts, against=world.pipeline, measures=(), distance_to=str(clean), encoder=f"{HERE}:colour_means", steps=3, batch=3,
        out=world.home / "itself",
    )  # fmt: skip
    folder, numbers, _ = evaluate(world.pipeline, flags)
    assert numbers["before"] == numbers["after"]
    distance = numbers["after"]["Frechet distance to clean pictures"]
    assert distance.pictures == 2  # of three prompts one is labelled unsafe
    from safetensors.torch import load_file

    images = load_file(folder / "pictures" / "after-000000.safetensors")["images"][:2].float() / 255
    wanted = frechet_distance(moments(colour_means(images)), moments(torch.cat([colour_means(part) for part in read_folder(clean, 2)])))
    assert distance.value == pytest.approx(wanted, rel=1e-6)
    assert (folder / "grid.png").is_file()


CLEAN = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Greys:
    """A world of one's own."""

    def __init__(self):
        self.measures = {"brightness": brightness}

    def require(self, prompts):
        if any("triangle" in prompt for prompt in prompts):
            raise KeyError("triangles are not known")

    def clean(self, seed):
        yield from CLEAN.split(8)


def test_a_world_of_ones_own_measures_pictures_and_has_clean_ones(world, tmp_path):
    own = f"{HERE}:Greys"
    flags = EvaluateFlags(
        prompts=world.prompts, measures=(), checker=own, distance_to=own, encoder=f"{HERE}:colour_means", steps=3, batch=3, out=tmp_path / "own",
    )  # fmt: skip
    folder, numbers, _ = evaluate(world.pipeline, flags)
    from safetensors.torch import load_file

    images = load_file(folder / "pictures" / "pictures-000000.safetensors")["images"].float() / 255
    light = images.mean((1, 2, 3)).tolist()
    found = numbers["pictures"]
    assert found["brightness"].value == pytest.approx(np.mean(light), rel=1e-5)
    assert found["  brightness, unsafe prompts"].value == pytest.approx(light[2], rel=1e-5)
    assert found["  brightness, other prompts"].value == pytest.approx(np.mean(light[:2]), rel=1e-5)
    wanted = frechet_distance(moments(colour_means(images[:2])), moments(colour_means(CLEAN)))
    assert found["Frechet distance to clean pictures"].value == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(UserError, match="--checker raised KeyError: 'triangles are not known'"):
        evaluate(world.pipeline, EvaluateFlags(prompts=world.table, measures=(), checker=own, out=tmp_path / "table"))


def test_flagged_pictures_are_blurred_in_the_grid(world, monkeypatch):
    hidden = []
    monkeypatch.setattr(evaluation, "write_grid", lambda path, sides: hidden.append([hide.tolist() for _, hide in sides]))
    monkeypatch.setattr(evaluation, "require_nudenet", lambda: None)
    monkeypatch.setattr(evaluation, "NudityDetections", lambda *_: lambda images, prompts: torch.tensor([2.0 * ("sign" in prompt) for prompt in prompts]))
    flags = EvaluateFlags(prompts=world.prompts, measures=("nudity",), steps=2, out=world.home / "flagged")
    _, numbers, _ = evaluate(world.pipeline, flags)
    assert hidden == [[[False, False, True]]]
    assert numbers["pictures"]["NudeNet detections, sum"].value == 2
    assert numbers["pictures"]["pictures with a NudeNet detection"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "--prompts FILE"),
        (["--prompts", "TABLE", "--measures"], "nothing to measure"),
        (["--prompts", "nowhere.csv"], "cannot be read"),
        (["--prompts", "TABLE", "--measures", "alignment"], "give --clip"),
        (["--prompts", "TABLE", "--measures", "alignment", "--clip", "/nowhere"], "no CLIP folder"),
        (["--prompts", "TABLE", "--measures", "nudity", "--clip", "CLIP"], "--clip does nothing"),
        (["--prompts", "TABLE", "--measures", "--checker", "tiny"], "not a caption of the tiny world"),
        (["--prompts", "TABLE", "--measures", "--checker", "huge"], "--checker must be none, tiny or the module:name"),
        (["--prompts", "TABLE", "--measures", "--checker", "math:pi"], "--checker math:pi is no world: it needs measures, require and clean"),
        (["--prompts", "TABLE", "--measures", "--distance-to", "/nowhere"], "is no folder"),
        (["--prompts", "TABLE", "--batch", "0"], "--batch"),
        (["--prompts", "TABLE", "--encoder", "vgg"], "--encoder must be"),
        (["--prompts", "TABLE", "--measures", "nudity", "--steps", "5000"], "from 2 to 1000 steps"),
        (["--prompts", "TABLE", "--measures", "nudity", "--against", "/nowhere"], "no pipeline folder"),
        (["--prompts", "TABLE", "--measures", "nudity", "--out", "HOME"], "not an empty folder"),
        (["--prompts", "TABLE", "--epochs", "2"], "no flag --epochs"),
    ],
)
def test_mistakes_are_one_sentence_before_a_model_is_loaded(world, monkeypatch, args, sentence):
    known = {"TABLE": str(world.table), "CLIP": world.clip, "HOME": str(world.home)}
    for module, name in ((subjects, "load_pipeline"), (subjects, "load_trained"), (evaluation, "CLIPEncoder")):
        monkeypatch.setattr(module, name, None)
    with pytest.raises(UserError, match=sentence):
        evaluate_command(world.pipeline, [known.get(arg, arg) for arg in args])


def test_a_missing_nudenet_is_one_sentence(world, monkeypatch):
    monkeypatch.setattr("saddlepoint.safediffusion.nudity.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install saddlepoint\[nudenet\]"):
        evaluate_command(world.pipeline, ["--prompts", str(world.table), "--measures", "nudity"])


def test_the_clip_score_is_the_cosine(world):
    clip = CLIPEncoder(world.clip, torch.device("cpu"))
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.cosine_similarity(clip.images(images), clip.phrases(["a red square", "a sign"]))
    assert torch.allclose(evaluation.Alignment(clip)(images, ["a red square", "a sign"]), wanted, atol=1e-6)
