"""The short form of `make faults`: each fault a few times. What is wrong is shown in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.faults.rows import ROWS, Lab, Row, fuzzed


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults"), share=0.02)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "rows", [rows for rows in ROWS if rows is not fuzzed], ids=lambda rows: rows.__name__
)  # tests/test_fuzz.py has those
def test_faults_cost_nothing(rows: Callable[[Lab], Iterator[Row]], lab: Lab) -> None:
    for row in rows(lab):
        assert not row.wrong, f"{row.fault}: {row.wrong[0]}"
        assert row.well == row.tried > 0
