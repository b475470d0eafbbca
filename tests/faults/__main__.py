"""`make faults`: every row of the table, and docs/reliability.md anew."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.faults.rows import ROWS, Row, faults

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- made by `make faults`, from here -->", "<!-- to here -->"


def table(rows: Sequence[Row], seconds: float) -> str:
    lines = ["| fault | how it is injected | tried | survived | outcome |", "|---|---|---|---|---|"]
    for row in rows:
        outcome = "; ".join(
            f"{name} ({count})" if len(row.outcomes) > 1 else name for name, count in row.outcomes.items()
        )
        lines.append(f"| {row.fault} | {row.how} | {row.tried} | {row.well} | {outcome or '-'} |")
    tried, well = sum(row.tried for row in rows), sum(row.well for row in rows)
    lines += [
        "",
        f"{well:,} of {tried:,} survived; {seconds / 60:.0f} minutes, PyTorch {torch.__version__},"
        f" {time.strftime('%d %B %Y')}.",
    ]
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    content = page.read_text(encoding="utf-8")
    head, _, rest = content.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the tries")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        choices=[make.__name__ for make in ROWS],
        help="kinds of faults; the page is then left alone",
    )
    parser.add_argument("--write", action="store_true", help="write the page of a share of the tries, too")
    args = parser.parse_args()
    begun = time.monotonic()
    kinds = args.only or [make.__name__ for make in ROWS]
    halves = [["fuzzed"] if "fuzzed" in kinds else [], [kind for kind in kinds if kind != "fuzzed"]]  # each about half of the time
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        fuzzed, others = pool.map(faults, [args.share] * 2, halves)
    rows = others + fuzzed
    if args.write or (args.share >= 1 and not args.only):
        write(PAGE, table(rows, time.monotonic() - begun))
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
