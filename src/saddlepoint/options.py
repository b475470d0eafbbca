"""Frozen configs: whether each value is of its field's type and among its choices, however it came in: command line,
file, sweep, checkpoint or Python."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from saddlepoint.types import UserError

T = TypeVar("T")
Effect: TypeAlias = tuple[Callable[[Any], bool], str]
"""when a field of a config acts, and what it needs, in words"""


MOST_SEED = 2**31
"""seeds below this are taken by every library; those of later episodes are counted on from it"""
MOST_EPISODES = 1_000_000
MOST_WHOLE = 10**30
"""no whole number is larger; smaller ones have ranges of their own, or do not fit into memory"""
MOST_LEVELS = 1000
"""diffusion steps of a policy or a plan: as many as the longest published schedules have"""


class Misfit(ValueError):
    """A value is not of its type; the message says what would be."""


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def as_flag(name: str, value: str) -> str:
    """NAME=VALUE as a flag: --name=value, --name for true, --no-name for false."""
    switches = {"true": flag(name), "false": flag(f"no_{name}")}
    return switches.get(value.lower(), f"{flag(name)}={value}")


def as_flags(name: str, value: Any) -> list[str]:
    """A setting of a file as on the command line: --name=value, --name or --no-name, or --name and each item of a list."""
    if isinstance(value, bool):
        return [flag(name if value else f"no_{name}")]
    if isinstance(value, list):
        return [flag(name), *map(str, value)]
    return [f"{flag(name)}={json.dumps(value) if isinstance(value, dict) else value}"]


def chosen_preset(name: str, presets: Mapping[str, T]) -> T:
    """The preset of this name. Raises ``UserError`` naming those that there are."""
    if name not in presets:
        raise UserError(f"there is no preset {name!r}: use one of {', '.join(presets)}.")
    return presets[name]


def require_seed(seed: Any, name: str = "--seed") -> int:
    """``seed``, or ``UserError`` where not every library takes it."""
    return whole_number(name, seed, 0, MOST_SEED - 1)


def require_episodes(count: Any, least: int = 1, name: str = "--episodes") -> int:
    """``count``, or ``UserError`` for a number of episodes that is too small, or that no machine would ever finish."""
    return whole_number(name, count, least, MOST_EPISODES)


def shown(value: Any) -> str:
    """What a value looks like; a whole number of thousands of digits has no decimal form in Python."""
    try:
        return f"{value!r:.60}"
    except ValueError:
        return f"an endless {type(value).__name__}"


def whole_number(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """``value`` as an int from ``least`` to ``most``. Raises ``UserError`` that calls it ``name``."""
    try:
        found = int(fit(value, int))
    except Misfit as misfit:
        raise UserError(f"{name} cannot be {shown(value)}: {misfit}.") from None
    if found < least or (most is not None and found > most):
        wanted = f"be at least {least}" if most is None else f"lie from {least} to {most:,}"
        raise UserError(f"{name} must {wanted}, not {found!s:.60}.")
    return found


def require_at_least(config: object, bounds: Mapping[str, int]) -> None:
    """Raises ``UserError`` for the first field, or property ``resolved_<field>``, that is below its bound."""
    for name, least in bounds.items():
        if (value := getattr(config, name)) < least:
            raise UserError(f"{flag(name.removeprefix('resolved_'))} must be at least {least}, not {value}.")


def require_finite(config: object) -> None:
    """Raises ``UserError`` for the first number that is not finite."""
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag(name)} must be a finite number, not {value}.")


def require_positive(config: object, names: Iterable[str]) -> None:
    """Raises ``UserError`` for the first of these fields, or properties ``resolved_<field>``, that is neither None nor above 0."""
    for name in names:
        if not ((value := getattr(config, name)) is None or value > 0):
            raise UserError(f"{flag(name.removeprefix('resolved_'))} must be greater than 0, not {value}.")


def require_not_negative(config: object, names: Iterable[str]) -> None:
    """Raises ``UserError`` for the first of these fields that is below 0."""
    for name in names:
        if (value := getattr(config, name)) < 0:
            raise UserError(f"{flag(name)} must not be negative: it is {value}.")


def require_shares(config: object, names: Iterable[str]) -> None:
    """Raises ``UserError`` for the first of these fields that is neither None nor in (0, 1]."""
    for name in names:
        if not ((value := getattr(config, name)) is None or 0 < value <= 1):
            raise UserError(f"{flag(name)} must lie in (0, 1], not {value}.")


def require_layers(config: object, names: Iterable[str]) -> None:
    """Raises ``UserError`` for the first of these fields that is no row of layers with units."""
    for name in names:
        if not (value := getattr(config, name)) or min(value) < 1:
            raise UserError(f"{flag(name)} needs at least one layer of at least one unit, not {value}.")


def refuse_idle(config: Any, given: Collection[str], *tables: Mapping[str, Effect]) -> None:
    """Raises ``UserError`` when one of the fields ``given`` has no effect beside the others, as one of the ``tables`` says."""
    for table in tables:
        for name, (acts, needs) in table.items():
            if name in given and not acts(config):
                raise UserError(f"{flag(name)} does nothing here: it needs {needs}. Leave it out, or change that.")


def number(name: str, value: Any) -> float:
    """``value`` as a finite float. Raises ``UserError`` that calls it ``name``."""
    try:
        found = float(fit(value, float))
    except Misfit as misfit:
        raise UserError(f"{name} cannot be {value!r:.60}: {misfit}.") from None
    if not math.isfinite(found):
        raise UserError(f"{name} must be finite, not {found}.")
    return found


def truth_value(name: str, value: Any) -> bool:
    """``value`` as a bool. Raises ``UserError`` that calls it ``name``."""
    try:
        return bool(fit(value, bool))
    except Misfit as misfit:
        raise UserError(f"{name} cannot be {value!r:.60}: {misfit}.") from None


def several(what: str, given: Any, kind: type[T], example: str) -> tuple[T, ...]:
    """``given`` as a tuple of instances of ``kind``; one alone is taken as well. Raises ``UserError``, also for sets, which have no order."""
    if isinstance(given, set | frozenset) and len(given) > 1:
        raise UserError(f"{what} need an order, and a set has none: give a list of them.")
    try:
        found = tuple(given)
    except TypeError:  # one alone, or a tensor of one number
        found = (given,)
    if odd := [item for item in found if not isinstance(item, kind)]:
        name = f"the class {odd[0].__name__}" if isinstance(odd[0], type) else type(odd[0]).__name__
        raise UserError(f"{what} must be instances of {kind.__name__}, not {name}: give {example}, for example.")
    return found


def conform(config: T) -> T:
    """``config``, a frozen dataclass, with every value of its field's type; dataclasses in it likewise.

    What can only mean one thing is taken as that: a text for a path, a list for a tuple, 2e4 for 20000, a NumPy number.
    Raises ``UserError`` for the first other value, and for what is no frozen dataclass.
    """
    require_config(config)
    hints = get_type_hints(type(config))
    changes = {}
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        try:
            fitted = fit(value, hints[field.name])
        except Misfit as misfit:
            raise UserError(f"{flag(field.name)} cannot be {value!r}: {misfit}.") from None
        if type(fitted) is not type(value) or repr(fitted) != repr(value):  # nan is not equal to itself, nor is (1,) to (True,)
            changes[field.name] = fitted
    return replace(config, **changes) if changes else config  # type: ignore[type-var]


def require_config(config: Any) -> None:
    """Raises ``UserError`` for what is no instance of a frozen dataclass."""
    parameters = vars(type(config)).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        name = config.__name__ if isinstance(config, type) else type(config).__name__
        raise UserError(f"a config must be an instance of a frozen dataclass, not {name}: give such as ALGDConfig().")


def restore(kind: type[T], values: dict[str, Any], where: Path) -> T:
    """A config of ``kind`` from JSON; fields that are newer than the file take their default. Raises ``UserError`` for
    fields that this version has not, and for values of another type."""
    if unknown := set(values) - {field.name for field in fields(kind)}:  # type: ignore[arg-type]
        odd = ", ".join(sorted(unknown))
        raise UserError(f"{where} was written by another version of saddlepoint (fields {odd}): use that version.")
    hints = get_type_hints(kind)
    fitted = {}
    for name, value in values.items():
        try:
            fitted[name] = (
                restore(hints[name], value, where)
                if is_dataclass(hints[name]) and isinstance(value, dict)
                else fit(value, hints[name])
            )
        except Misfit:
            raise UserError(
                f"{where} is damaged ({flag(name)} cannot be {value!r}): restore it, or use the version of saddlepoint that wrote it."
            ) from None
    return kind(**fitted)


def fit(value: Any, hint: Any) -> Any:
    """``value`` as one of type ``hint``. Raises ``Misfit``."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin is Literal:
        for choice in inner:
            if type(value) is type(choice) and value == choice:
                return choice
        raise Misfit(f"use one of {', '.join(map(str, inner))}")
    if origin in (Union, UnionType):
        return _fit_one(value, inner)
    if origin is tuple:
        if isinstance(value, str | bytes | dict):
            raise Misfit("give a tuple")
        try:
            items = tuple(value)
        except TypeError as error:
            raise Misfit("give a tuple") from error
        kinds = (inner[0],) * len(items) if len(inner) == 2 and inner[1] is Ellipsis else inner
        if len(kinds) != len(items):
            raise Misfit(f"give {len(kinds)} values")
        return tuple(fit(item, part) for item, part in zip(items, kinds))
    if origin is not None:
        if callable(value) if origin is get_origin(Callable[[], Any]) else isinstance(value, origin):
            return value
        raise Misfit(
            "a class or function that makes it" if origin is get_origin(Callable[[], Any]) else "it is of another type"
        )
    return _fit_plain(value, hint)


