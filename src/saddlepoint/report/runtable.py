"""The table of single runs, each at its own end, and their evaluations as a CSV file within the page."""

from __future__ import annotations

import base64
import csv
import io
from html import escape
from pathlib import Path

import numpy as np

from saddlepoint.report import stats
from saddlepoint.report.compared import POLICIES
from saddlepoint.report.media import address
from saddlepoint.report.numbers import ABSENT, decimals, duration, fixed
from saddlepoint.report.palette import swatch
from saddlepoint.report.runs import Environment, Run
from saddlepoint.report.tables import grouped_table


def run_table(env: Environment, styles: dict[str, int], page: Path) -> str:
    """Every run with its last evaluation, wall-clock and files, what they were made with, and a link to all evaluations as CSV."""
    found = [(group.label, run) for group in env.groups for run in group.runs]
    constraints = max(len(run.budgets) for run in env.runs)
    names = list(POLICIES.values())
    columns = [[_last(run, f"{prefix}/return_mean") for _, run in found] for prefix in POLICIES]
    heads: list[tuple[str, list[str]]] = [("method", [""]), ("seed", [""]), ("last evaluation", [""]), ("return", names)]
    for i in range(constraints):
        columns += [[_cost(run, prefix, i) for _, run in found] for prefix in POLICIES]
        heads.append((f"cost{f' {i}' if constraints > 1 else ''}", names))
    machines = sorted({run.machine for _, run in found})
    several = len(machines) > 1
    heads += [("wall-clock", [""]), ("files", [""]), *([("made with", [""])] if several else [])]
    places = [decimals(columns[2 * (i // 2)] + columns[2 * (i // 2) + 1]) for i in range(len(columns))]
    rows = [
        [swatch(label, styles[label]), str(run.seed), _step(run), *(fixed(column[i], digits) for column, digits in zip(columns, places, strict=True)),
         duration(run.wall_s), _files(run, page), *([escape(run.machine)] if several else [])]
        for i, (label, run) in enumerate(found)
    ]  # fmt: skip
    name = env.name.replace("/", "-").replace(":", "-")
    link = f'<a download="{escape(name)}.csv" href="{csv_address(env)}">All evaluations of these runs as CSV</a>'
    made = "" if several else f'<p class="soft">Made with {escape(machines[0])}.</p>'
    return f"<h3>Runs</h3>{grouped_table('Runs', heads, rows)}{made}<p>{link}</p>"


def csv_address(env: Environment) -> str:
    """A data address of a CSV file with a row for every evaluation of every run."""
    lines = [(group.label, run, line) for group in env.groups for run in group.runs for line in run.evaluations()]
    keys = list(dict.fromkeys(key for *_, line in lines for key in line if key not in ("step", "wall_s", "kind")))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["method", "seed", "run", "step", "wall_s", *keys])
    for label, run, line in lines:
        own = [_cell(label), run.seed, _cell(str(run.folder)), line["step"], line["wall_s"]]
        writer.writerow([*own, *(line.get(key, "") for key in keys)])
    return f"data:text/csv;base64,{base64.b64encode(text.getvalue().encode()).decode()}"


def _cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@" else text


def _last(run: Run, name: str) -> float:
    lines = run.evaluations()
    return float(lines[-1].get(name, np.nan)) if lines else float("nan")


def _cost(run: Run, prefix: str, constraint: int) -> float:
    return _last(run, stats.cost_name(prefix, run.budgets, constraint)) if constraint < len(run.budgets) else float("nan")


def _step(run: Run) -> str:
    lines = run.evaluations()
    total = run.config["train"].get("total_steps")
    done = f"{lines[-1]['step']:,}" if lines else ABSENT
    return done if not isinstance(total, int) or (lines and lines[-1]["step"] >= total) else f"{done} of {total:,}"


def _files(run: Run, page: Path) -> str:
    links = [f'<a href="{address(run.folder, page)}/">{escape(run.folder.name)}</a>']
    links += [f'<a href="{address(path, page)}">{escape(path.name)}</a>' for path in run.clips()[-2:]]
    return ", ".join(links)
