"""Where the recorded numbers of the released programs lie: SADDLEPOINT_FIXTURES, else ../shared/fixtures beside the checkout, else tests/data."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


def folder(name: str) -> Path:
    """The fixture folder of one system; skips the test with a message when there is none.

    Raises ``FileNotFoundError`` when SADDLEPOINT_FIXTURES names no folder: a wrong name must not pass as skipped tests.
    """
    named = os.environ.get("SADDLEPOINT_FIXTURES")
    if named and not Path(named).is_dir():
        raise FileNotFoundError(f"SADDLEPOINT_FIXTURES names no folder: {named}")
    places = [Path(named)] if named else [ROOT.parent / "shared" / "fixtures", ROOT / "tests" / "data" / "fixtures"]
    for place in places:
        if (place / name).is_dir():
            return place / name
    pytest.skip(
        f"no fixtures of {name} in {', '.join(map(str, places))}: set SADDLEPOINT_FIXTURES", allow_module_level=True
    )


@dataclass
class Recording:
    """Arrays (float64) and scalars of one recorded program."""

    arrays: dict[str, Tensor]
    scalars: dict[str, Any]

    @classmethod
    def load(cls, system: str, name: str) -> Recording:
        place = folder(system)
        arrays = {
            k: v.double() if v.is_floating_point() else v for k, v in load_file(place / f"{name}.safetensors").items()
        }
        scalars = json.loads((place / f"{name}.json").read_text())["scalars"]
        return cls(arrays, {k: v["value"] for k, v in scalars.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def close(self, got: Tensor, name: str, atol: float = 1e-9) -> None:
        """``got`` equals the recorded array ``name``: same shape, and within ``atol`` in float64."""
        torch.testing.assert_close(
            got.detach().double(), self.arrays[name], rtol=1e-9, atol=atol, msg=lambda m: f"{name}: {m}"
        )
