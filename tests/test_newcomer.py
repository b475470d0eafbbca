"""examples/newcomer.sh on small sizes: a clean installation of the wheel does all that the script shows, from a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from saddlepoint.train.log import read_metrics

ROOT = Path(__file__).parents[1]
FLAGS = "--warmup-steps 50 --eval-every 200 --updates-per-step 0.1 --batch-size 16 --replay-size 1000 --threads 1 --compile off --quiet"


@pytest.mark.timeout(900)
def test_from_a_wheel_to_a_control_loop_and_an_algorithm_of_ones_own(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"PYTHON": sys.executable, "PACKAGES": sysconfig.get_path("purelib"), "STEPS": "200", "FLAGS": FLAGS, "OMP_NUM_THREADS": "1"}
    script = ROOT / "examples" / "newcomer.sh"
    done = subprocess.run(["bash", str(script), str(tmp_path)], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    work = tmp_path / "work"
    where = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", "import saddlepoint; print(saddlepoint.__file__)"],
        env=environ, cwd=work, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(tmp_path / "venv"))
    assert read_metrics(work / "runs/cart")[-1]["step"] == 300
    assert re.search(r"50 actions at 50 Hz, the slowest in [\d.]+ ms; 2 held", done.stdout)
    assert (work / "policy.onnx").stat().st_size > 0
    assert "own_algorithm.py" in done.stdout
    page = (work / "report.html").read_text()
    assert "algd" in page
    assert "td3-lag" in page
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        shown = message_from_bytes(file.read(next(name for name in file.namelist() if name.endswith("/METADATA"))))
    assert shown["Description-Content-Type"] == "text/markdown"
    assert "## Results" in str(shown.get_payload())
    assert re.findall(r"\]\((?!https:).*?\)", str(shown.get_payload())) == []  # pictures and pages that an index has not
