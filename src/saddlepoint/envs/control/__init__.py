"""The DeepMind Control Suite as ``dmc/...``: see ``catalogue`` for the tasks and what their numbers mean."""

from saddlepoint.envs.control import catalogue  # noqa: F401  (it registers the tasks)
