"""The training loop and what surrounds it. It knows a system through ``saddlepoint.types.Learner`` only.

The package itself is the function ``saddlepoint.train``:

"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from inspect import getdoc, signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saddlepoint.constrained.budget import CostBudget
    from saddlepoint.train.callbacks import Callback
    from saddlepoint.train.config import TrainConfig
    from saddlepoint.train.contract import LearnerFactory


class _Train(ModuleType):
    """This package, callable: ``from saddlepoint import train`` finds it where its one function is meant."""

    def __call__(
        self, config: TrainConfig, learner: LearnerFactory[Any], learner_config: Any, budgets: CostBudget | Sequence[CostBudget] | None = None,
        *, resume: bool = False, callbacks: Sequence[Callback] = (),
    ) -> Path:  # fmt: skip
        """Train until ``total_steps`` and return the run folder: ``train(TrainConfig(env="saddlepoint/Toy-v0"), ALGD,
        ALGDConfig())``.

        ``config`` says where and for how long, ``learner`` is a system's class (``ALGD``, ``SACLag``, one of your own),
        ``learner_config`` its settings. Values are checked as on the command line: what can mean one thing only is
        taken (a text for a path), all else is a ``UserError``.

        ``budgets``, one for each constraint, replace those that the task declares; one without a ``horizon`` takes the
        environment's own time limit. With ``resume`` they may be left out, and must be those of the run.

        With ``resume`` the run in ``config.out`` goes on from its newest whole checkpoint: N + M steps are N, a resume
        and M, to the bit on a CPU with the same number of threads.

        ``callbacks`` are called after steps, evaluations and checkpoints and may stop the run; their state is saved and
        resumed.

        Raises ``UserError`` for a configuration that cannot work, before anything is written, and for a fault on the
        way, after which the last checkpoint stands; ``saddlepoint.train.signals.Interrupted``, a ``KeyboardInterrupt``,
        on a signal, after a checkpoint.
        """
        from saddlepoint.train.start import train

        return train(config, learner, learner_config, budgets, resume=resume, callbacks=callbacks)


sys.modules[__name__].__class__ = _Train
# For help(saddlepoint.train), which shows a module's own words.
__doc__ = f"{__doc__}saddlepoint.train{signature(sys.modules[__name__])}\n\n{getdoc(_Train.__call__)}\n"  # type: ignore[arg-type]
