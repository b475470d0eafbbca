"""Red-teaming: words found by a known geometry, prompts made of them, what the shipped world has to hide, and every mistake in one sentence."""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

from saddlepoint.cli import main
from saddlepoint.safediffusion import red_team
from saddlepoint.safediffusion.clip import CLIPEncoder
from saddlepoint.safediffusion.prompts import Prompt, read_prompts
from saddlepoint.safediffusion.red_team import Gap, RedTeamFlags, combine, gaps, red_team_command, shortlist
from saddlepoint.safediffusion.reward import SteeredAlignment, embed_anchors, read_anchors, safety_direction
from saddlepoint.safediffusion.tiny.captions import write_captions
from saddlepoint.safediffusion.tiny.scenes import draw, sample_scenes
from saddlepoint.types import UserError

WORLD = Path(__file__).parents[1] / "models" / "tiny-world"
HARM = {"knife": 3.0, "blood": 2.0, "red": 0.4, "calm": -2.0}
DIRECTION = torch.tensor([1.0, 0.0])


class Words:
    """A CLIP of which everything is known: the unnormalised embedding of a text is (1 - the harm of its words, 1)."""

    def encode(self, phrases, padding="max_length"):
        return normalize(torch.tensor([[1.0 - sum(HARM.get(word, 0.0) for word in phrase.split()), 1.0] for phrase in phrases]), dim=-1)


def test_the_shortlist_is_that_of_the_harm_that_words_add():
    found = shortlist(Words(), DIRECTION, ["calm", "red", "plain", "knife", "blood"], ["a cat", "a calm dog"], 3)
    assert list(found) == ["knife", "blood", "red"]
    before = (normalize(torch.tensor([1.0, 1.0]), dim=0)[0] + normalize(torch.tensor([3.0, 1.0]), dim=0)[0]) / 2
    after = (normalize(torch.tensor([-2.0, 1.0]), dim=0)[0] + normalize(torch.tensor([0.0, 1.0]), dim=0)[0]) / 2
    assert found["knife"] == pytest.approx(float(after - before), abs=1e-6)


def test_a_gap_is_where_the_worst_word_stood():
    prompts = [Prompt("a cat", False), Prompt("a red knife here", True), Prompt("some blood", None)]
    assert gaps(Words(), DIRECTION, prompts) == [Gap(["a", "cat"], []), Gap(["a", "red"], ["here"]), Gap(["some", "blood"], [])]


def test_every_word_gets_as_many_prompts_and_none_comes_twice():
    places = [Gap(["a", str(i)], ["end"]) for i in range(5)] + [Gap(["a", "0"], ["end"])]
    pairs = combine(places, ["x", "y", "z"], 10, 0)
    assert len({text for text, _ in pairs}) == len(pairs) == 10
    assert sorted(Counter(word for _, word in pairs).values()) == [3, 3, 4]
    assert all(text == f"a {text.split()[1]} {word} end" for text, word in pairs)
    assert pairs == combine(places, ["x", "y", "z"], 10, 0) != combine(places, ["x", "y", "z"], 10, 1)
    assert len(combine(places, ["x", "y", "z"], 99, 0)) == 15  # all there are


def test_the_words_of_a_clip_are_whole_ones():
    words = CLIPEncoder(str(WORLD / "clip"), torch.device("cpu")).words()
    assert {"tape", "radioactive", "circle"} <= set(words)
    assert not {"a", "on", "!", "0"} & set(words)
    assert words == sorted(set(words))


def test_padding_changes_no_embedding():
    clip = CLIPEncoder(str(WORLD / "clip"), torch.device("cpu"))
    phrases = ["tape", "a red cross left of a blue square on a sand background with a warning sign"]
    torch.testing.assert_close(clip.encode(phrases, "longest"), clip.encode(phrases))
    torch.testing.assert_close(clip.encode(phrases[:1], "longest"), clip.phrases(phrases)[:1])


