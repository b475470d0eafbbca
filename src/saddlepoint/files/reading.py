"""Files read with every fault in one sentence."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tomllib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from torch import Tensor

from saddlepoint.files.faults import ADVICE, as_read, reason_of

TEXT_LIMIT = 2**28
"""bytes of the largest text that is read"""
LINE_LIMIT = 2**24
"""bytes of the longest line"""
MOST_DEPTH = 100
"""levels of lists and tables in each other that are taken"""
BLOCK = 2**23
"""bytes of a tensor that are copied at once"""


def digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits. Raises ``FileFault``."""
    with as_read(path, ""), _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path, what: str, limit: int = TEXT_LIMIT, advice: str = ADVICE) -> bytes:
    """The content of a file of at most ``limit`` bytes. Raises ``FileFault``; ``what`` names it there: "the
    configuration of a run"."""
    with as_read(path, what, advice), _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"it has {size:,} bytes, and at most {limit:,} are read")
        return file.read(limit)


def read_text(path: Path, what: str, limit: int = TEXT_LIMIT, advice: str = ADVICE) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises ``FileFault``."""
    content = read_bytes(path, what, limit, advice)
    with as_read(path, what, advice):
        return content.decode("utf-8-sig")


def read_json(path: Path, what: str, limit: int = TEXT_LIMIT, advice: str = ADVICE, kind: type = dict) -> Any:
    """The JSON of a file, which must be a ``kind``. Raises ``FileFault``."""
    content = read_bytes(path, what, limit, advice)
    with as_read(path, what, advice):
        return parse_json(content, kind)


def read_toml(path: Path, what: str, limit: int = 2**20, advice: str = ADVICE) -> dict[str, Any]:
    """The table of a TOML file. Raises ``FileFault``."""
    text = read_text(path, what, limit, advice)
    with as_read(path, what, advice):
        return _shallow(tomllib.loads(text))


class Line(NamedTuple):
    """A line of a JSON-lines file."""

    number: int
    """from 1 on"""
    raw: bytes
    """as it stands, its end included"""
    content: dict[str, Any] | None
    """None where it is not a JSON object"""
    reason: str
    """why it is not; empty where it is"""


def read_json_lines(path: Path, what: str, advice: str = ADVICE) -> list[Line]:
    """The lines of a file that holds a JSON object in each. Lines that do not are among them, with the reason.
    Raises ``FileFault``."""
    lines: list[Line] = []
    with as_read(path, what, advice), _open(path) as file:
        while raw := file.readline(LINE_LIMIT):
            try:
                lines.append(Line(len(lines) + 1, raw, parse_json(raw), ""))
            except ValueError as error:
                lines.append(Line(len(lines) + 1, raw, None, reason_of(error)))
    return lines


def parse_json(text: str | bytes, kind: type = dict) -> Any:
    """The JSON of ``text``, which must be a ``kind``. Every fault is a ``ValueError``: syntax, encoding, nesting,
    length of numbers, kind."""
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(reason_of(error)) from None
    if "\\u" in text:
        json.dumps(
            content, ensure_ascii=False
        ).encode()  # half a surrogate pair is a text that cannot be written anywhere
    if not isinstance(content, kind):
        raise ValueError(f"it is {_NAMES.get(type(content), 'a number')}, not {_NAMES.get(kind, kind.__name__)}")
    return _shallow(content)


def read_arrays(path: Path, what: str, advice: str = ADVICE) -> dict[str, np.ndarray]:
    """The arrays of an npz file without compression, as ``write_arrays`` makes it. Raises ``FileFault``."""
    with as_read(path, what, advice), _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as members:
            if (
                any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist())
                or sum(m.file_size for m in members.infolist()) > size
            ):
                raise ValueError("it is compressed, and could be of any size")
        file.seek(0)
        with _strictly(), np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("it holds more than arrays")
        return found


def read_array(path: Path, what: str, advice: str = ADVICE) -> np.ndarray:
    """The array of an npy file. Raises ``FileFault``."""
    with as_read(path, what, advice), _open(path) as file, _strictly():
        return np.lib.format.read_array(file, allow_pickle=False)


def read_tensors(path: Path, what: str, advice: str = ADVICE) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory: copy what is to stay. Raises ``FileFault``."""
    return dict(StoredTensors(path, what, advice))


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name, each mapped into memory when it is asked for. Raises ``FileFault``
    when it is not one.

    What is read of a mapping counts as memory until it is dropped: copy a large tensor in parts, and ask for it anew
    for each (``copy_rows``).
    """

    def __init__(self, path: Path, what: str, advice: str = ADVICE) -> None:
        self.path, self._what, self._advice = path, what, advice
        with self._opened() as file:
            self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with self._opened() as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with as_read(self.path, self._what, self._advice):
            _open(self.path).close()  # a FIFO would be waited for
            with safe_open(self.path, "pt") as file:
                yield file


def copy_rows(target: Tensor, source: Mapping[str, Tensor], name: str) -> None:
    """Copy ``source[name]`` into the tensor ``target`` of one dimension or more, at most ``BLOCK`` bytes at a time."""
    rows = max(BLOCK // max(target[:1].numel() * target.element_size(), 1), 1)
    for start in range(0, len(target), rows):
        target[start : start + rows].copy_(source[name][start : start + rows])


_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}


def _shallow(content: Any) -> Any:
    """``content``, unless it is nested so deeply that whoever walks through it may fail. Raises ``ValueError``."""
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MOST_DEPTH):
        level = [
            item
            for part in level
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, dict | list)
        ]
        if not level:
            return content
    raise ValueError(f"it is nested more than {MOST_DEPTH} levels deep")


def _open(path: Path) -> io.BufferedReader:
    """An ordinary file to be read; folders, pipes and devices are refused."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(0, "it is a folder" if stat.S_ISDIR(mode) else "it is not a file")
    return open(descriptor, "rb")


@contextmanager
def _strictly() -> Iterator[None]:
    """A warning is an error: NumPy warns of headers that it takes for those of Python 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
