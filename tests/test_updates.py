"""Updates under autograd against those of commit f03bf82, whose derivatives were written by hand: three in float64, every learner and option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.update_cases import cases, run

RECORDED = json.loads(Path(__file__).with_name("data").joinpath("updates.json").read_text())


@pytest.fixture(scope="module")
def agents():
    return cases()


@pytest.mark.parametrize("name", RECORDED)
def test_three_updates_are_those_recorded(agents, name):
    wanted, found = RECORDED[name], run(*agents[name])
    for metric, number in wanted["metrics"].items():
        assert found["metrics"][metric] == pytest.approx(number, rel=1e-9, abs=1e-11), metric
    for tensor, numbers in wanted["state"].items():
        assert found["state"][tensor] == pytest.approx(numbers, rel=1e-9, abs=1e-11), tensor
