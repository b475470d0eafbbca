"""Pictures and films of the page: the energy landscapes of trained policies, and the clips in their run folders."""

from __future__ import annotations

import base64
import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from saddlepoint.landscape.picture import LEGEND, height, panel_svg, title
from saddlepoint.landscape.slices import KINDS, WITH_ENERGY, Landscape, landscape
from saddlepoint.report.numbers import number
from saddlepoint.report.palette import swatch
from saddlepoint.report.runs import CLIPS, Environment, Group, Run
from saddlepoint.types import UserError

MOST_BYTES = 2_000_000
"""largest clip that is put into the page"""
STATES = 2
SEED = 1_000_000


class Landscapes:
    """Energy landscapes as HTML. They take seconds each, so one is kept until its run has a newer checkpoint."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[tuple[str, ...], Landscape | str]] = {}
        self._drawn: dict[tuple[Path, tuple[str, ...], float], str] = {}

    def section(self, env: Environment, styles: dict[str, int]) -> str:
        """One run of each method, the first that has a checkpoint; empty where there is none with an energy."""
        chosen = [(run, group) for group in env.groups if group.runs[0].system in WITH_ENERGY and (run := _with_checkpoint(group))]
        found = [(run, group, self._of(run)) for run, group in chosen]
        if not found:
            return ""
        largest = height([part for *_, own in found if isinstance(own, Landscape) for part in own.slices])
        shown = "".join(self._shown(run, group, own, styles[group.label], largest) for run, group, own in found)
        return (
            '<h3>Energy over two action dimensions</h3><p class="soft">Low energy is what the policy seeks. All panels have one'
            f" colour scale, and each starts at its own lowest energy. {LEGEND.replace('    ', '; ').capitalize()}. Where there are more"
            " action dimensions, the others are those of the noise-free action. One seed of each method, at states of episodes that"
            f' start alike.</p><div class="colours"><span>0</span><i></i><span>{number(largest)}</span></div>{shown}'
        )

    def _of(self, run: Run) -> Landscape | str:
        """The newest landscape, or a sentence where something stands in the way."""
        kept = self._kept.get(run.folder)
        if kept is None or kept[0] != _checkpoints(run):
            try:
                found: Landscape | str = landscape(run.folder, STATES, SEED)
            except (UserError, OSError) as error:  # OSError: a running run may remove the checkpoint that is being read
                found = f"No landscape of {run.folder}: {error}"
            kept = self._kept[run.folder] = (_checkpoints(run), found)
        return kept[1]

    def _shown(self, run: Run, group: Group, found: Landscape | str, style: int, largest: float) -> str:
        if isinstance(found, str):
            return f'<p class="note">{escape(found)}</p>'
        key = (run.folder, _checkpoints(run), largest)
        if key not in self._drawn:
            self._drawn = {other: text for other, text in self._drawn.items() if other[0] != run.folder}
            self._drawn[key] = _panels(run, group.label, found, largest)
        head = f'<p class="method">{swatch(group.label, style)}, seed {run.seed}. {escape(found.describe())}</p>'
        return f'{head}<div class="grid4">{self._drawn[key]}</div>'


def clips(env: Environment, styles: dict[str, int], page: Path) -> str:
    """The newest clip of the first run of each method that has one, for the page at ``page``."""
    figures = []
    for group in env.groups:
        run = next((run for run in group.runs if run.clips()), None)
        if run is not None:
            name = swatch(group.label, styles[group.label])
            body = _clip(run, run.clips()[-1], page)
            figures.append(f"<figure>{body}<figcaption>{name}, seed {run.seed}</figcaption></figure>")
    return f'<h3>Clips</h3><div class="grid3">{"".join(figures)}</div>' if figures else ""


def address(path: Path, page: Path) -> str:
    """A file's address relative to the page, which works as long as both stay where they are."""
    return quote(os.path.relpath(path.resolve(), page.resolve().parent))


def _panels(run: Run, label: str, found: Landscape, largest: float) -> str:
    figures = []
    for part in found.slices:
        for kind in KINDS:
            words = f"{kind} Lagrangian of {label}, seed {run.seed}, at {title(part)}"
            picture = panel_svg(part, kind, words, largest)
            figures.append(f"<figure>{picture}<figcaption><b>{kind}</b>, {escape(title(part))}</figcaption></figure>")
    return "".join(figures)


def _with_checkpoint(group: Group) -> Run | None:
    return next((run for run in group.runs if _checkpoints(run)), None)


def _checkpoints(run: Run) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in run.folder.glob("checkpoints/*") if path.name.isdecimal()))


def _clip(run: Run, path: Path, page: Path) -> str:
    size = path.stat().st_size
    link = f'<a href="{address(path, page)}">{escape(path.name)}</a>'
    if size > MOST_BYTES:
        return f'<p class="note">{link} has {size / 1e6:.1f} MB and is not put into this page.</p>'
    kind = CLIPS[path.suffix]
    words = escape(f"{run.env}, {run.system}, seed {run.seed}: {path.name}")
    source = f"data:{kind};base64,{base64.b64encode(_bytes(path)).decode()}"
    if kind.startswith("video"):
        return f'<video controls muted loop playsinline preload="metadata" aria-label="{words}" src="{source}"></video>'
    return f'<img alt="{words}" src="{source}">'


def _bytes(path: Path) -> bytes:
    """The content of a file that is no link, also when it has just been replaced by one."""
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        return file.read(MOST_BYTES + 1)
