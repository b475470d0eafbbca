"""`python -m saddlepoint.safediffusion.tiny --out FOLDER`"""

from __future__ import annotations

import sys

from saddlepoint.flags import parse
from saddlepoint.safediffusion.tiny.train import TinyConfig, train_tiny
from saddlepoint.types import UserError


def main() -> int:
    """Train the tiny world's models and return the exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        config = parse(TinyConfig, TinyConfig(), sys.argv[1:], "python -m saddlepoint.safediffusion.tiny").values
        print(f"finished: {train_tiny(config)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
