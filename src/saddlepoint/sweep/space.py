"""The [search] table of a sweep's file: which flags are searched, over what, for how long, and when a point is given up.

```toml
[search]
trials = 20                        # points for each algorithm and environment; each trains every seed
seed = 0                           # optional: of the sampler
evaluations = 1                    # optional: a run's result is the mean of its last so many evaluations
prune = ["budget", "return"]       # optional: why a point may be given up; [] trains every one to its end
prune_from = 0.5                   # optional: share of the steps before which none is
prune_over = 2.0                   # optional: budgets that two evaluations in a row must cost

[search.flags]                     # flags of `saddlepoint train`, for all algorithms ...
multiplier_rate = { low = 0.001, high = 0.1, log = true }
cost_steps = { low = 1, high = 8 }
[algorithms.algd.search]           # ... or for one
critic_hidden = { choices = [[128, 128], [256, 256]] }
```
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeAlias

Refuse: TypeAlias = Callable[[str], NoReturn]
"""raises ``UserError`` with the words, which it puts after the file's name"""
CAUSES = ("budget", "return")
MOST_POINTS = 5_000


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included: whole ones where both are."""

    low: float
    high: float
    log: bool = False
    """drawn so that each factor of ten is as likely"""
    step: float | None = None
    """only low, low + step, low + 2 step, ..."""

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> list[Any]:
        """The values that are tried before the first run starts."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple[Any, ...]

    def ends(self) -> list[Any]:
        return list(self.values)


Domain: TypeAlias = Range | Choices


@dataclass(frozen=True)
class SearchFlags:
    """The keys of [search] but ``flags``."""

    trials: int
    seed: int = 0
    evaluations: int = 1
    prune: tuple[str, ...] = CAUSES
    prune_from: float = 0.5
    prune_over: float = 2.0


def read_search(table: dict[str, Any], refuse: Refuse) -> SearchFlags:
    """The table without its ``flags``."""
    known = {field.name for field in fields(SearchFlags)}
    for key in table.keys() - known - {"flags"}:
        refuse(f"[search] has no key {key!r}: use {', '.join(sorted(known))} and flags")
    for key, least in (("trials", 1), ("seed", 0), ("evaluations", 1)):
        if key in table and (type(table[key]) is not int or table[key] < least):
            refuse(f"{key} of [search] must be a whole number of at least {least}, not {table[key]!r}")
    if "trials" not in table:
        refuse("[search] needs the number of points, such as trials = 20")
    if table["trials"] > MOST_POINTS:
        refuse(f"trials of [search] is {table['trials']:,}, and at most {MOST_POINTS:,} are taken")
    prune = table.get("prune", list(CAUSES))
    if not isinstance(prune, list) or not all(cause in CAUSES for cause in prune):
        refuse(f"prune of [search] must be a list of some of {', '.join(CAUSES)}, not {prune!r}")
    found = {key: value for key, value in table.items() if key != "flags"} | {"prune": tuple(prune)}
    for key in ("prune_from", "prune_over"):
        if key in found and not _is_number(found[key]):
            refuse(f"{key} of [search] must be a number, not {found[key]!r}")
    flags = SearchFlags(**found)
    if not 0 <= flags.prune_from <= 1:
        refuse(f"prune_from of [search] is a share of the steps, from 0 to 1, not {flags.prune_from}")
    if not flags.prune_over >= 1:
        refuse(f"prune_over of [search] counts budgets, so it must be at least 1, not {flags.prune_over}")
    return flags


def read_domains(table: dict[str, Any], title: str, refuse: Refuse) -> dict[str, Domain]:
    """By flag, with underscores, what it may be."""
    domains: dict[str, Domain] = {}
    for key, value in table.items():
        name, where = key.replace("-", "_"), f"{key} of {title}"
        if not isinstance(value, dict) or not value:
            refuse(f"{where} must be such as {{ low = 0.001, high = 0.1, log = true }} or {{ choices = [1, 2] }}")
        domains[name] = _choices(value, where, refuse) if "choices" in value else _range(value, where, refuse)
    return domains


def _choices(value: dict[str, Any], where: str, refuse: Refuse) -> Choices:
    choices = value["choices"]
    if value.keys() != {"choices"} or not isinstance(choices, list) or len(choices) < 2:
        refuse(f"{where} must be a list of at least two choices and nothing else")
    if any(choice in choices[:number] for number, choice in enumerate(choices)):
        refuse(f"{where} names one of its choices twice")
    return Choices(tuple(choices))


def _range(value: dict[str, Any], where: str, refuse: Refuse) -> Range:
    for key in value.keys() - {"low", "high", "log", "step"}:
        refuse(f"{where} has no key {key!r}: use low, high, log and step, or choices")
    if not {"low", "high"} <= value.keys() or not all(_is_number(value[key]) for key in value.keys() - {"log"}):
        refuse(f"{where} needs two numbers, low and high")
    found = Range(**value)
    if not found.low < found.high:
        refuse(f"{where} must have its low ({found.low}) below its high ({found.high})")
    if not isinstance(found.log, bool) or (found.log and found.low <= 0):
        refuse(f"{where}: log must be true or false, and true only where low is above 0")
    if found.step is not None:
        if found.log:
            refuse(f"{where} takes log or step, not both")
        if found.step <= 0 or (found.whole and not isinstance(found.step, int)):
            refuse(f"{where}: step must be above 0, and whole where low and high are")
        if (steps := (found.high - found.low) / found.step) != round(steps):
            refuse(f"{where}: high must be a whole number of steps above low")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
