"""Command lines to frozen dataclasses, with tyro, and each mistake in one sentence."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, is_dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from saddlepoint.files import parse_json, read_json, reason_of
from saddlepoint.options import MOST_WHOLE, as_flags, flag
from saddlepoint.types import UserError

T = TypeVar("T")
FOLDERS = ("--out", "--resume", "--start-from", "--data")
"""flags whose value names a folder; an empty one would be the current folder"""


class Parsed(NamedTuple):
    """A parsed command line."""

    values: Any
    given: frozenset[str]
    """fields that were given, by a flag or a file, not left at their default"""

    def over(self, part: T, base: T) -> T:
        """``base`` with every field of ``part`` that was given, in configs inside it too."""
        changes: dict[str, Any] = {}
        for name, value in vars(part).items():
            if is_dataclass(value):
                changes[name] = self.over(value, getattr(base, name))
            elif name in self.given:
                changes[name] = value
        return replace(base, **changes)  # type: ignore[type-var]

    def refuse_beside_resume(self, other: Collection[str]) -> None:
        """Raises ``UserError`` when one of these fields was given with --resume, which takes them from the run."""
        for name in sorted(self.given & set(other)):
            raise UserError(f"--resume {self.values.launch.resume} takes everything from that run: leave out {flag(name)}.")


def parse(kind: type[Any], default: Any, args: Sequence[str], prog: str, help: Callable[[], str] | None = None) -> Parsed:
    """Flags, flat, of a dataclass of dataclasses. Raises ``UserError``; ``--help`` prints ``help``, or the fields in their order, and exits."""
    if help is not None and {"-h", "--help"} & set(args):
        print(help(), end="")
        raise SystemExit(0)
    known = field_names(default)
    given = {_field(arg, known, prog) for arg in args if arg.startswith("--") and arg != "--help"}
    for word, following in zip(args, [*args[1:], None]):
        if word.partition("=")[0] in FOLDERS and (word.endswith("=") or following == ""):
            raise UserError(f"{prog}: {word.rstrip('=')} is given an empty name (perhaps a shell variable that is not set): name a folder.")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            values, stray = tyro.cli(
                kind, args=list(args), default=default, prog=prog, return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes,), registry=_REGISTRY,
            )  # fmt: skip
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        raise UserError(f"{_first_sentence(errors.getvalue())} (see `{prog} --help`).") from None
    if stray:
        raise UserError(f"{prog} does not take {stray[0]!r}: every setting is a flag (see `{prog} --help`).")
    return Parsed(values, frozenset(given))


def parse_with_file(kind: type[Any], default: Any, args: Sequence[str], prog: str, help: Callable[[], str] | None = None) -> Parsed:
    """``parse``, with the settings of the JSON file that --config (``launch.config``) names below those of the flags. Raises ``UserError``."""
    parsed = parse(kind, default, args, prog, help)
    path: Path | None = parsed.values.launch.config
    if path is None:
        return parsed
    from_file = _file_args(path, default)
    try:
        parse(kind, default, from_file, prog)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return parse(kind, default, [*from_file, *args], prog)


def _file_args(path: Path, default: Any) -> list[str]:
    """A file of flat settings as flags, so that they are read as flags are."""
    advice = 'it must hold one object such as {"env": "saddlepoint/Toy-v0"}'
    content = read_json(path, "the settings of --config", advice=advice)
    known = {name: value for name, value in _fields(default).items() if name not in ("config", "resume")}
    args: list[str] = []
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UserError(f"{path}: there is no setting {key!r}{_near(name, frozenset(known))}.")
        if isinstance(value, bool) != isinstance(known[name], bool):
            wanted = "true or false" if isinstance(known[name], bool) else "a number, a text or a list of them"
            raise UserError(f"{path}: the setting {key!r} must be {wanted}, not {json.dumps(value)}.")
        if not isinstance(value, list | dict | str | int | float):
            raise UserError(f"{path}: the setting {key!r} must be a number, a text, true, false or a list of them.")
        args += as_flags(name, value)
    return args


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _mapping_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
    """How a flag of names and values is read: ``wind=0.5 task=reach``, or one JSON object."""
    if get_origin(info.type) is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs="*", metavar="NAME=VALUE... | JSON", instance_from_str=read_mapping,
        is_instance=lambda value: isinstance(value, dict), str_from_instance=lambda value: [json.dumps(value)],
    )  # fmt: skip


@_REGISTRY.primitive_rule
def _text_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """What may also be a class or function in Python is a text on the command line."""
    if not any(get_origin(part) is get_origin(Callable[[], Any]) for part in get_args(info.type)):
        return None
    return PrimitiveConstructorSpec(
        nargs=1, metavar="STR", instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str) or callable(value), str_from_instance=lambda value: [str(value)],
    )  # fmt: skip


@_REGISTRY.primitive_rule
def _integer_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    """How a whole number is read: 20000, 20_000 or 2e4."""
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1, metavar="INT", instance_from_str=lambda words: read_integer(words[0]),
        is_instance=lambda value: type(value) is int, str_from_instance=lambda value: [str(value)],
    )  # fmt: skip


def read_integer(word: str) -> int:
    """A whole number, in scientific form too. Raises ``ValueError``."""
    try:
        found = int(word)
    except ValueError:
        number = Decimal(word) if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE]\+?[0-9]{1,3})?", word) else None
        if number is None or number != number.to_integral_value():
            raise ValueError(f"{word} is not a whole number") from None
        found = int(number)
    if abs(found) > MOST_WHOLE:
        raise ValueError(f"{word:.40} is too large")
    return found


def read_mapping(words: list[str]) -> dict[str, Any]:
    """``name=value`` words, each value JSON or else a text, or one JSON object. Raises ``ValueError``."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            return parse_json(words[0])
        except ValueError as error:
            raise ValueError(f"{words[0][:200]} is not JSON ({reason_of(error)})") from None
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name):
            raise ValueError(f"{word} is not NAME=VALUE")
        try:
            values[name] = parse_json(value, object)
        except ValueError:
            values[name] = value
    return values


def field_names(config: Any) -> frozenset[str]:
    """Names of all fields, those of dataclasses inside included."""
    return frozenset(_fields(config))


def _fields(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(config):
        value = vars(config)[field.name]
        found |= _fields(value) if hasattr(value, "__dataclass_fields__") else {field.name: value}
    return found


def _field(arg: str, known: frozenset[str], prog: str) -> str:
    name = arg[2:].split("=")[0].replace("-", "_")
    for candidate in (name, name.removeprefix("no_")):
        if candidate in known:
            return candidate
    raise UserError(f"{prog} has no flag {flag(name)}{_near(name, known)} (see `{prog} --help`).")


def _near(name: str, known: frozenset[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {flag(match[0])[2:]}?" if match else ""


def _first_sentence(box: str) -> str:
    """The first part of tyro's message after its title; the frame round it depends on the terminal's encoding."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line.strip("│ ")
        if set(text) <= set("─-╰╯"):
            parts.append([])
        else:
            parts[-1].append(text)
    return next((" ".join(" ".join(part).split()).rstrip(".") for part in parts if part), "these flags cannot be read")
