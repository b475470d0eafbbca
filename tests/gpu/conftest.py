"""These tests need a GPU and are collected nowhere else. Untested on hardware: no GPU was at hand when they were
written."""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
