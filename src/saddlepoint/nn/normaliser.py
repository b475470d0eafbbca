"""Observations with running mean 0 and variance 1: the statistics are the run's, and part of its learner's state.

Raw observations stay in the replay, so that everything that is learnt from sees the newest statistics. They move with
``observe`` alone, which training calls once for each new observation; acting and evaluation leave them as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from saddlepoint.types import ActMode, Batch, CountsCost, Learner, Metrics, Planner, UserError

if TYPE_CHECKING:
    from saddlepoint.replay import Replay

LIMIT = 10.0
"""normalised entries are clipped to [-10, 10], as in OpenAI's baselines"""
EPSILON = 1e-8
PREFIX = "observations."
"""what the names of the statistics begin with in a learner's state"""


class Normaliser(nn.Module):
    """x -> clip((x - mean) / sqrt(variance + 1e-8), -10, 10), elementwise; (..., observation) float32.

    Mean and variance are those of all rows shown to ``update``, by the parallel update of Chan et al. (1979), in
    float64. Until two rows were seen x passes through, but for the clipping.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        for name in ("mean", "square"):  # square: sum of squared deviations from the mean
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64, device=device))
        self.shift, self.scale = torch.zeros(size, device=device), torch.ones(size, device=device)

    mean: Tensor
    square: Tensor
    count: Tensor

    def update(self, rows: Tensor) -> None:
        """Count in (rows, observation)."""
        new = rows.to(torch.float64)
        size, mean = float(len(new)), new.mean(0)
        delta, total = mean - self.mean, self.count + size
        self.square += (new - mean).square().sum(0) + delta.square() * (self.count * size / total)
        self.mean += delta * (size / total)
        self.count.copy_(total)
        self.refresh()

    def refresh(self) -> None:
        """Derive what ``forward`` uses from the statistics."""
        if self.count >= 2:
            self.shift = self.mean.float()
            self.scale = (self.square / self.count + EPSILON).rsqrt().float()

    def forward(self, observation: Tensor) -> Tensor:
        return ((observation - self.shift) * self.scale).clamp(-LIMIT, LIMIT)


class NormalisedReplay:
    """A replay whose samples are normalised; everything else is the replay's own."""

    def __init__(self, replay: Replay, normaliser: Normaliser) -> None:
        self._replay, self._normaliser = replay, normaliser

    def _seen(self, batch: Batch) -> Batch:
        return batch._replace(
            observation=self._normaliser(batch.observation), next_observation=self._normaliser(batch.next_observation)
        )

    def sample(self, *arguments: Any, **named: Any) -> Batch:
        return self._seen(self._replay.sample(*arguments, **named))

    def sample_sequences(self, *arguments: Any, **named: Any) -> Batch:
        return self._seen(self._replay.sample_sequences(*arguments, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replay, name)


class NormalisedLearner:
    """``inner``, a learner, behind a normaliser: it sees, stores in its statistics and acts on normalised observations.

    To its users it is a learner of raw observations. Only the methods of ``Learner`` pass: what else an ``inner`` has
    must be given ``normaliser(observation)``.
    """

    def __init__(self, inner: Learner, normaliser: Normaliser) -> None:
        self.inner, self.normaliser = inner, normaliser

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        return self.inner.act(self.normaliser(observation), mode, generator)

    def observe(self, observation: Tensor) -> None:
        self.normaliser.update(observation)
        self.inner.observe(self.normaliser(observation))

    def update(self, replay: Replay, updates: int) -> Metrics:
        return self.inner.update(cast("Replay", NormalisedReplay(replay, self.normaliser)), updates)

    def state_dict(self) -> dict[str, Tensor]:
        """That of ``inner``, and the statistics under ``observations.``."""
        own = {f"{PREFIX}{name}": value.clone() for name, value in self.normaliser.state_dict().items()}
        return {**self.inner.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ``UserError`` when names or shapes do not fit."""
        own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        wanted = self.normaliser.state_dict()
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in wanted.items()}:
            raise UserError("the learner's statistics of observations do not fit: it was trained otherwise.")
        self.inner.load_state_dict({name: value for name, value in state.items() if not name.startswith(PREFIX)})
        self.normaliser.load_state_dict(own)
        self.normaliser.refresh()


class NormalisedPlanner(NormalisedLearner):
    """The same for a learner that plans (``saddlepoint.types.Planner``)."""

    inner: Any

    @property
    def memory_size(self) -> int:
        return self.inner.memory_size

    def act_on(
        self, observation: Tensor, memory: Tensor, mode: ActMode, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return self.inner.act_on(self.normaliser(observation), memory, mode, generator)

    @property
    def counts_cost(self) -> bool:
        return isinstance(self.inner, CountsCost) and self.inner.counts_cost

    def paid(self, memory: Tensor, cost: Tensor) -> Tensor:
        return self.inner.paid(memory, cost)


def normalised(learner: Learner, size: int, device: torch.device | str) -> NormalisedLearner:
    """``learner`` behind a new normaliser of observations (observation,) of that ``size``."""
    kind = NormalisedPlanner if isinstance(learner, Planner) else NormalisedLearner
    return kind(learner, Normaliser(size, device))
