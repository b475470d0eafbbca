"""Numbers as text: rounded to what a reader can use, and aligned within a column."""

from __future__ import annotations

import math
from collections.abc import Sequence

ABSENT = "–"
"""stands for what a run does not have, such as an option that is newer than the run"""


def number(value: float, digits: int = 3) -> str:
    """A value in at most ``digits`` significant digits (whole from 1000 on), with a true minus sign."""
    if not math.isfinite(value):
        return ABSENT
    text = f"{value:,.0f}" if abs(value) >= 999.5 else f"{float(f'{value:.{digits}g}'):g}"
    return text.replace("-", "−")


def decimals(values: Sequence[float]) -> int:
    """Digits after the point with which a column of ``values`` is shown: about three significant ones of the largest."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if largest >= 99.95 else 1 if largest >= 9.995 else 2 if largest >= 0.995 or largest == 0 else 3


def fixed(value: float, places: int) -> str:
    """A value with ``places`` digits after the point, thousands apart, with a true minus sign and no minus zero."""
    if not math.isfinite(value):
        return ABSENT
    text = f"{value:,.{places}f}"
    return text.replace("-", "") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def spread(values: Sequence[float], places: int) -> str:
    """Three seeds or more as mean ± standard deviation, fewer as the values themselves."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ABSENT
    if len(finite) < 3:
        return " · ".join(fixed(value, places) for value in finite)
    mean = sum(finite) / len(finite)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in finite) / (len(finite) - 1))
    return f"{fixed(mean, places)} <span class=\"pm\">± {fixed(deviation, places)}</span>"


def percent(share: float) -> str:
    """A share as whole percent."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else ABSENT


def duration(seconds: float) -> str:
    """Seconds of wall-clock as ``42 s``, ``7 min`` or ``3 h 05 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def plural(count: int, word: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count} {word}{'' if count == 1 else 's'}"