def _fit_one(value: Any, hints: tuple[Any, ...]) -> Any:
    """``value`` as one of several types: its own where that is among them."""
    misfits: list[str] = []
    for exact in (True, False):
        for hint in hints:
            if exact and not (isinstance(hint, type) and type(value) is hint):
                continue
            try:
                return fit(value, hint)
            except Misfit as misfit:
                if not exact and hint is not NoneType:
                    misfits.append(str(misfit))
    raise Misfit(" or ".join(dict.fromkeys([*misfits, *(["None"] if NoneType in hints else [])])))


def _fit_plain(value: Any, hint: type[Any]) -> Any:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # one number of NumPy or PyTorch
        value = value.item()
    boolean = isinstance(value, bool)
    if hint is bool:
        if boolean:
            return bool(value)
        raise Misfit("use True or False")
    if hint is int:
        if isinstance(value, Integral) and not boolean:
            if abs(int(value)) > MOST_WHOLE:
                raise Misfit("it is too large")
            return int(value)
        if isinstance(value, Real) and not boolean and float(value).is_integer():
            return int(float(value))
        raise Misfit("give a whole number")
    if hint is float:
        if isinstance(value, Real) and not boolean:
            try:
                return float(value)
            except OverflowError:
                raise Misfit("it is too large") from None
        raise Misfit("give a number")
    if hint is Path:
        if isinstance(value, str | os.PathLike):
            return Path(value)
        raise Misfit("give a path")
    if isinstance(value, hint):
        return conform(value) if is_dataclass(hint) else value
    raise Misfit({str: "give a text", NoneType: "give None"}.get(hint, f"give a {hint.__name__}"))
