"""What a system is asked for, and what is taken where it offers less.

A system is a learner and its config. The **learner** is a class with ``system`` (its name), ``needs_cost`` and the
methods of ``saddlepoint.types.Learner``; it is called as ``LearnerFactory`` shows. The **config** is a frozen dataclass
with a default for every field, from which the flags of the command line are made: a field's docstring, the text below
it, is its help. It needs nothing else; ``LearnerConfig`` lists what it may have.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin, get_type_hints, runtime_checkable

import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.options import conform
from saddlepoint.types import EnvShape, Learner, UserError

T = TypeVar("T")
C = TypeVar("C", contravariant=True)


class LearnerConfig(Protocol):
    """All that a config may have. Whatever is missing is as the default below says."""

    cost_gamma: float
    """discount of costs, which the budgets get; default: ``gamma``, or 0.99 where there is none either"""
    ACTING: ClassVar[frozenset[str]]
    """fields that only change how a trained policy acts, which ``load_policy(acting=...)`` may set; default: none"""

    def validate(self) -> None:
        """Raise ``UserError`` for values that cannot work. Types and choices were checked before. Default: all is well.
        """

    def refuse_idle(self, given: Collection[str]) -> None:
        """Raise ``UserError`` when one of the fields ``given`` by flag or file has no effect beside the others.
        Default: all have one."""

    def refuse_acting(self, trained: Any, given: Collection[str]) -> None:
        """Raise ``UserError`` when a learner of the config ``trained`` cannot act as this one says. Default: it can."""

    def refuse_cost_options(self, given: Collection[str]) -> None:
        """Raise ``UserError`` for fields that have no effect without a cost budget. Default: there are none."""


class LearnerFactory(Protocol[C]):
    """What builds a learner, such as its class."""

    @property
    def system(self) -> str:
        """the system's name on the command line and in config.json"""
        ...

    @property
    def needs_cost(self) -> bool:
        """whether it can only learn in environments with a cost"""
        ...

    def __call__(
        self, config: C, shape: EnvShape, budgets: tuple[CostBudget, ...], seed: int, device: torch.device,
        *, compile: bool,
    ) -> Learner: ...  # fmt: skip


@runtime_checkable
class SeesPixels(Protocol):
    """A ``LearnerFactory`` whose learners take pictures for observations as well (``EnvShape.image``)."""

    @property
    def sees_pixels(self) -> bool: ...


@runtime_checkable
class TurnsBudgets(Protocol):
    """A ``LearnerFactory`` whose learners take observations that end with a budget (``EnvShape.budget_range``)."""

    @property
    def turns_budgets(self) -> bool: ...


@runtime_checkable
class GainsByCompiling(Protocol):
    """A ``LearnerFactory`` whose learners' updates were measured to be faster compiled, on a CPU, with some of its
    configs."""

    def gains_by_compiling(self, config: Any) -> bool: ...


@runtime_checkable
class _Validates(Protocol):
    def validate(self) -> None: ...


@runtime_checkable
class _RefusesIdle(Protocol):
    def refuse_idle(self, given: Collection[str]) -> None: ...


@runtime_checkable
class _RefusesActing(Protocol):
    def refuse_acting(self, trained: Any, given: Collection[str]) -> None: ...


@runtime_checkable
class _RefusesCostOptions(Protocol):
    def refuse_cost_options(self, given: Collection[str]) -> None: ...


def checked(config: T) -> T:
    """``config`` with its values conformed and validated. Raises ``UserError``."""
    config = conform(config)
    if isinstance(config, _Validates):
        config.validate()
    return config


def checked_for(learner: Any, config: T) -> T:
    """``checked``, of a config of the class that ``learner`` takes. Raises ``UserError``."""
    wanted = _config_class(learner)
    if wanted is not None and not isinstance(config, wanted):
        given = f"the class {config.__name__} itself" if isinstance(config, type) else type(config).__name__
        raise UserError(
            f"{learner.system} takes a config of class {wanted.__name__}, not {given}: give {wanted.__name__}()."
        )
    return checked(config)


def refuse_idle(config: Any, given: Collection[str]) -> None:
    """``LearnerConfig.refuse_idle``."""
    if isinstance(config, _RefusesIdle):
        config.refuse_idle(given)


def refuse_acting(config: Any, trained: Any, given: Collection[str]) -> None:
    """``LearnerConfig.refuse_acting``."""
    if isinstance(config, _RefusesActing):
        config.refuse_acting(trained, given)


def refuse_cost_options(config: Any, given: Collection[str]) -> None:
    """``LearnerConfig.refuse_cost_options``."""
    if isinstance(config, _RefusesCostOptions):
        config.refuse_cost_options(given)


def acting_fields(config: Any) -> frozenset[str]:
    """``LearnerConfig.ACTING``."""
    return frozenset(getattr(type(config), "ACTING", ()))


def cost_gamma(config: Any) -> float:
    """``LearnerConfig.cost_gamma``."""
    values = vars(config)
    return float(values.get("cost_gamma", values.get("gamma", CostBudget.gamma)))


def _config_class(learner: Any) -> type[Any] | None:
    """The class that a learner's constructor says its config is of; None where it does not say."""
    kind = learner if isinstance(learner, type) else type(learner)
    try:
        found = get_type_hints(getattr(kind, "__init__" if kind is learner else "__call__")).get("config")
    except (NameError, TypeError, AttributeError):  # annotations that exist for type checkers only
        return None
    found = _stands_for(kind, found)
    return found if isinstance(found, type) else None


def _stands_for(kind: type[Any], hint: Any) -> Any:
    """``hint``, or what ``kind`` puts in the place of a base's type variable: SACConfig for that of SAC(ActorCritic[SACConfig])."""
    for base in kind.__dict__.get("__orig_bases__", kind.__bases__) if isinstance(hint, TypeVar) else ():
        origin = get_origin(base) or base
        inner = _stands_for(origin, hint)
        found = dict(zip(getattr(origin, "__parameters__", ()), get_args(base))).get(inner, inner)
        if found is not hint:
            return found
    return hint
