"""The console of long work, whose reader may go away before it is done."""

from __future__ import annotations

from rich.console import Console

from saddlepoint.streams import drop_output


class PatientConsole(Console):
    """Long work goes on, without words, when what reads its output has ended (``saddlepoint train ... | head``)."""

    def on_broken_pipe(self) -> None:
        """Say nothing more; rich's own form ends the program here."""
        self.quiet = True
        drop_output()
