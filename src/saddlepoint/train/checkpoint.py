"""Checkpoints that are whole or not there: written beside, flushed, renamed, checked before loading; never unpickled.

``<run>/checkpoints/<step>/`` holds ``learner.safetensors``, ``replay.safetensors``, ``state.json`` with ``arrays.npz``
(counters, random states, environments in mid-episode) and, written last, ``manifest.json`` with the size and SHA-256 of
each, what the checkpoint knows of the files beside it (``seals``: the metrics, the settings), and the SHA-256 of all
this.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from saddlepoint.files import (
    TEXT_LIMIT,
    FileFault,
    StoredTensors,
    digest,
    flush,
    parse_json,
    read_arrays,
    read_json,
    read_tensors,
    reason_of,
)
from saddlepoint.train.run import lost_checkpoints
from saddlepoint.types import UserError

T = TypeVar("T")

FORMAT = 1
FILES = ("learner.safetensors", "replay.safetensors", "state.json", "arrays.npz")
LEARNER = FILES[:1]
"""all that a policy needs: what else there is may be damaged or missing"""
MANIFEST = "manifest.json"
SELF = "sha256"
ARRAY = "__array__"
LOOKS = 50
"""how often a list of checkpoints is read anew when those in it are gone: another process writes and removes them"""
CONTENT_FAULTS = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)
"""what taking odd content apart raises"""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    step: int
    """how far the run is, in its own unit"""
    learner: dict[str, Tensor]
    replay: Mapping[str, Tensor]
    """of a loaded checkpoint only mapped into memory: it may fill half of that"""
    state: dict[str, Any]
    """nested dicts and lists of numbers, strings, None and numpy arrays"""
    seals: dict[str, Any] = field(default_factory=dict)
    """what is known of the files beside the checkpoint"""


# ------------------------------------------------------------------------------------------------ writing


def place(run: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return run / "checkpoints" / str(step)


def save(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep``. Returns its folder.

    Raises ``UserError`` when it cannot be written (disk full, no permission); then the older checkpoints are untouched.
    """
    folder = place(run, checkpoint.step)
    write_folder(run, folder, checkpoint, sweep="*")
    older = [path for step, path in _candidates(run) if step < checkpoint.step]  # newer ones are damaged
    for path in older[keep - 1 :]:
        _remove(path)
    return folder


