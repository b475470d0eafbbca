"""Files, written whole or not at all and read with every fault in one sentence. Nothing else reads or writes JSON,
TOML, npz or safetensors.

A writer fills ``.writing-<chance>-<name>`` beside the place, flushes it and renames it: a reader sees the old file or
the new one, and a link is replaced, never written through. A reader checks kind, size and nesting before it works,
never unpickles, and turns whatever its library raises into a ``FileFault``, which names the file and the reason.
"""

from saddlepoint.files.faults import FileFault, reason_of
from saddlepoint.files.locks import Busy, hold_lock
from saddlepoint.files.reading import (
    TEXT_LIMIT,
    StoredTensors,
    copy_rows,
    digest,
    parse_json,
    read_array,
    read_arrays,
    read_bytes,
    read_json,
    read_json_lines,
    read_tensors,
    read_toml,
)
from saddlepoint.files.writing import (
    SEAL,
    atomic_write,
    beside,
    flush,
    is_sealed,
    new_folder,
    remove_unfinished,
    replacing,
    seal_of,
    sealed,
    write_arrays,
    write_json,
    write_tensors,
)

__all__ = [
    "SEAL",
    "TEXT_LIMIT",
    "Busy",
    "FileFault",
    "StoredTensors",
    "atomic_write",
    "beside",
    "copy_rows",
    "digest",
    "flush",
    "hold_lock",
    "is_sealed",
    "new_folder",
    "parse_json",
    "read_array",
    "read_arrays",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_tensors",
    "read_toml",
    "reason_of",
    "remove_unfinished",
    "replacing",
    "seal_of",
    "sealed",
    "write_arrays",
    "write_json",
    "write_tensors",
]  # fmt: skip
