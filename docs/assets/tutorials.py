"""Run the tutorials and write them as pages of this site, with what they printed and drew.

    python docs/assets/tutorials.py            # all of them, from the folder of the checkout
    python docs/assets/tutorials.py toy        # one

A tutorial is an ordinary script in cells: ``# %% [markdown]`` begins text, ``# %%`` begins code. It also runs by
itself, and opens as a notebook in an editor that knows such cells. A picture that a text shows is the file of that name
which the code before it has written.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parents[1]
EXAMPLES = DOCS.parent / "examples"
TUTORIALS = {"toy": "tutorial_toy.md", "robot_arm": "tutorial_robot_arm.md", "tiny_world": "tutorial_tiny_world.md"}
"""script -> page"""
PROGRESS = re.compile(r"(?:step|epoch) [\d,]+ of [\d,]+ \(")
"""of a run that goes on: the first such line of a cell is shown"""
PICTURE = re.compile(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)")


class Cell(NamedTuple):
    """A part of a tutorial: text in Markdown, or code."""

    is_code: bool
    source: str


def cells(script: Path) -> list[Cell]:
    """The cells of a tutorial, without empty ones."""
    parts = re.split(r"^# %%(.*)\n", script.read_text(), flags=re.MULTILINE)[1:]
    found = []
    for mark, body in zip(parts[::2], parts[1::2], strict=True):
        is_code = "[markdown]" not in mark
        lines = body.strip("\n").splitlines()
        source = "\n".join(lines if is_code else [re.sub(r"^# ?", "", line) for line in lines])
        found += [Cell(is_code, source)] if source.strip() else []
    return found


def execute(script: Path, folder: Path, **constants: Any) -> list[str]:
    """Run a tutorial in ``folder`` and return what each of its cells printed; ``constants`` replace those that it
    assigns at its top level, for a shorter run."""
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(script)}
    printed = []
    with _at_work(folder):
        for cell in cells(script):
            if not cell.is_code:
                printed.append("")
                continue
            tree = ast.parse(cell.source)
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in constants:
                    node.value = ast.parse(repr(constants[node.targets[0].id]), mode="eval").body
            with _captured() as text:
                exec(compile(tree, str(script), "exec"), names)
            printed.append(text[0])
    return printed


def page(script: Path, printed: list[str], folder: Path, pictures: Path, made: str) -> str:
    """The tutorial as Markdown; its pictures are copied from ``folder`` to ``pictures``, a folder of the site. ``made`` says how it was run."""
    parts = []
    for cell, text in zip(cells(script), printed, strict=True):
        if cell.is_code:
            parts.append(f"```python\n{cell.source}\n```\n")
            if text.strip():
                parts.append(f"```text\n{shortened(text.replace(f'{folder}/', ''))}\n```\n")
            continue
        for _, name in PICTURE.findall(cell.source):
            shutil.copyfile(folder / name, pictures / f"{script.stem}-{name}")
        place = f"{pictures.relative_to(DOCS)}/{script.stem}-"
        parts.append(PICTURE.sub(rf"![\1]({place}\2)", cell.source) + "\n")
    parts.append(
        f"---\n\n*This page is `examples/{script.name}`, run from top to bottom {made}: `python docs/assets/tutorials.py {script.stem}`.*\n"
    )
    return "\n".join(parts)


def shortened(text: str) -> str:
    """What a cell printed, with an ellipsis in place of progress lines after the first."""
    kept: list[str] = []
    seen = False
    for line in text.rstrip().splitlines():
        if not PROGRESS.match(line) or not seen:
            kept.append(line)
        elif kept[-1] != "...":
            kept.append("...")
        seen = seen or bool(PROGRESS.match(line))
    return "\n".join(kept)


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """In ``folder``, where the checkout's models are found too, and beside the scripts' own modules."""
    before = Path.cwd()
    if not (folder / "models").exists():
        (folder / "models").symlink_to(DOCS.parent / "models")
    sys.path.insert(0, str(EXAMPLES))
    os.chdir(folder)
    os.environ.setdefault("COLUMNS", "110")  # of tables, where there is no terminal
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(str(EXAMPLES))


@contextmanager
def _captured() -> Iterator[list[str]]:
    """What is printed within, by programs and libraries too."""
    text: list[str] = []
    with tempfile.TemporaryFile() as file, open(os.dup(file.fileno()), "w", encoding="utf-8") as words:
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with redirect_stdout(words):
                yield text
        finally:
            words.flush()
            os.dup2(saved, 1)
            os.close(saved)
            file.seek(0)
            text.append(file.read().decode())


def _made(seconds: float) -> str:
    """How long it took, and where."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=DOCS, capture_output=True, text=True, check=False).stdout.strip()
    return f"in {seconds / 60:.0f} minutes, on one thread of {_processor()} (commit {commit or 'unknown'})"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(names: list[str]) -> None:
    for name in names or TUTORIALS:
        script, begun = EXAMPLES / f"{name}.py", time.monotonic()
        pictures = DOCS / "assets" / "tutorials"
        pictures.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            printed = execute(script, Path(folder))
            text = page(script, printed, Path(folder), pictures, _made(time.monotonic() - begun))
        (DOCS / TUTORIALS[name]).write_text(text)
        print(f"written: {DOCS / TUTORIALS[name]}")


if __name__ == "__main__":
    main(sys.argv[1:])
