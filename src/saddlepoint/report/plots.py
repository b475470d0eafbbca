"""Charts as inline SVG that take ink, font and colours from the page's style sheet. Text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from saddlepoint.report.numbers import fixed, number
from saddlepoint.report.palette import COLOURS, colour
from saddlepoint.report.scale import Scale, tick_labels, widen
from saddlepoint.report.stats import Interval

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 402, 12, 198
BAR, EDGE = 180, 8
DASHES = 4
"""patterns of the lines of seeds"""
APART = 12
"""pixels between the names at the ends of lines"""


@dataclass(frozen=True)
class Curve:
    """One line of a chart, with a band where there are at least three seeds."""

    label: str
    style: int
    """number of the method's colour"""
    x: np.ndarray  # (points,)
    y: np.ndarray  # (points,)
    band: tuple[np.ndarray, np.ndarray] | None = None
    seed: int | None = None
    """the seed, of a single run; None for a mean"""
    rank: int = 0
    """number of the seed within its method, which has its own dashes"""
    beside_mean: bool = False
    """whether the mean of its method is drawn as well"""
    bound: float | None = None
    """the budget of a curve in budgets, with which a tooltip also says the cost itself"""


def value_range(curves: Sequence[Curve], marks: Sequence[float] = ()) -> tuple[float, float]:
    """The range of the vertical axis that shows all lines, bands and marks, with a little room."""
    parts = [np.asarray(marks, float), *(curve.y for curve in curves)]
    parts += [end for curve in curves if curve.band for end in curve.band]
    values = np.concatenate(parts)
    low, high = float(values.min()), float(values.max())
    flat = high - low <= 1e-6 * max(abs(low), abs(high))  # rounding alone is no range
    room = 0.5 * abs(high) or 0.5 if flat else 0.05 * (high - low)
    return low - room, high + room


def line_chart(
    curves: Sequence[Curve], x_label: str, alt: str, across: tuple[float, float], up: tuple[float, float],
    marks: Sequence[tuple[float, str]] = (), bent: bool = False,
) -> str:  # fmt: skip
    """Lines and bands over the ranges ``across`` and ``up``; ``marks`` are levels with a name, above which is too much.

    ``bent``: the vertical axis is logarithmic above 1. Empty text without curves.
    """
    if not curves:
        return ""
    x, y = Scale(*widen(*across), LEFT, RIGHT), Scale(*up, BOTTOM, TOP, bent)
    parts = [_over(y, level) for level, _ in marks]
    parts.append(_grid(x, y, x_label))
    parts += [_band(curve, x, y) for curve in curves if curve.band]
    parts += [_line(curve, x, y) for curve in sorted(curves, key=lambda curve: not curve.beside_mean)]
    parts += [_mark(float(y(level)), name) for level, name in marks]
    parts += _seed_names(curves, x, y)
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{BOTTOM}" x1="-9" x2="-9"/>')
    return _svg("chart", "".join(parts), alt, 'tabindex="0" ')


def scatter(points: Sequence[tuple[str, int, np.ndarray, np.ndarray]], labels: tuple[str, str], alt: str) -> str:
    """Dots (label, style, x, y) on one scale for both axes, with the line y = x; the last of each is drawn full."""
    values = np.concatenate([part for _, _, x, y in points for part in (x, y)])
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.5
    x, y = Scale(low - room, high + room, LEFT, RIGHT), Scale(low - room, high + room, BOTTOM, TOP)
    parts = [_grid(x, y, labels[0])]
    parts.append(f'<line class="level" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{TOP}"/>')
    parts.append(f'<text transform="rotate(-90 11 {(TOP + BOTTOM) / 2})" x="11" y="{(TOP + BOTTOM) / 2}" text-anchor="middle">{escape(labels[1])}</text>')
    for label, style, across, up in points:
        left, top = x(across), y(up)
        for i in range(len(left)):
            newest = i == len(left) - 1
            words = f"{label}: measured {number(across[i])}, predicted {number(up[i])}"
            parts.append(
                f'<circle class="dot s{style % COLOURS}{" newest" * newest} m{style}" cx="{left[i]:.1f}" cy="{top[i]:.1f}"'
                f' r="{4.5 if newest else 2.5}"><title>{escape(words)}</title></circle>'
            )
    return _svg("scatter", "".join(parts), alt)


def interval_bar(interval: Interval, span: tuple[float, float], style: int, mark: float | None = None) -> str:
    """A dot with its interval on the scale of ``span``, for a cell of a table beside the numbers themselves."""
    scale = Scale(*widen(*span), EDGE, BAR - EDGE)
    low, middle, high = (float(scale(value)) for value in (interval.low, interval.value, interval.high))
    level = "" if mark is None else f'<line class="level" x1="{scale(mark):.1f}" x2="{scale(mark):.1f}" y1="0" y2="18"/>'
    return (
        f'<svg class="bar {colour(style)}" viewBox="0 0 {BAR} 18" aria-hidden="true"'
        f' xmlns="http://www.w3.org/2000/svg">{level}<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9"/>'
        f'<circle cx="{middle:.1f}" cy="9" r="4.5"/></svg>'
    )


