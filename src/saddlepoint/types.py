"""What the packages say to each other: shapes, a batch of transitions, the learner protocol, the user's errors.

Shape words used everywhere: ``envs``, ``batch``, ``observation``, ``action``, ``constraints``, ``members``, ``proposals``, ``horizon``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from saddlepoint.replay import Replay

Metrics: TypeAlias = dict[str, Tensor | float]
"""Flat metric names to numbers; 0-d tensors are allowed so that an update need not wait for them."""

def per_constraint(values: Mapping[str, Tensor]) -> Metrics:
    """(constraints,) each as metrics, ``name`` for one constraint and ``name_0``, ``name_1``, ... for several."""
    return {
        name if len(value) == 1 else f"{name}_{c}": value[c] for c in range(max(map(len, values.values()), default=0)) for name, value in values.items()
    }


ActMode: TypeAlias = Literal["explore", "stochastic", "deterministic"]
"""``explore``: the behaviour policy. ``stochastic``: a sample of the policy. ``deterministic``: its noise-free action."""


class UserError(Exception):
    """A mistake of the user's, or of the machine they run on: one clear sentence (what, where, what to do), shown without a traceback."""


class ForeignFault(UserError):
    """Code that is not ours (an environment, a reward, a detector) raised an error, gave what it must not, or is gone; what is learnt is unharmed."""


class NonFiniteError(UserError):
    """A loss, gradient, reward or observation that is not finite; the message names it."""


class Batch(NamedTuple):
    """Transitions as the learner sees them. Leading axis ``batch``; sub-sequences have ``(batch, time, ...)``."""

    observation: Tensor  # (batch, observation), float32, or uint8 where these are pictures
    action: Tensor  # (batch, action), in the environment's own units
    reward: Tensor  # (batch,)
    cost: Tensor  # (batch, constraints); constraints may be 0
    next_observation: Tensor  # (batch, observation): the real one, also at the end of an episode
    terminated: Tensor  # (batch,) float, 1 where the task itself ended; a time limit is not an end


class EnvShape(NamedTuple):
    """All that a learner needs to know of an environment."""

    observation: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    constraints: int
    image: tuple[int, int, int] | None = None
    """(channels, height, width) of the pictures whose entries an observation is, one after the other; None for other observations"""

    @property
    def action(self) -> int:
        return len(self.action_low)

    @property
    def dtype(self) -> type[np.generic]:
        """What observations are made of: bytes in pictures, else float32."""
        return np.float32 if self.image is None else np.uint8


class Policy(Protocol):
    """Something that acts. Randomness is an argument, so that evaluation never disturbs training."""

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        """(envs, observation) -> (envs, action), in the environment's own units and inside its bounds."""
        ...


@runtime_checkable
class Planner(Policy, Protocol):
    """A policy whose next action starts from what it planned last; ``act`` is that of an episode's first step."""

    @property
    def memory_size(self) -> int:
        """Numbers that are carried from step to step for each environment."""
        ...

    def act_on(self, observation: Tensor, memory: Tensor, mode: ActMode, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(envs, observation), (envs, memory_size) -> (envs, action) as ``act``, and the memory of the next step.

        The memory is zeros at the start of an episode.
        """
        ...


class Learner(Policy, Protocol):
    """A system as the training loop sees it."""

    def observe(self, observation: Tensor) -> None:
        """Show new observations ``(envs, observation)`` once each, for running statistics."""
        ...

    def update(self, replay: Replay, updates: int) -> Metrics:
        """Make ``updates`` gradient updates from ``replay``; metrics are of the last one.

        Raises ``NonFiniteError`` naming the first loss or gradient that is not finite.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update depends on, as tensors: weights, targets, optimiser moments, multiplier, counters, RNG."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict`` to the bit. Raises ``UserError`` when names or shapes do not fit."""
        ...
