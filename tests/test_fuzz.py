"""Every reader of files against files damaged at random: one sentence or a whole answer, never a traceback. `make
faults` tries 1,000 a reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fuzz import Reader, fuzz
from tests.faults.readers import LOADED, RESUMED, picture_readers, readers

COUNT = 150
SLOW = {"config.json, policy": 60, "settings of --config": 40}
RESUME = 15
"""for each file of a run that is resumed"""


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return {reader.name: reader for reader in readers(tmp_path_factory.mktemp("fuzz"))}


NAMES = (
    "config.json, policy", "config.json, resume", "config.json, report", "metrics.jsonl, report", "metrics.jsonl, resume", "manifest.json", "state.json",
    "arrays.npz", "learner.safetensors", "replay.safetensors", "dataset.json", "episodes.npy", "chunk .pt", "sweep's TOML", "sweep.json",
    "settings of --config", "safetensors", "npz", "npy",
)  # fmt: skip


def test_all_readers_are_named(all_readers: dict[str, Reader]) -> None:
    assert tuple(all_readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_one_sentence(all_readers: dict[str, Reader], name: str, tmp_path: Path) -> None:
    reader = all_readers[name]
    tally = fuzz(reader, RESUME if reader.count == RESUMED else SLOW.get(name, COUNT))
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.refused + tally.accepted == tally.tried
    assert tally.refused > 0 or name.startswith("metrics")  # of which only the damaged line is left out
    reader.read()


def test_damaged_text_to_image_files_are_one_sentence(tmp_path: Path) -> None:
    for reader in picture_readers(tmp_path):
        tally = fuzz(reader, 2 if reader.count == LOADED else 20)
        assert not tally.faults, "\n".join(tally.faults)
