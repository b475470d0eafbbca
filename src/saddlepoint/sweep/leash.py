"""`python -m saddlepoint.sweep.leash PARENT ARGS...` is `saddlepoint ARGS...`, told to stop when its parent is gone.

A worker that is killed (kill -9 of the sweep, a lost Ray) cannot end its training run itself. SIGTERM lets the run
write a checkpoint. Elsewhere than on Linux the run is left to its end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> int:
    parent, args = int(sys.argv[1]), sys.argv[2:]
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM}
    )  # Ray blocks SIGINT, and masks are inherited
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before we asked
        return 130
    from saddlepoint.cli import main as saddlepoint

    return saddlepoint(args)


if __name__ == "__main__":
    sys.exit(main())
