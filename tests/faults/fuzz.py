"""Damage at random: what every reader of files makes of it. A sentence (``UserError``) or a whole answer is right,
anything else is a fault."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from saddlepoint.types import UserError

SECONDS = 20
"""a reader that takes longer hangs"""
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
ODD = [
    None, True, -1, 0, 1.5, 2**70, -(2**70), float("inf"), float("nan"), "", "x", "\ud800", "\x00", "../..", "9" * 300, [], {}, [[]], [None],
    {"a": {}}, [1, "a"], DEEP,
]  # fmt: skip


@dataclass
class Tally:
    """What came of the damaged files of one reader."""

    reader: str
    tried: int = 0
    refused: int = 0
    """each with one sentence"""
    accepted: int = 0
    """the damage changed nothing that is read, or the file holds no digest and is still one"""
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reader:
    """A file, what reads it, and how its own digest is mended, so that odd content is met behind it."""

    name: str
    path: Path
    read: Callable[[], Any]
    reseal: Callable[[Path], None] | None = None
    folder: Path | None = None
    """what reading may change, and is put back afterwards; by default the file's own folder"""
    count: int = 1000
    """files that `make faults` tries"""


def fuzz(reader: Reader, count: int, seed: int = 0) -> Tally:
    """Damage the reader's file ``count`` times, each time in another way, and read it. The file is as it was
    afterwards."""
    rng, whole, tally = random.Random(seed), reader.path.read_bytes(), Tally(reader.name)
    folder = reader.folder or reader.path.parent
    before = _contents(folder)
    try:
        for _ in range(count):
            _restore(folder, before)
            damaged = mutate(whole, rng)
            reader.path.write_bytes(damaged)
            if reader.reseal and rng.random() < 0.7:
                with contextlib.suppress(ValueError, OSError, RecursionError):
                    reader.reseal(reader.path)
            tally.tried += 1
            try:
                with _alarm(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    reader.read()
                tally.accepted += 1
            except UserError as error:
                tally.refused += 1
                if "\n" in str(error):
                    tally.faults.append(f"{reader.name}: a sentence of several lines: {error}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                last = traceback.extract_tb(error.__traceback__)[-1]
                kept = Path(tempfile.gettempdir()) / f"fault-{len(tally.faults)}-{reader.path.name}"
                shutil.copy(reader.path, kept)
                tally.faults.append(
                    f"{reader.name}: {type(error).__name__}: {error} ({last.filename}:{last.lineno}); kept as {kept}"
                )
    finally:
        _restore(folder, before)
    return tally


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _restore(folder: Path, contents: dict[Path, bytes]) -> None:
    for path, content in _contents(folder).items():
        if path not in contents:
            path.unlink()
        elif contents[path] != content:
            path.write_bytes(contents[path])
    for path in contents.keys() - set(folder.rglob("*")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[path])


def mutate(whole: bytes, rng: random.Random) -> bytes:
    """Other content: of JSON in half of the cases another structure, else other bytes."""
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError):
            lines = whole.decode().splitlines()
            if len(lines) > 1 and all(line.startswith("{") for line in lines[:2]):  # JSON lines: one of them
                at = rng.randrange(len(lines))
                lines[at] = json.dumps(_restructured(json.loads(lines[at]), rng))
                return "\n".join(lines).encode() + b"\n"
            return json.dumps(_restructured(json.loads(whole), rng)).encode()
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(content) + 1)
        length = min(rng.choice((1, 2, 8, 64)), len(content) - at)
        match rng.randrange(6):
            case 0 if length:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at : at + length] = rng.randbytes(length)
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = rng.choice(
                    (rng.randbytes(4), b"\x00", b"\xff\xfe", b"[" * 5000, b'"', b"\n", b"1e999")
                )
            case 4:
                content[at : at + length] = bytes(length)
            case _:
                if rng.random() < 0.3:
                    del content[at:]
    return bytes(content)


def _restructured(content: Any, rng: random.Random) -> Any:
    """One place, drawn from all, holds something else, another name or nothing."""
    places = list(_places(content, []))
    path = rng.choice(places)
    if not path:
        return rng.choice(ODD)
    *way, last = path
    inside = content
    for step in way:
        inside = inside[step]
    kind = rng.random()
    if kind < 0.7:
        inside[last] = rng.choice(ODD)
    elif kind < 0.85:
        del inside[last]
    elif isinstance(inside, dict):
        inside[rng.choice(("x", "", "__array__", "a0"))] = inside.pop(last)
    else:
        inside.append(inside[last])
    return content


def _places(content: Any, way: list[Any]) -> Iterator[list[Any]]:
    yield way
    if isinstance(content, dict | list):
        for step, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _places(part, [*way, step])


@contextmanager
def _alarm() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------------ digests


def reseal_json(path: Path) -> None:
    """The digest that JSON holds of itself."""
    content = json.loads(path.read_bytes())
    if isinstance(content, dict) and content.pop("sha256", None) is not None:
        content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(content))


def reseal_checkpoint(path: Path) -> None:
    """The digest of a checkpoint's file in its manifest, and the manifest's own."""
    manifest = path.with_name("manifest.json")
    content = json.loads(manifest.read_bytes())
    content["files"][path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(content))
    reseal_json(manifest)


def reseal_dataset(path: Path) -> None:
    """The digest of a data set's file in dataset.json, and that one's own."""
    header = path.with_name("dataset.json")
    content = json.loads(header.read_bytes())
    content["files"][path.name] = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    header.write_text(json.dumps(content))
    reseal_json(header)
