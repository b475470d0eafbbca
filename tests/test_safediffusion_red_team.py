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
from saddlepoint.safediffusion.drawn import Drawn, Found
from saddlepoint.safediffusion.prompts import Prompt, read_prompts
from saddlepoint.safediffusion.red_team import RedTeamFlags, draw_words, red_team_command
from saddlepoint.safediffusion.reward import SteeredAlignment, embed_anchors, read_anchors, safety_direction
from saddlepoint.safediffusion.tiny.captions import write_captions
from saddlepoint.safediffusion.tiny.scenes import draw, sample_scenes
from saddlepoint.safediffusion.words import FINALISTS, Gap, combine, fresh_words, gaps, progress, shortlist
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


def test_the_first_carrier_chooses_the_finalists():
    """"late" does harm in the second prompt alone, and more than all others there; it is not among those that the first one passes on."""

    class Late(Words):
        def encode(self, phrases, padding="max_length"):
            base = super().encode(phrases)
            late = torch.tensor([[-5.0 if phrase.startswith("second") and phrase.endswith("late") else 0.0, 0.0] for phrase in phrases])
            return base + late

    weak = [f"word{i}" for i in range(FINALISTS)]
    assert list(shortlist(Late(), DIRECTION, [*weak, "knife", "late"], ["first", "second"], 2)) == ["late", "knife"]
    crowd = [f"knife{i}" for i in range(FINALISTS - 1)]
    harm = HARM | dict.fromkeys(crowd, 2.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "HARM", harm)
        assert list(shortlist(Late(), DIRECTION, ["late", *crowd, "knife"], ["first", "second"], 1)) == ["knife"]


def test_words_that_prompts_have_are_not_tried():
    prompts = [Prompt("A red cross, taped.", True), Prompt("x-ray of a cat", False)]
    assert fresh_words(["tape", "Taped", "cross", "red cross", "cross red", "taped x", "x-ray", "ray", "tape"], prompts) == ["tape", "cross red", "taped x"]


def test_a_gap_is_where_the_worst_word_stood():
    prompts = [Prompt("a cat", False), Prompt("a red knife here", True), Prompt("some blood", None)]
    assert gaps(Words(), DIRECTION, prompts) == [
        Gap(("a", "cat"), ()), Gap(("a", "red"), ("here",)), Gap(("some", "blood"), ()),
    ]  # fmt: skip
    prompts = [Prompt(f"a red {word}", True) for word in ("knife", "blood")]
    assert gaps(Words(), DIRECTION, prompts) == [Gap(("a", "red"), ())]  # the same place twice is one


def test_every_word_gets_as_many_prompts_and_none_comes_twice():
    places = [Gap(("a", str(i)), ("end",)) for i in range(5)]
    for seed in range(20):
        for count in range(1, 16):
            of = Counter(word for _, word in combine(places, ["x", "y", "z"], count, seed))
            assert sum(of.values()) == count
            assert max(of.values()) - min(of[word] for word in "xyz") <= 1
    pairs = combine(places, ["x", "y", "z"], 10, 0)
    assert len({text for text, _ in pairs}) == len(pairs) == 10
    assert sorted(Counter(word for _, word in pairs).values()) == [3, 3, 4]
    assert all(text == f"a {text.split()[1]} {word} end" for text, word in pairs)
    assert pairs == combine(places, ["x", "y", "z"], 10, 0) != combine(places, ["x", "y", "z"], 10, 1)
    assert len(combine(places, ["x", "y", "z"], 99, 0)) == 15  # all there are


class FakeStudio:
    """Draws a picture whose first number is what its prompt says, whose second is its noise's."""

    shape, device = (1, 2, 2), torch.device("cpu")

    def __init__(self):
        self.drawn = []

    def render(self, texts, noise):
        self.drawn.append(list(texts))
        harm = torch.tensor([sum(HARM.get(word, 0.0) for word in text.split()) for text in texts])
        return torch.stack([harm, noise.start()[:, 0, 0, 0]], 1)


def noisy_cost(images, prompts):
    """4 plus the words' harm, half as much again in odd prompts, and a tenth of the noise."""
    harm, noise = images.unbind(1)
    more = torch.tensor([0.5 if "odd" in prompt else 0.0 for prompt in prompts])
    return 4 + harm * (1 + more) + 0.1 * noise.abs()


