"""One chunk of TD-MPC2's multi-task data, read without running anything that it says.

A chunk is a ``tensordict.TensorDict`` of batch shape (episodes, rows), saved with ``torch.save``: obs (episodes, rows,
observation), action (episodes, rows, action), reward and task (episodes, rows). Row t holds the observation after the
action of row t, so the first action and reward are nan. PyTorch's restricted unpickler reads it: of a pickle it admits
tensors and plain containers alone, to which the names of tensordict's classes are added here; they stand for plain
containers, and tensordict itself is not needed. Every part of the file is held to the CRC-32 that it carries; then the
tensors are mapped into memory.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from saddlepoint.types import UserError

FIELDS = ("obs", "action", "reward", "task")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Chunk(NamedTuple):
    """Episodes as stored, mapped into memory."""

    path: Path
    obs: Tensor  # (episodes, rows, observation)
    action: Tensor  # (episodes, rows, action)
    reward: Tensor  # (episodes, rows)
    task: Tensor  # (episodes, rows) integers


class SavedTensorDict:
    """Stands for a pickled TensorDict: its state and nothing else."""

    entries: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        """All versions keep the entries as ``_tensordict``, beside batch size, device and locks, which are not
        needed here."""
        inner = state.get("_tensordict") if isinstance(state, dict) else None
        if not isinstance(inner, dict):
            raise pickle.UnpicklingError("a TensorDict without entries")
        self.entries = inner


KNOWN = (
    (SavedTensorDict, "tensordict.tensordict.TensorDict"),  # until 0.2
    (SavedTensorDict, "tensordict._td.TensorDict"),  # from 0.3 on
    (OrderedDict, "tensordict.utils._StringOnlyDict"),  # the dict of the entries until 2025
)
"""names in a pickle, and what they are taken for"""


def read_chunk(path: Path) -> Chunk:
    """The chunk at ``path``. Raises ``UserError`` where it is not one, not whole, or names anything but data."""
    if not path.is_file():
        raise UserError(f"there is no chunk {path}: give the .pt files of the data set.")
    try:
        records = _records(path)
        with safe_globals(list(KNOWN)):
            odd = sorted(get_unsafe_globals_in_checkpoint(str(path)))
            if odd:
                raise UserError(
                    f"{path} names {', '.join(odd)}, which is not data: nothing of it was run; do not trust that file."
                )
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} cannot be read ({_reason(error)}): fetch it again.") from error
    entries = saved.entries if isinstance(saved, SavedTensorDict) else saved
    missing = [name for name in FIELDS if not isinstance(entries, dict) or not isinstance(entries.get(name), Tensor)]
    if missing:
        raise UserError(f"{path} has no tensor {' and no tensor '.join(missing)}: it is not a chunk of TD-MPC2's data.")
    chunk = Chunk(path, *(entries[name] for name in FIELDS))
    _require_stored(chunk, records)
    return _checked(chunk)


def _records(path: Path) -> Counter[int]:
    """Sizes in bytes of the parts of the file, and how many have each, once all of them agree with their CRC-32.
    Raises ``UserError`` for other files."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is no whole file of torch.save's (its end is missing, or it is of another kind): fetch it again."
        )
    with zipfile.ZipFile(path) as parts:
        sizes = [part.file_size for part in parts.infolist()]
        if (
            any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist())
            or sum(sizes) > path.stat().st_size
        ):
            raise UserError(f"{path} is compressed, which torch.save never does: fetch it again.")
        changed = parts.testzip()
    if changed is not None:
        raise UserError(
            f"{path} has changed since it was written (the CRC-32 of {changed} does not agree): fetch it again."
        )
    return Counter(sizes)


def _require_stored(chunk: Chunk, records: Counter[int]) -> None:
    """Raises ``UserError`` unless every number of the tensors stands in the file: none is repeated by a stride of 0,
    none lies behind the end of its part."""
    storages: dict[int, int] = {}
    for name in FIELDS:
        values: Tensor = getattr(chunk, name)
        if values.layout is not torch.strided or values.device.type != "cpu" or values.is_quantized or values.is_nested:
            raise UserError(f"{chunk.path}: {name} is not a plain tensor: it is not a chunk of TD-MPC2's data.")
        if values.dtype not in (INTEGERS if name == "task" else FLOATS):
            raise UserError(f"{chunk.path}: {name} holds {values.dtype}: it is not a chunk of TD-MPC2's data.")
        storage = values.untyped_storage()
        if values.numel() * values.element_size() > storage.nbytes():
            raise UserError(
                f"{chunk.path}: {name} has the shape {tuple(values.shape)} and only {storage.nbytes():,} bytes in the"
                " file: do not trust it."
            )
        storages[storage.data_ptr()] = storage.nbytes()
    if Counter(storages.values()) - records:
        raise UserError(f"{chunk.path}: a tensor is longer than its part of the file: fetch it again.")


def _reason(error: Exception) -> str:
    """What PyTorch says went wrong, without its advice, which is to load the file unsafely."""
    said = re.search(r"WeightsUnpickler error:\s*(.+)", str(error)) or re.search(r"(.+)", str(error))
    return said[1].split("(Could this error")[0].strip().rstrip(".") if said else type(error).__name__


def _checked(chunk: Chunk) -> Chunk:
    episodes_and_rows = chunk.obs.shape[:2]
    dimensions = {"obs": 3, "action": 3, "reward": 2, "task": 2}
    for name, number in dimensions.items():
        values: Tensor = getattr(chunk, name)
        if values.ndim != number or values.shape[:2] != episodes_and_rows:
            shape, obs = tuple(values.shape), tuple(chunk.obs.shape)
            raise UserError(
                f"{chunk.path}: {name} has the shape {shape}, which does not fit obs {obs}: it is not a chunk of"
                " TD-MPC2's data."
            )
    if 0 in chunk.obs.shape or 0 in chunk.action.shape:
        raise UserError(
            f"{chunk.path}: it has no episodes, or no observations or actions: it is not a chunk of TD-MPC2's data."
        )
    if episodes_and_rows[1] < 2:
        raise UserError(f"{chunk.path}: an episode has {episodes_and_rows[1]} row(s), and at least two make a step.")
    return chunk