def interval_axis(span: tuple[float, float]) -> str:
    """The axis above interval bars of the same ``span``: ticks with their values."""
    scale = Scale(*widen(*span), EDGE, BAR - EDGE)
    shown = scale.ticks(3)
    parts = [f'<line class="axis" x1="{EDGE}" x2="{BAR - EDGE}" y1="17" y2="17"/>']
    for value, words in zip(shown, tick_labels(shown), strict=True):
        at = float(scale(value))
        anchor = "start" if at < 20 else "end" if at > BAR - 20 else "middle"
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="13" y2="17"/>')
        parts.append(f'<text x="{at:.1f}" y="10" text-anchor="{anchor}">{words}</text>')
    return f'<svg class="bar" viewBox="0 0 {BAR} 18" aria-hidden="true" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _svg(kind: str, body: str, alt: str, more: str = "") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {more}aria-label="{escape(alt)}"'
        f' xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _grid(across: Scale, up: Scale, x_label: str) -> str:
    parts = []
    for value, words in zip(up.ticks(), tick_labels(up.ticks()), strict=True):
        y = float(up(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{words}</text>')
    for value, words in zip(across.ticks(), tick_labels(across.ticks()), strict=True):
        x = float(across(value))
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{words}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _over(up: Scale, level: float) -> str:
    height = float(up(level)) - TOP
    return f'<rect class="over" x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{max(height, 0):.1f}"/>'


def _mark(y: float, name: str) -> str:
    text_y = y - 5 if y > TOP + 16 else y + 12
    return (
        f'<line class="level" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="name" x="{LEFT + 5}" y="{text_y:.1f}">{escape(name)}</text>'
    )


def _band(curve: Curve, across: Scale, up: Scale) -> str:
    assert curve.band is not None
    x, (low, high) = across(curve.x), (np.clip(up(end), TOP, BOTTOM) for end in curve.band)
    outline = _points(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]))
    return f'<polygon class="band s{curve.style % COLOURS} m{curve.style}" points="{outline}"/>'


def _line(curve: Curve, across: Scale, up: Scale) -> str:
    """The line, with each of its values in words for the tooltip; a lone point is drawn as a dot with its value."""
    x, y = across(curve.x), np.clip(up(curve.y), TOP, BOTTOM)
    words = "|".join(_words(curve, i) for i in range(len(curve.x)))
    steps = "|".join(number(value, 4) for value in curve.x)
    kind = "" if curve.seed is None else f" seed d{curve.rank % DASHES}{' beside' * curve.beside_mean}"
    dot = ""
    if len(x) == 1:
        dot = (
            f'<circle cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="4"/><text x="{x[0] - 8:.1f}" y="{y[0] + 3.5:.1f}"'
            f' text-anchor="end">{number(curve.y[0])}</text>'
        )
    return (
        f'<g class="curve {colour(curve.style)} m{curve.style}{kind}" data-label="{escape(curve.label)}"'
        f' data-steps="{steps}" data-values="{escape(words)}"><polyline points="{_points(x, y)}"/>{dot}</g>'
    )


def _words(curve: Curve, i: int) -> str:
    value = curve.y[i]
    text = number(value)
    if curve.band:
        text += f" [{number(curve.band[0][i])}, {number(curve.band[1][i])}]"
    if curve.bound is not None:
        places = 1 if curve.bound >= 10 else 2
        text += f" budgets ({fixed(value * curve.bound, places)} of {number(curve.bound, 4)})"
    return text


def _seed_names(curves: Sequence[Curve], across: Scale, up: Scale) -> list[str]:
    """The seed at the end of its line, moved apart where several lines end together."""
    named = [c for c in curves if c.seed is not None and not c.beside_mean and len(c.x) > 1]
    named.sort(key=lambda curve: float(up(curve.y[-1])))
    heights = _apart([float(np.clip(up(curve.y[-1]), TOP, BOTTOM)) for curve in named])
    return [
        f'<text class="seedname s{curve.style % COLOURS} m{curve.style}" x="{float(across(curve.x[-1])) + 4:.1f}"'
        f' y="{height + 3:.1f}">{curve.seed}</text>'
        for curve, height in zip(named, heights, strict=True)
    ]


def _apart(heights: list[float]) -> list[float]:
    """Ascending heights at least ``APART`` from one another, and no lower than the axis where there is room."""
    room = APART if len(heights) * APART <= BOTTOM - TOP else (BOTTOM - TOP) / max(len(heights), 1)
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + room)
    for i in reversed(range(len(heights))):
        below = BOTTOM if i + 1 == len(heights) else heights[i + 1] - room
        heights[i] = min(heights[i], below)
    return heights


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