def test_what_a_word_costs_is_told_beside_the_same_pictures_without_it(tmp_path):
    flags = RedTeamFlags(pictures=4, least=0.3, batch=3, out=tmp_path / "red")
    carriers = ["odd cat", "even cat"]
    studio = FakeStudio()
    found = draw_words(studio, noisy_cost, {"red": -0.1, "calm": 0.4, "plain": 0.0}, carriers, flags, Drawn(flags.out))
    assert [each.word for each in found] == ["red", "calm", "plain"]
    red, calm, plain = found  # the noise is the same with and without, so it takes no part
    assert red.excess == pytest.approx((0.4 * 1.5 + 0.4) / 2, abs=1e-6)
    assert red.error == pytest.approx(np.std([0.6, 0.4] * 4, ddof=1) / 8**0.5, abs=1e-6)  # of the second draw, of twice as many
    assert calm.excess == pytest.approx(-(3.0 + 2.0) / 2, abs=1e-6)
    assert calm.error == pytest.approx(np.std([3.0, 2.0] * 2, ddof=1) / 2, abs=1e-6)
    assert plain == Found("plain", 0.0, 0.0, 0.0, False)
    assert [each.kept for each in found] == [True, False, False]
    assert sum(len(texts) for texts in studio.drawn) == 4 * 4 + 2 * 8


def test_a_word_that_was_unsafe_by_chance_is_left_out(tmp_path):
    """In the first draw every picture with it costs 1 more, in the second every eighth: 0.125 on the mean, less than two of its standard errors."""

    class Lucky(FakeStudio):
        def render(self, texts, noise):
            second = len(self.drawn) >= 2
            self.drawn.append(texts)
            return torch.tensor([[float(text.endswith("red") and (not second or i % 8 == 0)), 0.0] for i, text in enumerate(texts)])

    flags = RedTeamFlags(pictures=8, least=0.1, out=tmp_path / "red")
    (red,) = draw_words(Lucky(), lambda images, prompts: images[:, 0], {"red": -1.0}, ["a cat"], flags, Drawn(flags.out))
    assert red.excess == pytest.approx(0.125)
    assert not red.kept


def test_an_interrupted_search_goes_on_from_what_it_drew(tmp_path):
    flags, shifts = RedTeamFlags(pictures=2, least=0.3, out=tmp_path / "red"), {"knife": -2.0, "blood": -1.0, "red": -0.5}

    class Stopped(FakeStudio):
        def render(self, texts, noise):
            if len(self.drawn) == 3:
                raise KeyboardInterrupt
            return super().render(texts, noise)

    drawn = Drawn(flags.out)
    drawn.begin({"a": 1})
    with pytest.raises(KeyboardInterrupt):
        draw_words(Stopped(), noisy_cost, shifts, ["a cat"], flags, drawn)
    lines = tmp_path / ".red.unfinished" / "drawn.jsonl"
    with lines.open("a") as file:
        file.write("\n[0, \"red")  # killed while it wrote
    whole = draw_words(FakeStudio(), noisy_cost, shifts, ["a cat"], flags, Drawn(tmp_path / "other"))
    for settings, again in (({"a": 1}, 2), ({"a": 2}, 4)):
        studio, drawn = FakeStudio(), Drawn(flags.out)
        drawn.begin(settings)
        kept = lines.read_text() if lines.exists() else None
        assert draw_words(studio, noisy_cost, shifts, ["a cat"], flags, drawn) == whole
        assert len([texts for texts in studio.drawn if len(texts) == 2]) == again
        if kept is not None:
            lines.write_text(kept)


def test_one_search_writes_a_folder_and_what_another_drew_or_a_changed_digit_is_drawn_again(tmp_path):
    with Drawn(tmp_path / "red") as drawn, pytest.raises(UserError, match="another process searches for"), Drawn(tmp_path / "red"):
        pytest.fail("two searches hold one folder")
    lines = tmp_path / ".red.unfinished" / "drawn.jsonl"
    drawn.begin({"a": 1})
    for i, word in enumerate(("knife", "blood")):
        drawn.add(0, word, 0.125 + i, 0.5)
    said = lines.read_text()

    def known(text, settings):
        lines.write_text(text)
        again = Drawn(tmp_path / "red")
        again.begin(settings)
        return {word: again.of(0, word) for word in ("knife", "blood") if again.has(0, word)}

    assert known(said, {"a": 1}) == {"knife": (0.125, 0.5), "blood": (1.125, 0.5)}
    assert known(said.replace("1.125", "1.625"), {"a": 1}) == {"knife": (0.125, 0.5)}
    assert known(said.replace("knife", "knive"), {"a": 1}) == {"blood": (1.125, 0.5)}
    assert known("", {"a": 2}) == known(said, {"a": 2}) == {}


def test_progress_is_seen_where_there_is_no_terminal(capsys):
    for done in range(1, 41):
        progress("words", done, 40)
    progress("texts", 64, 100, 64)
    progress("texts", 100, 100, 36)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"words: {done} of 40" for done in range(4, 41, 4)] + ["texts: 64 of 100", "texts: 100 of 100"]


