"""Meta-World as ``mw/...``: see ``catalogue`` for the tasks and what their numbers mean."""

from saddlepoint.envs.metaworld import catalogue  # noqa: F401  (it registers the tasks)
