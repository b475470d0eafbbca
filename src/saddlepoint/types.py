"""What the packages say to each other: shapes, a batch of transitions, the learner protocol, the user's errors.

Shape words used everywhere: ``envs``, ``batch``, ``observation``, ``action``, ``constraints``, ``members``, ``proposals``, ``horizon``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # PyTorch takes seconds to import, and Gymnasium's registry needs this module
    import torch
    from torch import Tensor

    from saddlepoint.replay import Replay

Metrics: TypeAlias = "dict[str, Tensor | float | Later]"
"""Flat metric names to what ``float`` makes numbers of: 0-d tensors, which an update need not wait for, and what is computed only then."""

ActMode: TypeAlias = Literal["explore", "stochastic", "deterministic"]
"""``explore``: the behaviour policy. ``stochastic``: a sample of the policy. ``deterministic``: its noise-free action."""


class Later:
    """An entry ``at`` of a metric that is computed when it is first read, by ``float``: most updates' metrics never are."""

    def __init__(self, compute: Callable[[], Tensor], at: int) -> None:
        self._compute, self._at = compute, at

    def __float__(self) -> float:
        return float(self._compute()[self._at])


def per_constraint(values: Mapping[str, Tensor | list[Later]]) -> Metrics:
    """(constraints,) each as metrics, ``name`` for one constraint and ``name_0``, ``name_1``, ... for several."""
    return {
        name if len(value) == 1 else f"{name}_{c}": value[c] for c in range(max(map(len, values.values()), default=0)) for name, value in values.items()
    }


class UserError(Exception):
    """A mistake of the user's, or of the machine they run on: one clear sentence (what, where, what to do), shown without a traceback."""


class ForeignFault(UserError):
    """Code that is not ours (an environment, a reward, a detector) raised an error, gave what it must not, or is gone; what is learnt is unharmed."""


class NotMade(ForeignFault):
    """An environment could not be made: its constructor failed."""


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


@dataclass(frozen=True)
class EnvSetup:
    """How environments are made and stepped: the same in training, evaluation, video and collection.

    Raises ``UserError`` for a value that cannot work.
    """

    env: str | Callable[..., Any]
    """environment id, such as saddlepoint/Toy-v0, or a class or function that makes an environment"""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """arguments of the environment; ``max_episode_steps`` among them replaces its time limit"""
    flatten: bool = False
    """make one vector of Dict, Tuple and discrete observations"""
    action_repeat: int = 1
    """simulator steps that an action is held for; 0 takes the task's own"""
    longest: int | None = None
    """steps after which an episode is truncated where the environment has no time limit; None leaves it endless"""
    cut: int | None = None
    """steps after which an episode is truncated in any case; None leaves it whole"""

    def __post_init__(self) -> None:
        if not isinstance(self.env, str) and not callable(self.env):
            raise UserError(
                f"an environment cannot be {_kind(self.env)} object: give its id, or the class or function that makes"
                " it, because an evaluation makes others."
            )
        if not isinstance(self.kwargs, Mapping) or not all(isinstance(name, str) for name in self.kwargs):
            raise UserError(f"the arguments of an environment must be a dict by their names, not {_kind(self.kwargs)} of {self.kwargs!r:.60}.")
        if not isinstance(self.flatten, bool):
            raise UserError(f"flatten must be True or False, not {self.flatten!r:.60}.")
        for name in ("action_repeat", "longest", "cut"):
            value = getattr(self, name)
            known = value is None and name != "action_repeat"
            if not known and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise UserError(f"{name} of an environment must be a whole number, not {value!r:.60}.")
        if "render_mode" in self.kwargs:
            raise UserError("--env-kwargs cannot set render_mode, which depends on what is drawn: leave it out.")
        if self.action_repeat < 0:
            raise UserError(f"--action-repeat must be at least 1, or 0 for the task's own, not {self.action_repeat}.")
        if self.longest is not None and self.longest < 1:
            raise UserError(f"an episode needs at least one step, not {self.longest}.")

    @classmethod
    def of(cls, env: str | Callable[..., Any] | EnvSetup) -> EnvSetup:
        """``env`` itself where it is a setup already, else the plain one of that environment."""
        return env if isinstance(env, EnvSetup) else cls(env)

    @property
    def name(self) -> str:
        """What errors and config.json call the environment: its id, or ``module:name`` of what makes it."""
        return self.env if isinstance(self.env, str) else maker_name(self.env)


    def describe(self) -> str:
        """The environment in a line: its name, and what is not usual."""
        parts = [f"{name}={value}" for name, value in self.kwargs.items()]
        parts += ["flattened"] if self.flatten else []
        parts += [f"each action held for {self.action_repeat} simulator steps"] if self.action_repeat > 1 else []
        return f"{self.name} ({', '.join(parts)})" if parts else self.name


