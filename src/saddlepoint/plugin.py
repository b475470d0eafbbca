"""Our tasks in Gymnasium's registry, from the moment that both packages are imported, and without PyTorch.

``import saddlepoint`` and ``import gymnasium``, in either order, make ``gymnasium.make("saddlepoint/Toy-v0")`` work; so
does ``gymnasium.make("saddlepoint:saddlepoint/Toy-v0")`` without importing us. Importing us alone does not import
Gymnasium, which a policy that only acts does not need.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def register() -> None:
    """Enter every task of ours into Gymnasium's registry; again does nothing. The entry point of ``gymnasium.envs``."""
    import saddlepoint.envs  # noqa: F401  (importing it registers them)


def register_with_gymnasium() -> None:
    """``register`` now, where Gymnasium has been imported, or else as soon as it is."""
    if "gymnasium" in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterGymnasium) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterGymnasium())


class _AfterGymnasium:
    """A finder that finds what the others do, and has Gymnasium's import followed by ``register``."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
