"""Operations with several backends. Each has a PyTorch reference; nothing above this package knows which backend
runs."""

from saddlepoint.nn.ops.api import *  # noqa: F403  (what it names in its __all__)
