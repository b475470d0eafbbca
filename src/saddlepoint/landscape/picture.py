"""The landscape as a picture: the energy in colour with its contours, the denoising paths and the sampled actions on
it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saddlepoint import figures
from saddlepoint.files import replacing
from saddlepoint.landscape.slices import KINDS, Landscape, Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

FORMATS = (".png", ".svg", ".pdf")
PATHS_DRAWN = 12
ORANGE = "#E69F00"
INK = "#123456"
"""what stands for the page's own ink in an SVG: no other colour of the picture is this one"""
LEGEND = "white lines: denoising paths    orange: sampled actions    cross: noise-free action"
CONTOURS = 12


def save_picture(landscape: Landscape, path: Path) -> None:
    """All slices in one file on one colour scale, a row each, the kinds of energy side by side.

    Raises ``UserError`` when it cannot be written.
    """
    from matplotlib.figure import Figure

    rows, largest = len(landscape.slices), height(landscape.slices)
    with figures.style():
        figure = Figure(figsize=(9.2, 3.7 * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, len(KINDS), squeeze=False)
        for axes, part in zip(grid, landscape.slices, strict=True):
            for axis, kind in zip(axes, KINDS, strict=True):
                image = draw(axis, part, kind, largest)
                axis.set_title(f"{kind} Lagrangian\n{title(part)}")
        bar = figure.colorbar(image, ax=grid, shrink=0.9 / rows**0.5, aspect=30)
        bar.set_label("energy above the lowest of its panel (reward units)")
        figure.suptitle(landscape.describe(), x=0.01, ha="left")
        figure.supxlabel(LEGEND, fontsize=9, color=figures.SOFT)
        _save(figure, path)


def title(part: Slice) -> str:
    """Which state a slice is of."""
    return f"{part.state.title}, step {part.state.step}, R\u00a0−\u00a0h\u00a0=\u00a0{part.state.excess:.3g}".replace("-", "−")


def height(slices: Sequence[Slice]) -> float:
    """The largest energy above the lowest of its own panel, which is where the common colour scale ends."""
    return max((float(np.ptp(part.energy[kind])) for part in slices for kind in KINDS), default=1.0) or 1.0


def draw(axis: Axes, part: Slice, kind: str, largest: float) -> AxesImage:
    """One kind of energy over one slice, above its lowest value, in colours from 0 to ``largest``.

    Only differences of energy move the policy, so the lowest of each panel is 0 and one scale serves all. It is a
    square root's, which shows the valley where the policy acts. Paths are white, sampled actions orange, the noise-free
    action a cross.
    """
    from matplotlib.colors import PowerNorm

    (left, *_, right), (bottom, *_, top) = part.axes
    energy = part.energy[kind] - part.energy[kind].min()
    norm = PowerNorm(0.5, 0.0, largest)
    image = axis.imshow(
        energy, origin="lower", extent=(left, right, bottom, top), aspect="auto", cmap=figures.MAP, norm=norm,
        interpolation="bilinear",
    )  # fmt: skip
    levels = largest * np.linspace(0, 1, CONTOURS + 2)[1:-1] ** 2
    if energy.max() > levels[0]:
        axis.contour(*part.axes, energy, levels, colors="white", linewidths=0.5, alpha=0.45)
    for path in part.paths[:, :PATHS_DRAWN].transpose(1, 0, 2):
        axis.plot(*path.T, color="black", lw=2.0, alpha=0.5, solid_capstyle="round")
        axis.plot(*path.T, color="white", lw=1.0, marker="o", ms=1.8)
    axis.scatter(
        part.paths[0, :, 0], part.paths[0, :, 1], s=9, color=ORANGE, edgecolors="black", linewidths=0.3, zorder=3
    )
    axis.plot(*part.action, marker="X", ms=9, color="white", markeredgecolor="black", zorder=4)
    axis.set(xlabel=f"action {part.dims[0]}", ylabel=f"action {part.dims[1]}", xlim=(left, right), ylim=(bottom, top))
    axis.locator_params(nbins=5)
    figures.panel_map(axis)
    return image


def panel_svg(part: Slice, kind: str, label: str, largest: float) -> str:
    """One panel as an inline SVG that takes ink and font from the page around it; ``label`` is its text for those
    who do not see it."""
    import matplotlib
    from matplotlib.figure import Figure

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # The salt keeps the ids of several pictures in one page apart.
    style: Any = dict.fromkeys(names, INK) | {"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 12}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.9, 3.4), layout="constrained")
        draw(figure.subplots(), part, kind, largest)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(text.getvalue(), label)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def _for_page(svg: str, label: str) -> str:
    """Matplotlib's file as an element of a page: the page's ink and font, and nothing that reaches beyond the
    element."""
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view is not None
    body = body[body.index(">") + 1 :]
    for part in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r" font-family: [^;]*;"):
        body = re.sub(part, "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r"(?<=[ \"(])-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace(INK, "currentColor")
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg class="panel" role="img" aria-label="{escape(label)}" viewBox="{view[1]}" {spaces}>{body}'
