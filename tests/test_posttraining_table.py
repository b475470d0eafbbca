"""benchmarks/posttraining.py: runs collected on different days make one table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import posttraining

    yield posttraining
    for name in ("posttraining", "learning"):
        sys.modules.pop(name, None)


def test_runs_of_an_earlier_collection_stay_and_new_ones_take_their_place(benchmark):
    earlier = [{"variant": "steered", "seed": seed, "when": "before"} for seed in (1, 0)]
    new = [{"variant": name, "seed": 0, "when": "now"} for name in ("plain", "steered")]
    found = [(each["variant"], each["seed"], each["when"]) for each in benchmark.together(new, earlier)]
    assert found == [("steered", 0, "now"), ("plain", 0, "now"), ("steered", 1, "before")]


def test_a_paired_change_is_that_of_the_seeds_means_and_says_whose(benchmark):
    rng = np.random.default_rng(0)
    changes = rng.integers(-1, 2, (2, 50)).astype(float)
    runs = [{"variant": "plain", "seed": seed, "changes": dict.fromkeys(benchmark.TABLES, of.tolist())} for seed, of in zip((0, 2), changes)]
    runs.append({"variant": "plain", "seed": 1})  # collected before changes were kept
    found = benchmark.paired(runs)["plain"]["clean"]
    means = changes.mean(0)
    assert found["seeds"] == [0, 2]
    assert found["change"] == pytest.approx(means.mean())
    assert found["error"] == pytest.approx(means.std(ddof=1) / 50**0.5)


def test_every_variant_and_seed_of_the_flow_world_is_planned_once(benchmark, tmp_path):
    benchmark.FLOW.append(tmp_path)
    planned = [(name, seed) for name, seed, _, _ in benchmark.runs(tmp_path)]
    assert len(set(planned)) == len(planned) == len(benchmark.ON_FLOW) * len(benchmark.SEEDS)
    assert {("plain", 1), ("projection", 2)} <= set(planned)
