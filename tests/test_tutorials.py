"""The tutorials run, in short, and their pages are made of the scripts as they are now."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ASSETS = Path(__file__).parents[1] / "docs" / "assets"


@pytest.fixture(scope="module")
def tutorials() -> ModuleType:
    """docs/assets/tutorials.py, which is no part of the package."""
    spec = spec_from_file_location("tutorials", ASSETS / "tutorials.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["toy", "robot_arm", "tiny_world"])
def test_a_page_has_the_cells_of_its_script(tutorials: ModuleType, name: str) -> None:
    page = (tutorials.DOCS / tutorials.TUTORIALS[name]).read_text()
    at = 0
    for cell in tutorials.cells(tutorials.EXAMPLES / f"{name}.py"):
        text = f"```python\n{cell.source}\n```\n" if cell.is_code else tutorials.PICTURE.sub("", cell.source).split("![")[0].strip()
        found = page.find(text, at)
        assert found >= 0, f"{tutorials.TUTORIALS[name]} is not of this script: run python docs/assets/tutorials.py {name}"
        at = found + len(text)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("toy", {"STEPS": 40}),
        ("robot_arm", {"STEPS": 40, "SECONDS": 3}),
        ("tiny_world", {"EPOCHS": 1, "PICTURES": 4}),
    ],
)
def test_a_tutorial_runs(
    tutorials: ModuleType, name: str, constants: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers" if name == "tiny_world" else "onnxruntime")
    monkeypatch.setenv("COLUMNS", "110")
    before = set(sys.modules)
    script = tutorials.EXAMPLES / f"{name}.py"
    printed = tutorials.execute(script, tmp_path, **constants)
    for other in {"arm", "wrapped_arm"} - before:
        sys.modules.pop(other, None)
    shown = [picture for cell in tutorials.cells(script) if not cell.is_code for _, picture in tutorials.PICTURE.findall(cell.source)]
    assert all((tmp_path / picture).stat().st_size > 1000 for picture in shown)
    said = "".join(printed)
    if name == "robot_arm":
        assert "150 actions, 25 of them held" in said
        assert "Dict" in said
    assert "finished" in said or "within budget" in said or "OVER budget" in said
