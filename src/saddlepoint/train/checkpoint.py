"""Checkpoints that are whole or not there: written beside, flushed, renamed, checked before loading; never unpickled.

``<run>/checkpoints/<step>/`` holds ``learner.safetensors``, ``replay.safetensors``, ``state.json`` with
``arrays.npz`` (loop counters, random states, environments in mid-episode) and, written last, ``manifest.json`` with
the size and SHA-256 of each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saddlepoint.types import UserError

FORMAT = 1
FILES = ("learner.safetensors", "replay.safetensors", "state.json", "arrays.npz")
LEARNER = FILES[:1]
"""all that a policy needs: what else there is may be damaged or missing"""
MANIFEST = "manifest.json"
ARRAY = "__array__"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    step: int
    """environment steps taken so far"""
    learner: dict[str, Tensor]
    replay: dict[str, Tensor]
    state: dict[str, Any]
    """nested dicts and lists of numbers, strings, None and numpy arrays"""


def save(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep``. Returns its folder.

    Raises ``UserError`` when it cannot be written (disk full, no permission); then the older checkpoints are untouched.
    """
    home = run / "checkpoints"
    folder = home / str(checkpoint.step)
    temporary = home / f".writing-{checkpoint.step}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        temporary.mkdir()
        _write(temporary, checkpoint)
        _replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"the checkpoint of step {checkpoint.step} could not be written to {home} ({_reason(error)}):"
            " the older ones are untouched; make room and go on with --resume."
        ) from error
    older = [path for step, path in _candidates(run) if step < checkpoint.step]  # newer ones are damaged
    for path in older[keep - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def latest(run: Path, wanted: tuple[str, ...] = FILES) -> tuple[Path, str | None]:
    """The newest checkpoint whose ``wanted`` files are whole, and one sentence about newer ones that are damaged (None when there are none).

    Only those files are read. Raises ``UserError`` when the run has no such checkpoint.
    """
    skipped: list[str] = []
    for _, folder in _candidates(run):
        fault = _fault(folder, wanted)
        if fault is None:
            if not skipped:
                return folder, None
            return folder, f"going on from the checkpoint of step {folder.name}, because {' and '.join(skipped)}."
        skipped.append(f"that of step {folder.name} is not whole ({fault})")
    detail = f": {' and '.join(skipped)}" if skipped else ""
    raise UserError(f"{run} holds no checkpoint that can be loaded{detail}: start the run anew with another --out.")


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint that ``latest`` returned. Raises ``UserError`` when it is damaged."""
    _require_whole(folder, FILES)
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        state = _unpack(json.loads((folder / "state.json").read_text()), dict(arrays))
    return Checkpoint(
        int(folder.name), load_file(folder / "learner.safetensors"), load_file(folder / "replay.safetensors"), state
    )


def load_learner(folder: Path) -> dict[str, Tensor]:
    """Only the learner of a checkpoint that ``latest`` returned for ``LEARNER``. Raises ``UserError`` when it is damaged."""
    _require_whole(folder, LEARNER)
    return load_file(folder / LEARNER[0])


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    arrays: dict[str, np.ndarray] = {}
    # A learner's tensors may be views of one another, which safetensors refuses; a replay's are too large to copy.
    whole = torch.contiguous_format
    learner = {name: tensor.detach().clone(memory_format=whole) for name, tensor in checkpoint.learner.items()}
    save_file(learner, folder / "learner.safetensors")
    save_file(checkpoint.replay, folder / "replay.safetensors")
    (folder / "state.json").write_text(json.dumps(_pack(checkpoint.state, arrays)))
    with (folder / "arrays.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in FILES}
    manifest = {"format": FORMAT, "step": checkpoint.step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _replace(temporary: Path, folder: Path) -> None:
    """Rename into place. A folder of that name is moved aside first: a damaged one, or the same step once more."""
    aside = folder.with_name(f".old-{folder.name}")
    if folder.exists():
        folder.rename(aside)
    temporary.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(home: Path) -> None:
    """Remove what a killed predecessor left half-written, and bring back what it had only moved aside."""
    for path in home.glob(".old-*"):
        whole = home / path.name.removeprefix(".old-")
        if whole.exists():
            shutil.rmtree(path)
        else:
            path.rename(whole)
    for path in home.glob(".writing-*"):
        shutil.rmtree(path)


def _candidates(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that looks like a checkpoint, newest first."""
    home = run / "checkpoints"
    folders = [path for path in home.iterdir() if path.is_dir() and path.name.isdecimal()] if home.is_dir() else []
    return sorted(((int(path.name), path) for path in folders), reverse=True)


def _require_whole(folder: Path, wanted: tuple[str, ...]) -> None:
    fault = _fault(folder, wanted)
    if fault is not None:
        raise UserError(f"{folder} is not a whole checkpoint ({fault}): use an older one.")


def _fault(folder: Path, wanted: tuple[str, ...]) -> str | None:
    """What is wrong with a checkpoint's manifest or its ``wanted`` files, in a few words; None when they are whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except OSError:
        return f"it has no {MANIFEST}"
    except ValueError:
        return f"its {MANIFEST} is damaged"
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return "it was written by another program or version"
    files = manifest.get("files")
    if str(manifest.get("step")) != folder.name or not isinstance(files, dict) or set(files) != set(FILES):
        return f"its {MANIFEST} does not describe it"
    for name in wanted:
        path, entry = folder / name, files[name]
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            return f"its {MANIFEST} says nothing whole of {name}"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if _digest(path) != entry["sha256"]:
            return f"{name} has changed since it was written"
    return None


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Nested state to JSON; each array goes to ``arrays`` and leaves its name."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"the keys of a state must be strings: {list(value)}")
        return {key: _pack(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("an array of Python objects cannot be saved without pickling")
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {ARRAY: name}
    if isinstance(value, np.generic):
        return value.item()
    return value


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Undo ``_pack`` (tuples come back as lists)."""
    if isinstance(value, dict):
        return arrays[value[ARRAY]] if ARRAY in value else {key: _unpack(item, arrays) for key, item in value.items()}
    return [_unpack(item, arrays) for item in value] if isinstance(value, list) else value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Force a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems refuse to flush folders; for a file this is where a full disk may first be reported.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