def write_folder(run: Path, folder: Path, checkpoint: Checkpoint, sweep: str | None = None) -> None:
    """Write a checkpoint to ``folder`` of ``run``, in place of what is there; a reader sees the old one or the new one.
    The caller is the run's only writer. What killed writers left that ``sweep`` matches is cleared first.

    Raises ``UserError``; then nothing has changed.
    """
    home = folder.parent
    temporary = home / f".writing-{folder.name}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home, sweep or folder.name)
        temporary.mkdir()
        _write(temporary, checkpoint)
        _replace(temporary, folder)
    except (OSError, SafetensorError, FileFault) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        way = "the older ones are untouched; make room and go on with --resume"
        if not _candidates(run):
            way = "there is no older one; make room, and the same command begins anew"
        raise UserError(
            f"the checkpoint of step {checkpoint.step} could not be written to {folder.parent} ({reason_of(error)}): {way}."
        ) from error


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    arrays: dict[str, np.ndarray] = {}
    # A learner's tensors may be views of one another, which safetensors refuses; a replay's are too large to copy.
    learner = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.learner.items()
    }
    (folder / "state.json").write_text(json.dumps(_pack(checkpoint.state, arrays)))
    mode = (folder / "state.json").stat().st_mode
    for name, tensors in (("learner.safetensors", learner), ("replay.safetensors", dict(checkpoint.replay))):
        save_file(tensors, folder / name)
        (folder / name).chmod(mode)  # safetensors makes files that no one else may read
    with (folder / "arrays.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)} for name in FILES}
    manifest = {"format": FORMAT, "step": checkpoint.step, "files": files, "seals": checkpoint.seals}
    (folder / MANIFEST).write_text(json.dumps(manifest | {SELF: _own_digest(manifest)}, indent=2))
    for path in (*folder.iterdir(), folder):
        flush(path)


def _remove(folder: Path) -> None:
    """Remove a checkpoint so that no reader sees a part of it."""
    going = folder.with_name(f".writing-gone-{folder.name}")
    with contextlib.suppress(OSError):
        folder.rename(going)
        shutil.rmtree(going)


def aside(folder: Path) -> Path:
    """Where a checkpoint lies while another takes its place."""
    return folder.with_name(f".old-{folder.name}")


def _replace(temporary: Path, folder: Path) -> None:
    """Rename into place. A folder of that name is moved aside first: a damaged one, or the same step once more."""
    old = aside(folder)
    if folder.is_symlink():
        folder.unlink()
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(home: Path, name: str = "*") -> None:
    """Remove what a killed predecessor left half-written, and bring back what it had only moved aside."""
    for path in home.glob(f".old-{name}"):
        stands = home / path.name.removeprefix(".old-")
        if stands.exists():
            shutil.rmtree(path)
        else:
            path.rename(stands)
    for path in home.glob(f".writing-{name}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# ------------------------------------------------------------------------------------------------ reading


def latest(run: Path, wanted: tuple[str, ...] = FILES) -> tuple[Path, str | None]:
    """The newest checkpoint whose ``wanted`` files are whole, and one sentence about newer ones that are damaged (None
    when there are none).

    Only those files are read. Raises ``UserError`` when the run has no such checkpoint.
    """
    return newest(run, lambda folder: folder, wanted)[0::2]


def newest(run: Path, read: Callable[[Path], T], wanted: tuple[str, ...] = FILES) -> tuple[T, int, str | None]:
    """``read`` of the newest checkpoint whose ``wanted`` files are whole, its step, and one sentence about newer ones
    that are damaged.

    A checkpoint that another process removes meanwhile is none: the newest is looked for anew. Raises ``UserError``
    when the run has none.
    """
    skipped: list[str] = []
    for look in range(LOOKS):
        skipped, moved = [], False
        candidates = _candidates(run)
        for step, folder in candidates:
            before = _identity(folder)
            try:
                found, _ = whole(folder, wanted, step)
                content = read(found)
            except UserError as error:
                after = _identity(folder)
                moved = after != before or (after is None and not aside(folder).exists())
                if moved:
                    break
                skipped.append(
                    f"that of step {step} {error.reason if isinstance(error, Damage) else f'cannot be read ({error})'}"
                )
                continue
            said = f"going on from the checkpoint of step {step}, because {' and '.join(skipped)}." if skipped else None
            return content, step, said
        # A list that is read while it changes may lack both the old one and the new one.
        if not moved and (candidates or look):
            break
    if not skipped and lost_checkpoints(run):
        best = ", or evaluate its best/ with --checkpoint best" if (run / "best").is_dir() else ""
        raise UserError(f"{run} is a run whose checkpoints are gone: restore them{best}, or start it anew with another --out.")
    if not skipped:
        raise UserError(
            f"{run} holds no checkpoint yet, so it was stopped before its first: the command that started it begins it anew."
        )
    raise UserError(
        f"{run} holds no checkpoint that can be loaded: {' and '.join(skipped)}: start the run anew with another --out."
    )


class Damage(UserError):
    """A checkpoint is not whole; ``reason`` says why, after "that of step N"."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder} is not a whole checkpoint ({reason}): use an older one.")
        self.reason = f"is not whole ({reason})"


def whole(folder: Path, wanted: tuple[str, ...], step: int | None = None) -> tuple[Path, dict[str, Any]]:
    """Where a checkpoint lies (it may be moved aside at this moment) and its manifest. Raises ``Damage`` where one of
    its ``wanted`` files is not whole."""
    at = folder if folder.is_dir() else aside(folder)
    try:
        manifest = read_json(at / MANIFEST, "a checkpoint's manifest")
    except FileFault as error:
        raise Damage(
            folder, f"it has no {MANIFEST}" if error.missing else f"its {MANIFEST} is damaged: {error.reason}"
        ) from error
    if manifest.get("format") != FORMAT:
        raise Damage(folder, "it was written by another program or version")
    if SELF in manifest and manifest.pop(SELF) != _own_digest(manifest):
        raise Damage(folder, f"its {MANIFEST} has changed since it was written")
    files = manifest.get("files")
    if (
        not isinstance(manifest.get("step"), int)
        or step not in (None, manifest["step"])
        or not isinstance(files, dict)
        or set(files) != set(FILES)
    ):
        raise Damage(folder, f"its {MANIFEST} does not describe it")
    for name in wanted:
        path, entry = at / name, files[name]
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise Damage(folder, f"its {MANIFEST} says nothing whole of {name}")
        try:
            if not path.is_file():
                raise Damage(folder, f"{name} is missing")
            if path.stat().st_size != entry["bytes"]:
                raise Damage(folder, f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
            if digest(path) != entry["sha256"]:
                raise Damage(folder, f"{name} has changed since it was written")
        except (OSError, FileFault) as error:
            raise Damage(folder, f"{name} cannot be read: {reason_of(error)}") from error
    return at, manifest


def load(folder: Path) -> Checkpoint:
    """Read a whole checkpoint. Raises ``UserError`` when it is damaged."""
    at, manifest = whole(folder, FILES)
    with reading(folder):
        packed = read_json(at / "state.json", "the state of a checkpoint")
        state = _unpack(packed, read_arrays(at / "arrays.npz", "the arrays of a checkpoint"))
        learner = read_tensors(at / "learner.safetensors", "a learner")
        return Checkpoint(
            int(manifest["step"]),
            learner,
            StoredTensors(at / "replay.safetensors", "a replay"),
            state,
            seals_of(manifest),
        )


def load_learner(folder: Path, step: int | None = None) -> dict[str, Tensor]:
    """Only the learner of a checkpoint. Raises ``UserError`` when it is damaged, or of another than the given ``step``."""
    at, _ = whole(folder, LEARNER, step)
    return read_tensors(at / LEARNER[0], "a learner")


def steps(run: Path) -> list[int]:
    """The steps of which there are checkpoints, whole or not, oldest first."""
    return sorted(step for step, _ in _candidates(run))


def seals_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of the files beside the checkpoint; older ones say nothing."""
    seals = manifest.get("seals", {})
    return seals if isinstance(seals, dict) else {}


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What odd content raises while it is taken apart becomes one sentence: the digests are right, so another program
    wrote it."""
    try:
        yield
    except CONTENT_FAULTS as error:
        raise UserError(
            f"{folder} does not hold what a checkpoint of this version does ({type(error).__name__}: {error}): use an older one."
        ) from error


def _candidates(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that looks like a checkpoint, newest first; one that is only moved aside is given
    where it belongs."""
    home = run / "checkpoints"
    try:
        names = {path.name.removeprefix(".old-") for path in home.iterdir() if path.is_dir()}
    except OSError:
        return []
    return sorted(((int(name), home / name) for name in names if name.isascii() and name.isdecimal()), reverse=True)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another that took its place (a new one may get a removed one's number); None where there
    is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def require_storable(state: Any) -> None:
    """Raises ``TypeError`` or ``ValueError`` for a state that a checkpoint could not hold, or not give back."""
    try:
        text = json.dumps(_pack([[{"": state}]], {}))  # as deep in it as it will be
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if len(text) > TEXT_LIMIT:
        raise ValueError(f"it has more than {TEXT_LIMIT:,} characters outside of arrays")
    parse_json(text, object)


def _own_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


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
