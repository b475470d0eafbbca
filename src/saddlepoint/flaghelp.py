"""`--help` in groups: the flags that matter first, then the rest by purpose, each with its text and default."""

from __future__ import annotations

import ast
import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from saddlepoint.options import flag

INDENT = 26
"""columns of the flags, before their texts"""
GROUP_MARK = "# --- "
"""begins a comment in a config that names the group of the fields below it"""


class Flag(NamedTuple):
    """One flag as it is shown."""

    name: str
    text: str
    hint: Any
    default: Any


class Group(NamedTuple):
    """Flags of one purpose."""

    title: str
    flags: list[Flag]


def render(prog: str, summary: str, parts: Mapping[str, Any], first: Sequence[str], notes: Sequence[str] = ()) -> str:
    """The help of a command whose flags are the fields of several configs, ``parts`` by title; those called ``first``
    come first, then ``notes``."""
    groups = [group for title, config in parts.items() for group in groups_of(title, config)]
    known = {one.name: one for group in groups for one in group.flags}
    lines = [f"usage: {prog} [flags]", "", summary, ""]
    lines += _block("The flags that matter first", [known[name] for name in first if name in known])
    lines += [line for note in notes for line in (*textwrap.wrap(note, _width(), subsequent_indent="  "), "")]
    for group in groups:
        lines += _block(group.title, [one for one in group.flags if one.name not in first])
    return "\n".join(lines).rstrip() + "\n"


def groups_of(title: str, config: Any) -> list[Group]:
    """The fields of a config in their order, cut where a comment ``# --- purpose`` stands; configs inside are groups of
    their own."""
    hints = get_type_hints(type(config))
    texts, marks = _documented(type(config))
    groups = [Group(title, [])]
    inner: list[Group] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in marks:
            groups.append(Group(f"{title}: {marks[field.name]}", []))
        if is_dataclass(value):
            inner += groups_of(f"{title}: {field.name.replace('_', ' ')}", value)
        else:
            groups[-1].flags.append(Flag(field.name, texts.get(field.name, ""), hints[field.name], value))
    return [group for group in (*groups, *inner) if group.flags]


def _documented(kind: type[Any]) -> tuple[dict[str, str], dict[str, str]]:
    """By field, the text below it; and the group that begins with it. Those of base classes are among them."""
    texts: dict[str, str] = {}
    marks: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not is_dataclass(one):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(one))
        except (OSError, TypeError):  # made at run time, or without its source
            continue
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        lines, before = source.splitlines(), body.lineno
        for statement, following in zip(body.body, [*body.body[1:], None]):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                marked = [
                    line.strip() for line in lines[before : statement.lineno - 1] if line.strip().startswith(GROUP_MARK)
                ]
                if marked:
                    marks[name] = marked[-1].removeprefix(GROUP_MARK)
                if (
                    isinstance(following, ast.Expr)
                    and isinstance(following.value, ast.Constant)
                    and isinstance(following.value.value, str)
                ):
                    texts[name] = " ".join(following.value.value.split())
            before = statement.end_lineno or before
    return texts, marks


def _block(title: str, flags: Sequence[Flag]) -> list[str]:
    if not flags:
        return []
    lines = [title]
    for one in flags:
        kind = _kind(one.hint)
        switch = f", --no-{flag(one.name)[2:]}" if one.hint is bool else ""
        head = f"  {flag(one.name)}{switch}{f' {kind}' if kind else ''}"
        shown = f" ({_default(one.default)})" if _default(one.default) else ""
        body = textwrap.wrap(f"{one.text.replace('``', '')}{shown}", _width() - INDENT) or [""]
        if len(head) < INDENT:
            lines.append(f"{head:<{INDENT}}{body[0]}")
            body = body[1:]
        else:
            lines.append(head)
        lines += [" " * INDENT + line for line in body]
    return [*lines, ""]


def _kind(hint: Any) -> str:
    """What a flag takes, in a word; nothing for switches."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is tuple:
        return f"{_kind(inner[0])} ..."
    if origin is dict:
        return "NAME=VALUE ..."
    if inner:  # a union
        return "|".join(_kind(part) for part in inner if part is not type(None) and not _only_python(part))
    return {bool: "", int: "N", float: "X", str: "TEXT"}.get(hint, getattr(hint, "__name__", "VALUE").upper())


def _only_python(hint: Any) -> bool:
    """Whether it is a class or a function, which a command line cannot give."""
    return get_origin(hint) is get_origin(Callable[..., Any])


def _default(value: Any) -> str:
    if value is None or value in ("", (), {}):
        return ""
    if isinstance(value, bool):
        return f"default: {'on' if value else 'off'}"
    if isinstance(value, tuple):
        return f"default: {' '.join(map(str, value))}"
    return f"default: {value:,}" if isinstance(value, int) else f"default: {value}"


def _width() -> int:
    return max(min(shutil.get_terminal_size((120, 24)).columns, 120), 60)
