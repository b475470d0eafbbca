"""From values to pixels along an axis, and where its ticks stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BENT_FROM = 2.5
"""an axis of budgets that reaches beyond this many is bent"""
ROUND = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 1e4, 1e5, 1e6)


@dataclass(frozen=True)
class Scale:
    """From values to pixels along one axis.

    ``bent`` is for costs in budgets: linear up to one budget and logarithmic beyond, x -> x for x <= 1 and 1 + ln x for
    x > 1, whose slope is continuous. So a spike of ten budgets leaves the budget at a third of the height.
    """

    low: float
    high: float
    start: float
    end: float
    bent: bool = False

    def __call__(self, value: np.ndarray | float) -> np.ndarray:
        low, high, at = (self._bend(np.asarray(v, float)) for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values from ``low`` to ``high``."""
        if self.bent:
            return [value for value in ROUND if self.low <= value <= self.high]
        return ticks(self.low, self.high, wanted)

    def _bend(self, value: np.ndarray) -> np.ndarray:
        return np.where(value <= 1, value, 1 + np.log(np.maximum(value, 1))) if self.bent else value


def budget_scale(largest: float, start: float, end: float) -> Scale:
    """An axis of costs in budgets from 0 that shows ``largest`` and at least a little above the budget."""
    high = max(1.25, 1.08 * largest)
    return Scale(0.0, high, start, end, bent=high > BENT_FROM)


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About ``wanted`` round numbers (1, 2 or 5 times a power of ten apart) between ``low`` and ``high``."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The texts of an axis' ticks, all in ones, thousands (k) or millions (M)."""
    largest = max(map(abs, values), default=0.0)
    unit, end = (1e6, "M") if largest >= 2e6 else (1e3, "k") if largest >= 1e4 else (1.0, "")
    texts = [f"{float(f'{value / unit:.6g}'):,g}{end if value else ''}" for value in values]
    return [text.replace("-", "−") for text in texts]


def widen(low: float, high: float) -> tuple[float, float]:
    """A range with some width, also where both ends are the same."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)