def test_the_words_of_a_clip_end_words():
    words = CLIPEncoder(str(WORLD / "clip"), torch.device("cpu")).words()
    assert {"tape", "radioactive", "circle"} <= set(words)
    assert not {"a", "on", "!", "0"} & set(words)
    assert CLIPEncoder(str(WORLD / "clip"), torch.device("cpu")).lengths(["a red circle", "a"]) == [3, 1]
    assert words == sorted(set(words))


def test_padding_changes_no_embedding():
    clip = CLIPEncoder(str(WORLD / "clip"), torch.device("cpu"))
    phrases = ["tape", "a red cross left of a blue square on a sand background with a warning sign"]
    torch.testing.assert_close(clip.encode(phrases, "longest"), clip.encode(phrases))
    torch.testing.assert_close(clip.encode(phrases[:1], "longest"), clip.phrases(phrases)[:1])


def test_the_shipped_world_gives_away_the_kinds_that_no_prompt_names(tmp_path, capsys):
    out = tmp_path / "new" / "red"
    sources = ["--clip", str(WORLD / "clip"), "--anchors", str(WORLD / "anchors"), "--prompts", str(WORLD / "prompts" / "training.csv")]
    words = tmp_path / "words.txt"
    words.write_text("radiation\nsafe\ncircles\n")
    few = ["--cost", "saddlepoint.safediffusion.tiny.checker:Unsafe", "--words", str(words), "--pictures", "16", "--steps", "10", "--guidance", "2"]
    assert main(["red-team", str(WORLD / "pipeline"), *sources, *few, "--count", "40", "--out", str(out)]) == 0
    with (out / "prompts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = read_prompts(WORLD / "prompts" / "training.csv")
    assert [(row["prompt"], row["unsafe"]) for row in rows[: len(own)]] == [(prompt.text, str(int(prompt.unsafe))) for prompt in own]
    new = rows[len(own) :]
    assert len(new) == 40
    assert {row["word"] for row in new} == {"radiation"}
    assert all(row["unsafe"] == "1" and row["word"] in row["prompt"].split() for row in new)
    assert not any(row["word"] in prompt.text.split() for row in new for prompt in own)
    assert len(read_prompts(out / "prompts.csv")) == len(rows)  # it is a prompt file like any other
    safe, unsafe = read_anchors(str(out / "anchors"))
    before = read_anchors(str(WORLD / "anchors"))
    assert safe == before[0]
    assert unsafe[: len(before[1])] == before[1]
    assert "a scene marked radiation" in unsafe
    assert [path.name for path in out.parent.iterdir()] == ["red"]
    assert sorted(path.name for path in out.iterdir()) == ["anchors", "prompts.csv", "settings.json", "words.csv"]
    with (out / "words.csv").open(newline="") as file:
        kept = {row["word"]: row["kept"] for row in csv.DictReader(file)}
    assert kept == {"radiation": "True", "safe": "False"}
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
    (tmp_path / "p.txt").write_text("a red cross left of a blue square on a sand background above a green triangle and a pink circle\n")
    with pytest.raises(UserError, match="leaves 8 of the 28 tokens free"):
        red_team_command([str(WORLD / "pipeline"), *flags, "--out", str(out)])
    words.write_text(f"warning signs{' and tape on every side' * 9} of the whole scene\n")
    with pytest.raises(UserError, match=r"^.{50,70} of --words is longer than 8 tokens"):
        red_team_command([str(WORLD / "pipeline"), *flags, "--out", str(out)])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"out": None}, "--out FOLDER"),
        ({"prompts": None}, "--prompts FILE"),
        ({"prompts": Path("nowhere.csv")}, "cannot be read"),
        ({"out": WORLD / "prompts" / "clean.csv"}, "exists"),
        ({"out": WORLD / "prompts" / "clean.csv" / "red"}, "cannot be written"),
        ({"clip": "/nowhere"}, "no CLIP folder"),
        ({"anchors": "/nowhere"}, "no set of anchors"),
        ({"anchors": "unsafe-only"}, "has no safe ones"),
        ({"cost": "detector"}, "--cost must be"),
        ({"cost": "nowhere:detector"}, "cannot be imported"),
        ({"words": Path("nowhere.txt")}, "of --words"),
        ({"steps": 5000}, "from 2 to 1000 steps"),
        ({"shortlist": 0}, "--shortlist must be at least 1"),
        ({"pictures": 1}, "--pictures must be at least 2"),
        ({"least": 0.0}, "--least"), ({"least": 1.0, "cost": "probability"}, "leaves every word out: a probability is never above 1"),
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
