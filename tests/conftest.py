"""Shared by all tests: one thread (two busy cores make OpenMP spin) and headless rendering."""

import os
import signal

os.environ.setdefault("MUJOCO_GL", "egl")

import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and tests send it


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("house")
