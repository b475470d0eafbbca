"""`python -m saddlepoint ...`, as `saddlepoint ...`."""

import sys

from saddlepoint.cli import main

if __name__ == "__main__":
    sys.exit(main())
