"""Environments whose ``info`` carries ``cost``. Importing this package registers our tasks with Gymnasium."""

from saddlepoint.envs import control, metaworld, navigation, toy, velocity  # noqa: F401  (they register their tasks)
from saddlepoint.envs.adapters import SafetyGymnasiumAdapter
from saddlepoint.envs.batch import EnvBatch, EnvStep
from saddlepoint.envs.check import check_env
from saddlepoint.envs.make import make_env
from saddlepoint.envs.tasks import TaskSpec, env_spec, list_envs, register_task
from saddlepoint.types import EnvSetup

__all__ = [
    "EnvBatch",
    "EnvSetup",
    "EnvStep",
    "SafetyGymnasiumAdapter",
    "TaskSpec",
    "check_env",
    "env_spec",
    "list_envs",
    "make_env",
    "register_task",
]
