"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from saddlepoint.files.faults import as_written

WRITING = ".writing-"
"""how the name of what is not finished begins"""
SEAL = "sha256"
"""key of JSON's own digest"""


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
    with as_written(path, "look at the disk and the folder's permissions"):
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
    with as_written(path, "choose another folder, or look at the disk and its permissions"):
        _require_free(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in (*names, ""):
                    flush(Path(folder) / name)
            _require_free(path)
            try:
                temporary.rename(path)
            except OSError:
                _require_free(path)  # another process was quicker
                raise
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
