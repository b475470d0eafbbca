"""The systems that can be trained, and how a trained one is taken up again. A new system joins by one entry."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.train import checkpoint, run
from saddlepoint.train.start import LearnerFactory
from saddlepoint.types import ActMode, EnvShape, Learner, UserError


@dataclass(frozen=True)
class System:
    """Where the parts of a system are; they are imported when they are needed."""

    module: str
    learner: str
    """name of the learner's class in ``<module>.agent``"""
    config: str
    """name of its frozen config in ``<module>.config``, which also has ``PRESETS``"""

    def learner_class(self) -> LearnerFactory[Any]:
        return vars(import_module(f"{self.module}.agent"))[self.learner]

    def config_class(self) -> type[Any]:
        return vars(import_module(f"{self.module}.config"))[self.config]

    def presets(self) -> dict[str, Any]:
        return vars(import_module(f"{self.module}.config"))["PRESETS"]


SYSTEMS: dict[str, System] = {"algd": System("saddlepoint.algd", "ALGD", "ALGDConfig")}


def restore_config(kind: type[Any], values: dict[str, Any], where: Path) -> Any:
    """A frozen config from what config.json holds. Raises ``UserError`` when its fields do not fit."""
    names = {field.name for field in fields(kind)}
    if set(values) != names:
        odd = ", ".join(sorted(names ^ set(values)))
        raise UserError(f"{where} was written by another version of saddlepoint (fields {odd}): use that version.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class TrainedPolicy:
    """A learner from a run's checkpoint, with what it was trained for."""

    learner: Learner
    env: str
    shape: EnvShape
    budgets: tuple[CostBudget, ...]
    step: int
    """environment steps that it was trained for"""
    seed: int
    """seed of its run"""
    device: torch.device
    note: str | None
    """one sentence when newer checkpoints were damaged"""

    def act(
        self, observation: np.ndarray, mode: ActMode = "deterministic", generator: torch.Generator | None = None
    ) -> np.ndarray:
        """(observation,) -> (action,), or (envs, observation) -> (envs, action), in the environment's own units.

        Only ``stochastic`` and ``explore`` draw from ``generator``, which they need: ``UserError`` without one.
        """
        if generator is None:
            if mode != "deterministic":
                raise UserError(f"a policy needs a torch.Generator to act in mode {mode!r}: give one as generator=.")
            generator = torch.Generator(device=self.device).manual_seed(self.seed)
        batch = torch.as_tensor(np.atleast_2d(observation), dtype=torch.float32, device=self.device)
        with torch.no_grad():
            action = self.learner.act(batch, mode, generator).cpu().numpy()
        return action if np.ndim(observation) == 2 else action[0]


def load_policy(folder: str | Path, device: str | torch.device = "cpu") -> TrainedPolicy:
    """The policy of a run's newest whole checkpoint. Raises ``UserError`` when there is none."""
    folder = Path(folder)
    content = run.read(folder)
    if content["system"] not in SYSTEMS:
        raise UserError(f"{folder} was trained with {content['system']}, which this version of saddlepoint has not.")
    system = SYSTEMS[content["system"]]
    config = restore_config(system.config_class(), content["learner"], folder / "config.json")
    shape, budgets = run.shape_of(content), run.budgets_of(content)
    path, note = checkpoint.latest(folder)
    learner = system.learner_class()(config, shape, budgets, 0, torch.device(device), compile=False)
    learner.load_state_dict(checkpoint.load(path, replay=False).learner)
    env, seed = content["train"]["env"], content["train"]["seed"]
    return TrainedPolicy(learner, env, shape, budgets, int(path.name), seed, torch.device(device), note)
