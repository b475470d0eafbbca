"""Safe reinforcement learning with diffusion models."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ALGD": "saddlepoint.algd.agent",
    "ALGDConfig": "saddlepoint.algd.config",
    "CostBudget": "saddlepoint.constrained.budget",
    "make_env": "saddlepoint.envs.make",
    "check_env": "saddlepoint.envs.check",
    "list_envs": "saddlepoint.envs.make",
    "UserError": "saddlepoint.types",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``saddlepoint --help`` need not load PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'saddlepoint' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
