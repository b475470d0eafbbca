"""The energy over the actions of chosen states, with the denoising paths: ``saddlepoint landscape RUN``."""

from saddlepoint.landscape.command import landscape_command as landscape_command
