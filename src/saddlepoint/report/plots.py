"""Charts as inline SVG that take ink, font and colours from the page's style sheet. Text in, text out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from saddlepoint.report.stats import Interval

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 402, 12, 212
BAR = 180


@dataclass(frozen=True)
class Curve:
    """One line of a chart, with a band where there are several seeds."""

    label: str
    style: int
    """number of the method, which has its own colour (and dashes beyond the seventh)"""
    x: np.ndarray  # (points,)
    y: np.ndarray  # (points,)
    band: tuple[np.ndarray, np.ndarray] | None = None
    thin: bool = False
    """a single seed and not a mean"""


@dataclass(frozen=True)
class Scale:
    """From values to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: np.ndarray | float) -> np.ndarray:
        share = (np.asarray(value, float) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def value_range(curves: Sequence[Curve], marks: Sequence[float] = ()) -> tuple[float, float]:
    """The range of the vertical axis that shows all lines, bands and marks, with a little room."""
    parts = [np.asarray(marks, float), *(curve.y for curve in curves)]
    parts += [end for curve in curves if curve.band for end in curve.band]
    values = np.concatenate(parts)
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def line_chart(
    curves: Sequence[Curve], x_label: str, alt: str, across: tuple[float, float], up: tuple[float, float],
    marks: Sequence[tuple[float, str]] = (),
) -> str:  # fmt: skip
    """Lines and bands over the ranges ``across`` and ``up`` of the two axes; ``marks`` are dashed levels with a name. Empty text without curves."""
    if not curves:
        return ""
    x, y = Scale(*_widen(*across), LEFT, RIGHT), Scale(*up, BOTTOM, TOP)
    parts = [_grid(x, y, x_label)]
    parts += [_band(curve, x, y) for curve in curves if curve.band]
    parts += [_line(curve, x, y) for curve in curves]
    parts += [_mark(float(y(level)), name) for level, name in marks]
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{BOTTOM}" x1="-9" x2="-9"/>')
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{escape(alt)}"'
        f' xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def interval_bar(interval: Interval, span: tuple[float, float], style: int, mark: float | None = None) -> str:
    """A dot with its interval on the scale of ``span``, for a cell of a table beside the numbers themselves."""
    scale = Scale(*_widen(*span), 6, BAR - 6)
    low, middle, high = (float(scale(value)) for value in (interval.low, interval.value, interval.high))
    level = "" if mark is None else f'<line class="level" x1="{scale(mark):.1f}" x2="{scale(mark):.1f}" y1="0" y2="18"/>'
    return (
        f'<svg class="bar s{style % 7}" viewBox="0 0 {BAR} 18" aria-hidden="true" xmlns="http://www.w3.org/2000/svg">{level}'
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9"/><circle cx="{middle:.1f}" cy="9" r="4.5"/></svg>'
    )


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About ``wanted`` round numbers (1, 2 or 5 times a power of ten apart) between ``low`` and ``high``."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def number(value: float, digits: int = 4) -> str:
    """A value in at most ``digits`` significant digits (whole from 1000 on), with a true minus sign."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 999.5 else f"{float(f'{value:.{digits}g}'):g}"
    return text.replace("-", "−")


def _tick(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M".replace("-", "−")
    return f"{value / 1e3:g}k".replace("-", "−") if abs(value) >= 1e4 else f"{value:.6g}".replace("-", "−")


def _grid(across: Scale, up: Scale, x_label: str) -> str:
    parts = []
    for value in ticks(up.low, up.high, 5):
        y = float(up(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    for value in ticks(across.low, across.high, 5):
        x = float(across(value))
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 17}" text-anchor="middle">{_tick(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _mark(y: float, name: str) -> str:
    text_y = y - 5 if y > TOP + 16 else y + 14
    return (
        f'<line class="level" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="name" x="{RIGHT}" y="{text_y:.1f}" text-anchor="end">{escape(name)}</text>'
    )


def _band(curve: Curve, across: Scale, up: Scale) -> str:
    assert curve.band is not None
    x, (low, high) = across(curve.x), (np.clip(up(end), TOP, BOTTOM) for end in curve.band)
    outline = _points(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]))
    return f'<polygon class="band s{curve.style % 7}" points="{outline}"/>'


def _line(curve: Curve, across: Scale, up: Scale) -> str:
    """The line, with each of its values in words for the tooltip; a lone point is drawn as a dot."""
    x, y = across(curve.x), np.clip(up(curve.y), TOP, BOTTOM)
    words = []
    for i in range(len(curve.x)):
        between = f" [{number(curve.band[0][i])}, {number(curve.band[1][i])}]" if curve.band else ""
        words.append(f"{number(curve.x[i])}: {number(curve.y[i])}{between}")
    kind = " thin" * curve.thin + " dashed" * (curve.style >= 7)
    dot = f'<circle cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="3"/>' if len(x) == 1 else ""
    return (
        f'<g class="curve s{curve.style % 7}{kind}" data-label="{escape(curve.label)}" data-values="{escape("|".join(words))}">'
        f'<polyline points="{_points(x, y)}"/>{dot}</g>'
    )


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _widen(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)
