"""One style for every figure that is published: fonts, colours, grid and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B8578F", "#6B6F76", "#C98A00", "#3D9BD6", "#8B5E3C")
"""of lines, after Okabe and Ito: colour-blind readers can tell them apart"""
INK, SOFT, RULE = "#1C1E21", "#5C6168", "#DCDEDF"
MAP = "viridis"
"""colour map of energies"""
DPI = 144
STYLE: Any = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "figure.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": SOFT, "axes.labelcolor": INK,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "xtick.color": SOFT, "ytick.color": SOFT, "text.color": INK, "legend.frameon": False, "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round", "figure.facecolor": "white", "savefig.facecolor": "white",
    "figure.constrained_layout.use": True, "savefig.dpi": DPI,
}  # fmt: skip


def thousands(value: float, position: int | None = None) -> str:
    """A tick of a step axis: 20000 as 20k. For ``Axis.set_major_formatter``."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


@contextmanager
def style() -> Iterator[None]:
    """Figures made within have the style; matplotlib's settings are as before afterwards."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def mark_budget(axis: Axes, limit: float, label: str = "budget") -> None:
    """A dashed line at the budget, named to the right of the panel, where no curve crosses the name."""
    axis.axhline(limit, color=INK, ls=(0, (5, 4)), lw=1)
    axis.annotate(
        label, (1, limit), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points", fontsize=9, color=INK,
        va="center", annotation_clip=False,
    )  # fmt: skip


def panel_map(axis: Axes) -> None:
    """An axis that shows a plane: all spines, no grid."""
    axis.grid(False)
    axis.spines[:].set_visible(True)
