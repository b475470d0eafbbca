"""Nothing is documented that does not exist: commands parse, flags are known, Python compiles and imports, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from saddlepoint import ALGD, ALGDConfig, TrainConfig, check_env, flags, train
from saddlepoint.cli import VERBS, main
from saddlepoint.safediffusion.config import PRESETS
from saddlepoint.systems import SYSTEMS, find_system
from saddlepoint.train import run
from saddlepoint.train.checkpoint import latest
from saddlepoint.types import EnvSetup
from tests.report_runs import write_run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
QUOTING = ("lab_notes.md", "budget-lab.md", "text-to-image-memory.md", "deviations.md")  # what older versions had
WRITTEN = [page for page in PAGES if page.name not in QUOTING]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BARE = ("", "bash", "sh")
OTHERS = {"--array", "--cpus-per-task", "--time", "--signal", "--requeue"}
"""flags of other programs that the pages name"""
PICTURES = ("runs/safe", "runs/safer")


class Read(BaseException):
    """A command line was read without complaint; raised in place of doing what it says."""


def blocks(page: Path, kinds: tuple[str, ...]) -> list[str]:
    """The code blocks of a page in one of these languages, with the files that they include."""
    found = [code for kind, code in BLOCK.findall(page.read_text()) if kind in kinds]
    return [re.sub(r'^--8<-- "(.*)"$', _included, code, flags=re.MULTILINE) for code in found]


def _included(match: re.Match[str]) -> str:
    places = [home / match[1] for home in (ROOT, DOCS) if (home / match[1]).exists()]
    return places[0].read_text()


def commands() -> list[tuple[str, str]]:
    """(page, command line) of everything that the pages tell to type."""
    found = []
    for page in (*WRITTEN, README):
        for code in blocks(page, BARE):
            joined = code.replace("\\\n", " ")
            found += [(page.name, line.strip()) for line in joined.splitlines() if line.startswith("saddlepoint ")]
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of reinforcement learning and one of pictures, as far as their config.json goes."""
    home = tmp_path_factory.mktemp("docs")
    pictures = home / "pictures"
    pictures.mkdir()
    run.write(pictures, {"format": 1, "system": "safediffusion", "train": {"pipeline": "p", "seed": 0}, "learner": {}, "resolved": {}})
    return write_run(home / "toy"), pictures


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``main`` reads its flags and does nothing more."""
    real = flags.parse

    def parse(kind: type[Any], default: Any, args: list[str], prog: str, *others: Any) -> Any:
        parsed = real(kind, default, args, prog)
        if hasattr(parsed.values, "launch"):
            name = prog.split()[-1]
            assert parsed.values.launch.preset in (PRESETS if name == "safediffusion" else find_system(name).presets())
        raise Read

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("saddlepoint") and vars(module).get("parse") is real:
            monkeypatch.setattr(module, "parse", parse)
    monkeypatch.setattr(flags, "parse", parse)
    monkeypatch.chdir(ROOT / "examples")
    before, path = dict(SYSTEMS), list(sys.path)
    yield
    for module in list(sys.modules.values()):  # those that were first imported here
        if vars(module).get("parse") is parse:
            module.parse = real  # type: ignore[attr-defined]
    sys.path[:] = path
    SYSTEMS.clear()
    SYSTEMS.update(before)
    sys.modules.pop("own_algorithm", None)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 40
    assert {line.split()[1] for _, line in commands()} >= set(VERBS) - {"convert", "envs"}


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_of_the_docs_is_read(
    page: str, line: str, runs: tuple[Path, Path], reading: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line, comments=True)[1:]
    for i, word in enumerate(words):
        if word.startswith("runs") and words[i - 1] != "--out":
            words[i] = str(runs[1] if word in PICTURES else runs[0])
    try:
        code = main(words)
    except Read:
        return
    assert code == 0, f"{page}: {line}: {capsys.readouterr().err}"


def test_every_flag_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    helps = [["train", system, "--help"] for system in (*SYSTEMS, "safediffusion")]
    helps += [["pretrain", "mbdpo", "--help"], *([verb, "--help"] for verb in VERBS if verb not in ("train", "pretrain", "envs"))]
    for words in helps:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    from saddlepoint.safediffusion.evaluate_flags import EvaluateFlags as Pictures

    shown = re.findall(r"--(?:\[no-\])?([a-z][a-z0-9-]*)", capsys.readouterr().out)
    known = {f"--{name}" for name in shown} | {"--help", "--version", "--import"}
    known |= {f"--{name.replace('_', '-')}" for name in Pictures.__dataclass_fields__}
    for page in WRITTEN:
        named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", page.read_text()))
        assert named - known - OTHERS == set(), page.name


@pytest.mark.parametrize("page", [page for page in (*PAGES, README) if blocks(page, ("python",))], ids=lambda page: page.stem)
def test_python_of_the_docs_compiles_and_its_imports_resolve(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    for code in blocks(page, ("python",)):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    import_module(name.name)
            elif isinstance(node, ast.ImportFrom):
                module = import_module(str(node.module))
                assert all(hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}") for name in node.names), ast.unparse(node)


def test_examples_that_only_define_or_assert_run() -> None:
    for page, needed in (("budgets.md", "CostBudget"), ("extend.md", "squared_hinge"), ("extend.md", "Brightness"), ("extend.md", "SaveWorst")):
        (code,) = [code for code in blocks(DOCS / page, ("python",)) if needed in code and "register_system" not in code]
        exec(compile(code, page, "exec"), {})


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, README):
        for address in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not address.startswith(("http", "#")):
                name, _, anchor = address.partition("#")
                file = page.parent / name
                assert file.exists(), f"{page.name}: {address}"
                if anchor:
                    heads = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                    assert anchor in [re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads], address


def test_no_line_of_a_sentence_is_taken_for_an_item_of_a_list() -> None:
    for page in (*PAGES, README):
        prose = BLOCK.sub("", page.read_text())
        assert re.findall(r"^ *[*+] .*", prose, re.MULTILINE) == [], page.name  # the pages' lists have dashes


def test_every_page_is_in_the_contents() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE)
    assert sorted(named) == [page.name for page in PAGES]


def test_the_cart_of_the_readme_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [code for code in blocks(README, ("python",)) if "class Cart" in code]
    (tmp_path / "cart.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    shape = check_env("cart:Cart-v0")
    assert (shape.observation, shape.action, shape.constraints) == (2, 1, 1)


def test_the_site_is_built_strictly_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is missing")
    pytest.importorskip("mkdocstrings", reason="the extra docs is missing")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        html = (tmp_path / "site" / page.with_suffix(".html").name).read_text()
        assert re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//", html) == [], page.name
        assert re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preload|preconnect)[^>]+href=\"?(?:https?:)?//", html) == [], page.name
        for shown in re.findall(r'<img[^>]*src="([^"]+)"', html):
            assert f'<a href="{shown}"><img' in html, page.name  # a picture opens in full size, which a phone needs


def test_the_arm_of_the_docs_trains_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    arm = import_module("arm")
    shape = check_env(EnvSetup("arm:Arm-v0", flatten=True))
    assert (shape.observation, shape.action, shape.constraints) == (6, 2, 2)

    def go(folder: Path, steps: int, resume: bool = False) -> Path:
        config = TrainConfig(env="arm:Arm-v0", env_kwargs={"max_episode_steps": 8}, flatten=True, total_steps=steps, warmup_steps=20,
                             eval_every=1000, quiet=True, threads=1, replay_size=500, checkpoint_every=1000, out=folder)  # fmt: skip
        train(config, ALGD, ALGDConfig(critic_hidden=(16, 16), policy_hidden=(16,), batch_size=8), arm.BUDGETS, resume=resume)
        return latest(folder)[0] / "learner.safetensors"

    whole, parts = go(tmp_path / "whole", 45), go(tmp_path / "parts", 30)
    parts = go(tmp_path / "parts", 45, resume=True)
    assert whole.read_bytes() == parts.read_bytes()