def maker_name(maker: Callable[..., Any]) -> str:
    """``module:name`` of a class or function, by which it can be found again; with < in it where it cannot."""
    module = getattr(maker, "__module__", None) or type(maker).__module__
    return f"{module}:{getattr(maker, '__qualname__', f'<{type(maker).__qualname__}>')}"


def as_json(name: str, values: Any) -> dict[str, Any]:
    """A dict as config.json gives it back (tuples become lists). Raises ``UserError`` for what JSON cannot hold."""
    try:
        plain = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name} must hold numbers, texts, true, false, null and lists of them, because config.json keeps it"
            f" ({error}): build what else is needed in a function that makes the environment."
        ) from error
    if not isinstance(plain, dict):
        raise UserError(f"{name} must be one object of names and values, not {_kind(values)}.")
    return plain


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class EnvShape(NamedTuple):
    """All that a learner needs to know of an environment."""

    observation: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    """bounds that float32 holds exactly, inside the environment's own"""
    constraints: int
    image: tuple[int, int, int] | None = None
    """(channels, height, width) of the pictures whose entries an observation is, one after the other; None for other observations"""
    action_dtype: str = "float32"
    """number type of the environment's actions"""
    budget_range: tuple[float, float] | None = None
    """where the last entry of an observation is the budget of its episode: the lowest and highest"""
    lidars: tuple[tuple[int, int], ...] = ()
    """rings of lidar readings in an observation: the first entry and the number of readings of each (``--encoding objects``)"""

    @property
    def action(self) -> int:
        return len(self.action_low)

    @property
    def dtype(self) -> type[np.generic]:
        """What observations are made of: bytes in pictures, else float32."""
        return np.float32 if self.image is None else np.uint8

    def fit(self, action: np.ndarray) -> np.ndarray:
        """(..., action) -> the same within the bounds, to the bit, in the environment's own number type."""
        low, high = np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        return np.asarray(action, np.float32).clip(low, high).astype(self.action_dtype)


class Policy(Protocol):
    """Something that acts. Randomness is an argument, so that evaluation never disturbs training."""

    def act(self, observation: Tensor, mode: ActMode, generator: torch.Generator) -> Tensor:
        """(envs, observation) -> (envs, action), in the environment's own units and inside its bounds."""
        ...


@runtime_checkable
class TakesArrays(Protocol):
    """A policy to act with outside of training: what it takes and gives are NumPy arrays, so that it is no ``Policy``, but holds one."""

    @property
    def takes_arrays(self) -> bool: ...


@runtime_checkable
class Planner(Policy, Protocol):
    """A policy whose next action starts from the last: from what it planned, or from the noise that it drew. ``act`` is that of an episode's first step."""

    @property
    def memory_size(self) -> int:
        """Numbers that are carried from step to step for each environment; 0 for a policy that carries nothing."""
        ...

    def act_on(self, observation: Tensor, memory: Tensor, mode: ActMode, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(envs, observation), (envs, memory_size) -> (envs, action) as ``act``, and the memory of the next step.

        The memory is zeros at the start of an episode.
        """
        ...


@runtime_checkable
class CountsCost(Planner, Protocol):
    """A planner that can act by what its episode has cost so far, which its memory counts."""

    @property
    def counts_cost(self) -> bool:
        """Whether it does: then it must be told what each step cost."""
        ...

    def paid(self, memory: Tensor, cost: Tensor) -> Tensor:
        """(envs, memory_size) after a step that cost (envs, constraints)."""
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
