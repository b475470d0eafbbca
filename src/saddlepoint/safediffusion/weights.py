"""Files of weights and configs: what they hold by their headers, and digests that tell a changed one."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saddlepoint.files import StoredTensors, parse_json
from saddlepoint.types import UserError

SAMPLES, SAMPLE_BYTES = 64, 65536
"""pieces of a file that tell it from another: all of a small one, a thousandth of a large one, which would take long to
read"""
PATTERNS = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
"""weights, configs and vocabularies: all that pictures depend on"""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(?P<variant>[A-Za-z0-9_]+?))?(?:-\d+-of-\d+)?\.safetensors"
)

ADAPTERS = re.compile(r"(?:^|[._-])(?:lora|loha|hada|lokr|dora|oft|boft|ia3)(?:[._-]|$)", re.IGNORECASE)
"""in the names of adapters' tensors and files, whoever wrote them: peft, diffusers, kohya's scripts, LyCORIS"""
MERGE = (
    "merge them into the pipeline's weights first, with diffusers' load_lora_weights, fuse_lora and unload_lora_weights or peft's"
    " merge_and_unload, and save_pretrained"
)


def folder_files(folder: Path) -> dict[str, str]:
    """A digest of the size and of pieces of each file of weights, config or vocabulary below a folder, by its path
    there."""
    found = sorted(path for pattern in PATTERNS for path in folder.rglob(pattern) if path.is_file())
    names = {path: path.relative_to(folder) for path in found}
    return {
        name.as_posix(): _fingerprint(path)
        for path, name in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def changed_file(before: dict[str, str], now: dict[str, str]) -> str | None:
    """The first file, or the commit of a hub id, that differs. Runs of older versions kept weights only, and of hub ids nothing: then only that is compared."""
    if "revision" not in before and not any(name.endswith(".json") for name in before):
        now = {name: digest for name, digest in now.items() if name.endswith((".safetensors", ".bin"))}
    return next((name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)), None)


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(size * i // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


class Stored(NamedTuple):
    """The weights of one part, as its files' headers tell."""

    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    """of most of them"""
    variant: str | None
    """fp16 and the like, where only files with such a name are there"""

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def stored_weights(folder: Path, part: str) -> Stored:
    """What ``folder/part`` holds. Raises ``UserError`` when there are no safetensors weights, when a header cannot be
    read, and for adapters, of which the libraries leave some out without a word."""
    chosen, variant = chosen_weights(path.name for path in (folder / part).glob("*.safetensors"))
    if not chosen:
        there = ", ".join(sorted(path.name for path in (folder / part).iterdir() if path.is_file())) or "nothing"
        raise UserError(
            f"{folder if part == '.' else f'the {part} of {folder}'} has no safetensors weights (there is {there}): save the pipeline with"
            " safe_serialization=True, or download a hub's whole."
        )
    beside = [path.name for path in sorted((folder / part).iterdir()) if path.name.startswith("adapter_") or ADAPTERS.search(path.name)]
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for name in chosen:
        for key, entry in _header(folder / part / name).items():
            shapes[key] = tuple(entry["shape"])
            sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + entry["data_offsets"][1] - entry["data_offsets"][0]
    if adapters := beside or [key for key in shapes if ADAPTERS.search(key)]:
        raise UserError(
            f"{folder if part == '.' else f'the {part} of {folder}'} has adapters ({adapters[0]}), which are not read:"
            f" {MERGE}."
        )
    most = max(sizes, key=lambda name: sizes[name], default="F32")
    return Stored(shapes, DTYPES.get(most, torch.float32), variant)


def chosen_weights(names: Iterable[str]) -> tuple[list[str], str | None]:
    """Of a part's files its weights, and None: those without a variant; where there are only variants, one of them and
    its name."""
    matches = {name: match for name in sorted(names) if (match := WEIGHTS.fullmatch(name))}
    variants = {match["variant"] for match in matches.values()}
    variant = None if None in variants else min(variants, default=None)
    return [name for name, match in matches.items() if match["variant"] == variant], variant


def _header(path: Path) -> dict[str, Any]:
    StoredTensors(path, "weights", "restore the file")  # whole, with sizes that agree
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= path.stat().st_size:
                raise ValueError("it is cut off")
            header = parse_json(file.read(length))
        return {key: entry for key, entry in header.items() if key != "__metadata__"}
    except (OSError, ValueError) as error:
        raise UserError(f"the weights {path} cannot be read ({error}): restore the file.") from error
