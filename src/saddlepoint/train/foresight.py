"""What a learner's critics predict while it is evaluated, held to what follows: ``constrained.calibration`` of every evaluation."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.constrained.calibration import Calibration, calibration, has_future, metrics, to_go
from saddlepoint.envs.batch import EnvStep
from saddlepoint.types import UserError
from saddlepoint.usual import usual_torch


@runtime_checkable
class Foresees(Protocol):
    """A learner that says what it expects; ``config.gamma`` is the discount of the reward."""

    config: Any

    def predict(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """(batch, observation), (batch, action) -> ``reward`` (batch,) and, with constraints, ``cost`` (batch, constraints), discounted sums."""
        ...


class Foresight:
    """Records an evaluation's steps, wave by wave, and what was expected at each."""

    def __init__(self, learner: Foresees, budgets: tuple[CostBudget, ...], device: torch.device) -> None:
        """Raises ``UserError`` for a learner whose config has no ``gamma``."""
        self.learner, self.device = learner, device
        if not hasattr(learner.config, "gamma"):
            raise UserError(f"{type(learner).__name__} has predict but its config has no gamma, the discount of the reward it predicts: add that field.")
        gamma = float(learner.config.gamma)
        self.names = ["reward", *(["cost"] if len(budgets) == 1 else [f"cost_{i}" for i in range(len(budgets))])]
        self.gammas = [gamma, *(budget.gamma for budget in budgets)]
        self._steps: list[tuple[np.ndarray, ...]] = []
        self._waves: list[list[tuple[np.ndarray, ...]]] = []

    def expect(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """(envs, 1 + constraints): the discounted reward and costs that are expected."""
        with usual_torch(), torch.no_grad():
            found = self.learner.predict(*(torch.as_tensor(x, dtype=torch.float32, device=self.device) for x in (observation, action)))
            values = [found["reward"].unsqueeze(-1), *([found["cost"]] if "cost" in found else [])]
            return torch.cat(values, -1).cpu().numpy()

    def add(self, expected: np.ndarray, step: EnvStep, playing: np.ndarray) -> None:
        paid = np.concatenate([step.reward[:, None], step.cost], -1)[:, : expected.shape[1]]
        self._steps.append((expected, paid, step.terminated | step.truncated, step.terminated, playing.copy()))

    def end_wave(self) -> None:
        self._waves.append(self._steps)
        self._steps = []

    def calibrations(self) -> dict[str, Calibration]:
        """By name: ``reward``, and ``cost`` or ``cost_0``, ``cost_1``, ... ; without those that no state is left for."""
        found = {}
        waves = [[np.stack(each) for each in zip(*wave)] for wave in self._waves if wave]
        for i, (name, gamma) in enumerate(zip(self.names, self.gammas)):
            columns: list[list[np.ndarray]] = [[], [], []]
            for expected, paid, ended, terminated, playing in waves:
                if i >= expected.shape[-1]:
                    continue
                keep = has_future(playing, ended, terminated, gamma)
                for column, values in zip(columns, (expected[..., i], to_go(paid[..., i], gamma, ended), paid[..., i])):
                    column.append(values[keep])
            joined = [np.concatenate(column) if column else np.zeros(0) for column in columns]
            if len(joined[0]):
                found[name] = calibration(joined[0], joined[1], None if name == "reward" else joined[2])
        return found

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat metrics ``<prefix>/calibration/cost_correlation`` and so on."""
        return {key: value for name, found in self.calibrations().items() for key, value in metrics(f"{prefix}/calibration/{name}", found).items()}
