"""Safe reinforcement learning with diffusion models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from saddlepoint.plugin import register_with_gymnasium

if TYPE_CHECKING:
    from saddlepoint.algd.agent import ALGD as ALGD
    from saddlepoint.algd.config import ALGDConfig as ALGDConfig
    from saddlepoint.baselines.config import CALConfig as CALConfig
    from saddlepoint.baselines.config import SACConfig as SACConfig
    from saddlepoint.baselines.config import SACLagConfig as SACLagConfig
    from saddlepoint.baselines.config import SACPIDConfig as SACPIDConfig
    from saddlepoint.baselines.constrained import CAL as CAL
    from saddlepoint.baselines.constrained import SACPID as SACPID
    from saddlepoint.baselines.constrained import SACLag as SACLag
    from saddlepoint.baselines.sac import SAC as SAC
    from saddlepoint.constrained.budget import CostBudget as CostBudget
    from saddlepoint.envs.check import check_env as check_env
    from saddlepoint.envs.make import make_env as make_env
    from saddlepoint.envs.tasks import list_envs as list_envs
    from saddlepoint.nn.exportable import Exportable as Exportable
    from saddlepoint.policies import load_policy as load_policy
    from saddlepoint.systems import register_system as register_system
    from saddlepoint.train.callbacks import Callback as Callback
    from saddlepoint.train.callbacks import StopAfter as StopAfter
    from saddlepoint.train.callbacks import StopWhenSafe as StopWhenSafe
    from saddlepoint.train.config import TrainConfig as TrainConfig
    from saddlepoint.train.start import train as train
    from saddlepoint.types import UserError as UserError

__version__ = "0.1.0"

_HOMES = {
    "ALGD": "saddlepoint.algd.agent",
    "ALGDConfig": "saddlepoint.algd.config",
    "SAC": "saddlepoint.baselines.sac",
    "SACConfig": "saddlepoint.baselines.config",
    "SACLag": "saddlepoint.baselines.constrained",
    "SACLagConfig": "saddlepoint.baselines.config",
    "SACPID": "saddlepoint.baselines.constrained",
    "SACPIDConfig": "saddlepoint.baselines.config",
    "CAL": "saddlepoint.baselines.constrained",
    "CALConfig": "saddlepoint.baselines.config",
    "CostBudget": "saddlepoint.constrained.budget",
    "make_env": "saddlepoint.envs.make",
    "check_env": "saddlepoint.envs.check",
    "list_envs": "saddlepoint.envs.tasks",
    "load_policy": "saddlepoint.policies",
    "register_system": "saddlepoint.systems",
    "Exportable": "saddlepoint.nn.exportable",
    "Callback": "saddlepoint.train.callbacks",
    "StopWhenSafe": "saddlepoint.train.callbacks",
    "StopAfter": "saddlepoint.train.callbacks",
    "TrainConfig": "saddlepoint.train.config",
    "UserError": "saddlepoint.types",
}
__all__ = [*_HOMES, "__version__", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``saddlepoint --help`` need not load PyTorch."""
    if name == "train":
        return import_module("saddlepoint.train")  # a package that is called as a function
    if name not in _HOMES:
        raise AttributeError(f"module 'saddlepoint' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


register_with_gymnasium()


def __dir__() -> list[str]:
    return sorted(__all__)
