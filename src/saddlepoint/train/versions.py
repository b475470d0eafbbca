"""What a run was made with, so that its figures can be made again."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import saddlepoint

PACKAGES = ("numpy", "gymnasium", "mujoco", "diffusers", "transformers", "peft")
SOURCE = Path(saddlepoint.__file__).resolve()


def versions() -> dict[str, str]:
    """The processor, versions of this library, of Python and of the packages whose arithmetic a run is made of; the commit, if this is a checkout of it, with
    ``-dirty`` where files were changed since."""
    found = {"saddlepoint": saddlepoint.__version__, "python": platform.python_version()}
    found["torch"] = str(torch.__version__)  # which says its build; its metadata may not
    found["machine"] = f"{_processor()}, {os.cpu_count()} cores"
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    tracked = _git("ls-files", "--error-unmatch", SOURCE.name) is not None  # a package installed inside another project's checkout is not
    commit = _git("describe", "--always", "--dirty", "--abbrev=10", "--exclude=*") if tracked else None
    return found | ({"commit": commit} if commit else {})


def _processor() -> str:
    """The processor's own name where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=SOURCE.parent, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
