"""Files, written whole or not at all and read with every fault in one sentence. Nothing else reads or writes JSON,
TOML, npz or safetensors.

A writer fills ``.writing-<chance>-<name>`` beside the place, flushes it and renames it: a reader sees the old file or
the new one, and a link is replaced, never written through. A reader checks kind, size and nesting before it works,
never unpickles, and turns whatever its library raises into a ``FileFault``, which names the file and the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import tomllib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saddlepoint.types import UserError

try:
    import fcntl
except ImportError:  # Windows: policies load and act there, but no folder can be locked
    fcntl = None  # type: ignore[assignment]

TEXT_LIMIT = 2**28
"""bytes of the largest text that is read"""
LINE_LIMIT = 2**24
"""bytes of the longest line"""
MOST_DEPTH = 100
"""levels of lists and tables in each other that are taken"""
WRITING = ".writing-"
"""how the name of what is not finished begins"""
BLOCK = 2**23
"""bytes of a tensor that are copied at once"""
SEAL = "sha256"
"""key of JSON's own digest"""
ADVICE = "restore it from a copy, or make it again"


class FileFault(UserError):
    """A file that cannot be read or written: ``path``, the ``reason`` in a few words, and whether it is ``missing``."""

    def __init__(self, sentence: str, path: Path | None = None, reason: str = "", missing: bool = False) -> None:
        super().__init__(sentence)
        self.path, self.reason, self.missing = path, reason, missing


class Busy(UserError):
    """Another process holds the lock."""


def reason_of(error: BaseException) -> str:
    """Why a file could not be read or written, in a few words."""
    if isinstance(error, FileFault):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (said or type(error).__name__).rstrip(".:")


# ------------------------------------------------------------------------------------------------ writing


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file whole (text as UTF-8), or leave what was there. Raises ``FileFault``."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, content: Any) -> None:
    """``atomic_write`` of JSON. Raises ``FileFault``."""
    atomic_write(path, json.dumps(content, indent=2) + "\n")


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with the SHA-256 of all of it, for JSON that no other file describes."""
    return content | {SEAL: seal_of(content)}


def is_sealed(content: dict[str, Any]) -> bool:
    """Whether ``content`` is as ``sealed`` made it: not where anything in it has changed, nor where it was never
    sealed."""
    return content.get(SEAL) == seal_of({key: value for key, value in content.items() if key != SEAL})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """``atomic_write`` of a safetensors file; the tensors must be contiguous and share no memory. Raises
    ``FileFault``."""
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """``atomic_write`` of an npz file without compression. Raises ``FileFault``."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to be filled in the ``with`` block, which takes the place of ``path`` when that ends well; else
    nothing is left of it.

    It keeps the suffix of ``path``, and has the mode that the umask gives. Raises ``FileFault``.
    """
    path = Path(path)
    temporary = beside(path)
    with _writing(path, "look at the disk and the folder's permissions"):
        if path.exists() and not path.is_file():
            raise OSError(0, "it is a folder or a device")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            yield temporary
            temporary.chmod(mode)  # safetensors makes files that no one else may read
            flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled in the ``with`` block, which becomes ``path`` when that ends well; else nothing is left of
    it.

    Of two processes that make the same folder, one succeeds. Raises ``FileFault``, also where ``path`` exists and is
    not an empty folder.
    """
    path = Path(path)
    temporary = beside(path)
    with _writing(path, "choose another folder, or look at the disk and its permissions"):
        _require_free(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in (*names, ""):
                    flush(Path(folder) / name)
            _require_free(path)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        flush(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in ``folder``, of which the caller must be the only writer."""
    for path in folder.glob(f"{WRITING}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    if path.is_dir():
        # Some network file systems refuse to flush folders, and some systems to open them.
        with contextlib.suppress(OSError):
            _flush(path)
    else:
        _flush(path)  # a full disk may be reported here first


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # foreign code closed it: what else that led to is told where it is met
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path, busy: str = "") -> Iterator[None]:
    """Hold the lock file ``path``, freed even after kill -9.

    Raises ``Busy``, with the sentence ``busy``, when another process has it, and ``FileFault`` when it cannot be had.
    """
    if fcntl is None:
        raise UserError(
            "this system cannot lock files (Python's fcntl is missing): train on Linux or macOS; trained policies load"
            " here."
        )
    with contextlib.ExitStack() as held:
        with _writing(path, "look at the disk and the folder's permissions, or choose another folder"):
            while True:
                # Links are refused, and nothing is truncated.
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                held.callback(_close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise Busy(
                        busy or f"another process holds {path}: wait for it, or choose another folder."
                    ) from error
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(
                        os.fstat(descriptor), path.stat(follow_symlinks=False)
                    ):  # not removed meanwhile
                        break
        yield


def seal_of(content: Any) -> str:
    """SHA-256 of what can be written as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def beside(path: Path) -> Path:
    """A name that nobody else has: numbers of processes may meet on a disk that several machines share."""
    return path.with_name(f"{WRITING}{secrets.token_hex(4)}-{path.name}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_free(path: Path) -> None:
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise OSError(0, "it exists already")


# ------------------------------------------------------------------------------------------------ reading


def digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits. Raises ``FileFault``."""
    with _reading(path, ""), _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path, what: str, limit: int = TEXT_LIMIT, advice: str = ADVICE) -> bytes:
    """The content of a file of at most ``limit`` bytes. Raises ``FileFault``; ``what`` names it there: "the
    configuration of a run"."""
    with _reading(path, what, advice), _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"it has {size:,} bytes, and at most {limit:,} are read")
        return file.read(limit)


def read_text(path: Path, what: str, limit: int = TEXT_LIMIT, advice: str = ADVICE) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises ``FileFault``."""
    content = read_bytes(path, what, limit, advice)
    with _reading(path, what, advice):
        return content.decode("utf-8-sig")


def read_json(path: Path, what: str, limit: int = TEXT_LIMIT, advice: str = ADVICE, kind: type = dict) -> Any:
    """The JSON of a file, which must be a ``kind``. Raises ``FileFault``."""
    content = read_bytes(path, what, limit, advice)
    with _reading(path, what, advice):
        return parse_json(content, kind)


def read_toml(path: Path, what: str, limit: int = 2**20, advice: str = ADVICE) -> dict[str, Any]:
    """The table of a TOML file. Raises ``FileFault``."""
    text = read_text(path, what, limit, advice)
    with _reading(path, what, advice):
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
    with _reading(path, what, advice), _open(path) as file:
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
    with _reading(path, what, advice), _open(path) as file:
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
    with _reading(path, what, advice), _open(path) as file, _strictly():
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
        with _reading(self.path, self._what, self._advice):
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


@contextmanager
def _reading(path: Path, what: str, advice: str = ADVICE) -> Iterator[None]:
    """Whatever is raised but a ``UserError`` or an interruption becomes a ``FileFault``: a library's list of errors
    is never whole."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if (
            not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        ):  # what a library in Rust raises when it panics
            raise
        reason = _one_line(error)
        named = f"{path} cannot be read as {what}" if what else f"{path} cannot be read"
        raise FileFault(
            f"{named} ({reason}): {advice}.", Path(path), reason, isinstance(error, (FileNotFoundError, NotADirectoryError))
        ) from error


@contextmanager
def _writing(path: Path, advice: str) -> Iterator[None]:
    """A disk's faults, and names that cannot be written, become a ``FileFault``; others are those of who writes."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeError) as error:
        reason = _one_line(error)
        raise FileFault(
            f"{path} cannot be written ({reason}): {advice}.", path, reason, isinstance(error, FileNotFoundError)
        ) from error


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", reason_of(error))
