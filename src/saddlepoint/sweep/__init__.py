"""`saddlepoint sweep`: many runs from one file. What is slow to import is imported by the verb, because the workers
import this package too."""

from __future__ import annotations


def sweep_command(args: list[str]) -> None:
    """`saddlepoint sweep FILE ...`"""
    from saddlepoint.sweep.command import sweep

    sweep(args)
