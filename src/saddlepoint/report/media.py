"""Pictures and films of the page: the energy landscapes of trained policies, and the clips in their run folders."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from saddlepoint.landscape.picture import panel_svg, title
from saddlepoint.landscape.slices import KINDS, WITH_ENERGY, landscape
from saddlepoint.report.runs import CLIPS, Environment, Group, Run
from saddlepoint.report.tables import swatch
from saddlepoint.types import UserError

MOST_BYTES = 2_000_000
"""largest clip that is put into the page"""
STATES = 2
SEED = 1_000_000


class Landscapes:
    """Energy landscapes as HTML. They take seconds each, so one is kept until its run has a newer checkpoint."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[tuple[str, ...], str]] = {}

    def section(self, env: Environment, styles: dict[str, int]) -> str:
        """One run of each method, the first that has a checkpoint; empty where there is none with an energy."""
        shown = [self._of(run, group, styles[group.label]) for group in env.groups if (run := _with_checkpoint(group))]
        if not any(shown):
            return ""
        return (
            '<h3>Energy over two action dimensions</h3><p class="soft">Dark is low energy, which the policy seeks. White lines are denoising'
            " paths seen in this slice, dots the sampled actions, the cross the noise-free action; where there are more action dimensions,"
            " the others are those of the noise-free action. One seed of each method, at states of episodes that start alike.</p>"
            f"{''.join(shown)}"
        )

    def _of(self, run: Run, group: Group, style: int) -> str:
        """Empty for a system without an energy; a sentence where something else stands in the way."""
        kept = self._kept.get(run.folder)
        if kept is None or kept[0] != _checkpoints(run):
            kept = self._kept[run.folder] = (_checkpoints(run), _landscape(run, group.label, style))
        return kept[1]


def clips(env: Environment, styles: dict[str, int]) -> str:
    """The newest clip of the first run of each method that has one."""
    figures = []
    for group in env.groups:
        run = next((run for run in group.runs if run.clips()), None)
        if run is not None:
            name = swatch(group.label, styles[group.label])
            figures.append(f"<figure>{_clip(run, run.clips()[-1])}<figcaption>{name}, seed {run.seed}</figcaption></figure>")
    return f'<h3>Clips</h3><div class="grid3">{"".join(figures)}</div>' if figures else ""


def _landscape(run: Run, label: str, style: int) -> str:
    if run.system not in WITH_ENERGY:
        return ""
    try:
        found = landscape(run.folder, STATES, SEED)
    except (UserError, OSError) as error:  # OSError: a running run may remove the checkpoint that is being read
        return f'<p class="note">No landscape of {escape(str(run.folder))}: {escape(str(error))}</p>'
    figures = []
    for part in found.slices:
        for kind in KINDS:
            words = f"{kind} Lagrangian of {label}, seed {run.seed}, at {title(part)}"
            figures.append(f"<figure>{panel_svg(part, kind, words)}<figcaption>{kind}; {escape(title(part))}</figcaption></figure>")
    head = f'<p class="method">{swatch(label, style)}, seed {run.seed}. {escape(found.describe())}</p>'
    return f'{head}<div class="grid4">{"".join(figures)}</div>'


def _with_checkpoint(group: Group) -> Run | None:
    return next((run for run in group.runs if _checkpoints(run)), None)


def _checkpoints(run: Run) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in run.folder.glob("checkpoints/*") if path.name.isdecimal()))


def _clip(run: Run, path: Path) -> str:
    size = path.stat().st_size
    if size > MOST_BYTES:
        return f'<p class="note">{escape(str(path))} has {size / 1e6:.1f} MB and is not put into this page.</p>'
    kind = CLIPS[path.suffix]
    words = escape(f"{run.env}, {run.system}, seed {run.seed}: {path.name}")
    source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if kind.startswith("video"):
        return f'<video controls muted loop playsinline preload="metadata" aria-label="{words}" src="{source}"></video>'
    return f'<img alt="{words}" src="{source}">'
