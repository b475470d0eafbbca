"""`saddlepoint landscape RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saddlepoint.flags import parse
from saddlepoint.options import require_at_least, require_seed
from saddlepoint.train.threads import use_threads
from saddlepoint.types import UserError


@dataclass(frozen=True)
class LandscapeFlags:
    """The plain and the augmented Lagrangian over two action dimensions at states that the policy meets, with its
    denoising paths."""

    out: Path | None = None
    """picture to write, .png, .svg or .pdf; by default landscape-<step>.png in the run folder"""
    states: int = 3
    """states to show: the one of largest risk, the start and the middle of an episode, then its quarters and eighths"""
    dims: tuple[int, int] | None = None
    """the two action dimensions; by default those in which the policy's samples are spread most"""
    seed: int = 1_000_000
    """seed of the episodes and of the samples"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""

    def validate(self) -> None:
        """Raises ``UserError`` for a value that cannot work."""
        from saddlepoint.landscape.picture import FORMATS
        from saddlepoint.landscape.states import MOST

        if not 1 <= self.states <= MOST:
            raise UserError(f"--states must be from 1 to {MOST}, not {self.states}.")
        require_at_least(self, {"threads": 0})
        require_seed(self.seed)
        if self.out is not None and self.out.suffix not in FORMATS:
            raise UserError(f"--out {self.out} must end in one of {', '.join(FORMATS)}.")
        if self.out is not None and not self.out.parent.is_dir():
            raise UserError(f"--out {self.out}: there is no folder {self.out.parent}; make it, or choose another.")


def landscape_command(args: list[str]) -> None:
    """`saddlepoint landscape RUN ...`"""
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        raise UserError("landscape needs the run folder first: `saddlepoint landscape RUN --out picture.png`.")
    helping = args[0] in ("-h", "--help")
    flags: LandscapeFlags = parse(
        LandscapeFlags, LandscapeFlags(), args if helping else args[1:], "saddlepoint landscape RUN"
    ).values
    flags.validate()

    from saddlepoint.landscape.picture import save_picture
    from saddlepoint.landscape.slices import landscape

    use_threads(flags.threads)
    run = Path(args[0])
    where, out = run.absolute(), None if flags.out is None else flags.out.absolute()  # an environment may go elsewhere
    found = landscape(run, flags.states, flags.seed, flags.dims)
    path = flags.out or run / f"landscape-{found.step}.png"
    save_picture(found, out or where / path.name)
    print(f"{found.describe()}\npicture: {path}")