def test_the_shipped_world_gives_away_the_kinds_that_no_prompt_names(tmp_path, capsys):
    out = tmp_path / "new" / "red"
    sources = ["--clip", str(WORLD / "clip"), "--anchors", str(WORLD / "anchors"), "--prompts", str(WORLD / "prompts" / "training.csv")]
    few = ["--cost", "saddlepoint.safediffusion.tiny.checker:Unsafe", "--shortlist", "10", "--pictures", "8", "--steps", "10", "--guidance", "2"]
    assert main(["red-team", str(WORLD / "pipeline"), *sources, *few, "--count", "40", "--out", str(out)]) == 0
    with (out / "prompts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = read_prompts(WORLD / "prompts" / "training.csv")
    assert [(row["prompt"], row["unsafe"]) for row in rows[: len(own)]] == [(prompt.text, str(int(prompt.unsafe))) for prompt in own]
    new = rows[len(own) :]
    assert len(new) == 40
    assert {"radiation", "taped"} <= {row["word"] for row in new}
    assert all(row["unsafe"] == "1" and row["word"] in row["prompt"].split() for row in new)
    assert not any(row["word"] in prompt.text.split() for row in new for prompt in own)
    assert len(read_prompts(out / "prompts.csv")) == len(rows)  # it is a prompt file like any other
    safe, unsafe = read_anchors(str(out / "anchors"))
    before = read_anchors(str(WORLD / "anchors"))
    assert safe == before[0]
    assert unsafe[: len(before[1])] == before[1]
    assert "a scene marked radiation" in unsafe
    assert [path.name for path in out.parent.iterdir()] == ["red"]
    said = capsys.readouterr().out
    assert "radiation" in said
    assert f"--anchors {out / 'anchors'}" in said


def test_with_the_found_words_in_the_anchors_a_projected_reward_is_against_other_kinds(tmp_path):
    """The oracle draws the pictures: with the given anchors those with tape fit "with warning tape" better than clean ones, with the written ones worse."""
    rng = np.random.default_rng(0)
    scenes = sample_scenes(rng, 64, 1.0, ("tape",))
    clean = replace(scenes, hazard=np.zeros_like(scenes.hazard))
    pictures = [torch.from_numpy(draw(each)) for each in (scenes, clean)]
    texts = [f"{caption} with warning tape" for caption in write_captions(clean, rng, whole=True)]
    clip = CLIPEncoder(str(WORLD / "clip"), torch.device("cpu"))
    words = ["radiation", "tape", "taped", "radioactive", "off"]
    safe, unsafe = read_anchors(str(WORLD / "anchors"))
    direction = embed_anchors(clip, str(WORLD / "anchors")).direction
    more = [gap.filled(word) for word in words for gap in gaps(clip, direction, [Prompt(phrase, True) for phrase in unsafe])]
    gain = {}
    for name, phrases in (("given", unsafe), ("found", [*unsafe, *more])):
        way = safety_direction(clip.phrases(safe), clip.phrases(phrases))
        reward = SteeredAlignment(clip, way, 0.5, "projection", "always")
        marked, unmarked = (reward(each, texts) for each in pictures)
        gain[name] = float((unmarked - marked).mean())
    assert gain["given"] < -0.03
    assert gain["found"] > 0.1


def test_without_a_word_that_does_harm_nothing_is_written(tmp_path):
    out, words = tmp_path / "red", tmp_path / "words.txt"
    words.write_text("circles\nsafe\n")
    flags = ["--clip", str(WORLD / "clip"), "--anchors", str(WORLD / "anchors"), "--prompts", str(WORLD / "prompts" / "kinds.csv"), "--words", str(words)]
    with pytest.raises(UserError, match="labelled unsafe"):
        red_team_command([str(WORLD / "pipeline"), *flags, "--out", str(out)])
    (tmp_path / "p.txt").write_text("a red cross\na blue cross\n")
    flags[flags.index("--prompts") + 1] = str(tmp_path / "p.txt")
    with pytest.raises(UserError, match=r"no word makes the pictures unsafe by --least 0\.3"):
        red_team_command([str(WORLD / "pipeline"), *flags, "--pictures", "2", "--steps", "4", "--least", "0.3", "--out", str(out)])
    assert not out.exists()
    (tmp_path / "p.txt").write_text("safe circles\n")
    with pytest.raises(UserError, match="every word that there is to try"):
        red_team_command([str(WORLD / "pipeline"), *flags, "--out", str(out)])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"out": None}, "--out FOLDER"),
        ({"prompts": None}, "--prompts FILE"),
        ({"prompts": Path("nowhere.csv")}, "cannot be read"),
        ({"out": WORLD / "prompts" / "clean.csv"}, "exists"),
        ({"clip": "/nowhere"}, "no CLIP folder"),
        ({"anchors": "/nowhere"}, "no set of anchors"),
        ({"anchors": "unsafe-only"}, "has no safe ones"),
        ({"cost": "detector"}, "--cost must be"),
        ({"cost": "nowhere:detector"}, "cannot be imported"),
        ({"words": Path("nowhere.txt")}, "of --words"),
        ({"steps": 5000}, "from 2 to 1000 steps"),
        ({"shortlist": 0}, "--shortlist must be at least 1"),
        ({"least": 0.0}, "--least"),
        ({"guidance": float("nan")}, "--guidance"),
    ],
)
def test_mistakes_are_one_sentence_before_a_model_is_loaded(tmp_path, monkeypatch, change, sentence):
    for name in ("load_pipeline", "CLIPEncoder"):
        monkeypatch.setattr(red_team, name, None)
    monkeypatch.chdir(tmp_path)
    given = {"prompts": WORLD / "prompts" / "training.csv", "out": Path("red"), "clip": str(WORLD / "clip"), "anchors": str(WORLD / "anchors")}
    with pytest.raises(UserError, match=sentence):
        red_team.red_team(str(WORLD / "pipeline"), RedTeamFlags(**given | change))


@pytest.mark.parametrize(("args", "sentence"), [([], "needs the pipeline first"), (["--prompts", "p"], "the pipeline first"), (["/nowhere"], "--prompts")])
def test_the_command_without_its_parts(args, sentence):
    with pytest.raises(UserError, match=sentence):
        red_team_command(args)


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setattr("saddlepoint.safediffusion.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        red_team.red_team("p", SimpleNamespace())
