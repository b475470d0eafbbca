"""`saddlepoint examples`: the programs, sweeps and tiny worlds that come with the package, copied to where you work.

``files`` holds links into the checkout, which a wheel has as files.
"""

from __future__ import annotations

import ast
import shutil
from dataclasses import dataclass
from pathlib import Path

from saddlepoint.flags import parse
from saddlepoint.types import UserError

FILES = Path(__file__).parent / "files"
FOLDERS = {
    "sweeps": "the sweeps behind the published results, for `saddlepoint sweep FILE`",
    "tiny-world": "a complete small text-to-image world: pipeline, CLIP, prompts, checker (11 MB)",
    "tiny-flow-world": "its counterpart for flow-matching pipelines, SD3-like (6 MB)",
}


@dataclass(frozen=True)
class ExampleFlags:
    """Where the copies go."""

    out: Path = Path()
    """folder to copy to; by default the one you are in"""


def examples_command(args: list[str]) -> None:
    """`saddlepoint examples [NAME ...] [--out FOLDER]`: without names, what there is. Raises ``UserError``."""
    first = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
    flags = parse(ExampleFlags, ExampleFlags(), args[first:], "saddlepoint examples NAME ...").values
    known = places()
    names = args[:first]
    if not names:
        width = max(map(len, known))
        print("\n".join(f"{name:<{width}}  {_first_line(name, place)}" for name, place in known.items()))
        print("\n`saddlepoint examples NAME ...` copies them here, or to --out FOLDER.")
        return
    for name in names:
        if name not in known:
            raise UserError(f"there is no example {name!r}: `saddlepoint examples` lists them.")
        if (flags.out / name).exists():
            raise UserError(f"{flags.out / name} is there already: move it, or give another --out.")
    for name in names:
        print(copy(known[name], flags.out / name))


def places() -> dict[str, Path]:
    """By name, the file or folder of each example."""
    programs = sorted(path for path in (FILES / "programs").iterdir() if path.is_file() and path.suffix in (".py", ".sh", ".toml"))
    folders = (FILES / "sweeps", *sorted(path for path in (FILES / "models").iterdir() if path.is_dir()))
    return {path.name: path for path in (*programs, *folders)}


def copy(source: Path, target: Path) -> Path:
    """``source`` at ``target``, which must not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target))


def _first_line(name: str, path: Path) -> str:
    if name in FOLDERS:
        return FOLDERS[name]
    text = path.read_text()
    if path.suffix == ".py" and (docstring := ast.get_docstring(ast.parse(text))):
        return docstring.splitlines()[0]
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ") and not line.startswith("# %%")), "")
