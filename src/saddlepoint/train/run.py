"""The run folder: its config.json, the lock of the one process that may write to it, and what may differ on resume."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.files import (
    SEAL,
    FileFault,
    hold_lock,
    is_sealed,
    read_json,
    reason_of,
    remove_unfinished,
    seal_of,
    sealed,
    write_json,
)
from saddlepoint.options import MOST_SEED, flag
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.versions import versions
from saddlepoint.types import EnvSetup, EnvShape, UserError

FORMAT = 1
OPERATIONAL = frozenset(
    {"total_steps", "out", "quiet", "keep_checkpoints", "checkpoint_every", "threads", "eval_envs", "track"}
)
"""fields of ``TrainConfig`` that may differ on resume: they do not change what is learnt (threads: the last bits)"""
LOCK = ".lock"
STILLBORN = frozenset({LOCK, "config.json", "metrics.jsonl", "tb", "checkpoints"})
"""all that a run can leave which was killed before its first checkpoint"""
KNOWN = frozenset(
    {"format", "system", "module", "verb", "train", "learner", "shape", "budgets", "tasks", "resolved", "made_with"}
)
"""all that a config.json may hold beside its seal"""
PARTS: dict[str, type] = {"system": str, "train": dict, "learner": dict, "resolved": dict}
"""what every config.json holds, whatever the system"""


def describe(
    system: str, config: TrainConfig, learner_config: Any, shape: EnvShape, budgets: tuple[CostBudget, ...],
    resolved: dict[str, Any], module: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of config.json: all that is needed to build the run's learner again, and what ``auto`` came to.
    ``module`` is the one to import for a system that is not of this package."""
    return (
        describe_settings(system, config, learner_config)
        | _plain(
            {
                "shape": shape._asdict(),
                "budgets": [dataclasses.asdict(budget) for budget in budgets],
                "resolved": resolved,
            }
        )
        | ({} if module is None else {"module": module})
    )


def describe_settings(system: str, config: TrainConfig, learner_config: Any) -> dict[str, Any]:
    """The part of config.json that is known before the environment is made."""
    return _plain(
        {
            "format": FORMAT,
            "system": system,
            "train": dataclasses.asdict(config),
            "learner": dataclasses.asdict(learner_config),
        }
    )


def read(run: Path) -> dict[str, Any]:
    """config.json of a run folder. Raises ``UserError`` when it is not one."""
    path = run / "config.json"
    try:
        content = read_json(path, "the configuration of a run")
    except FileFault as error:
        if error.missing:
            raise UserError(
                f"{run} is not a run folder (it has no config.json): give the one that --out named."
            ) from error
        raise UserError(
            f"{path} is damaged or cannot be read ({error.reason}): restore it, or start a new run."
        ) from error
    if content.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this version of saddlepoint: use the one that made the run.")
    if SEAL in content and not is_sealed(content):
        raise UserError(f"{path} has changed since saddlepoint wrote it: restore it, or start a new run.")
    content.pop(SEAL, None)
    if odd := content.keys() - KNOWN:
        raise UserError(f"{path} is damaged (nobody knows its {min(odd)!r}): restore it, or use the version that wrote it.")
    for name, kind in PARTS.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{path} is damaged (it has no whole {name!r}): restore it, or start a new run.")
    train = content["train"]
    elsewhere = "tasks" in content or "pipeline" in train  # what is learnt in several environments, or in none
    seed = train.get("seed")
    if type(seed) is not int or not 0 <= seed < MOST_SEED or not (elsewhere or isinstance(train.get("env"), str)):
        raise UserError(f"{path} is damaged (it has no whole 'train'): restore it, or start a new run.")
    return content


def budgets_of(content: dict[str, Any]) -> tuple[CostBudget, ...]:
    """The cost budgets that a run was trained with. Raises ``UserError`` when they are damaged."""
    try:
        return tuple(CostBudget(**budget) for budget in content["budgets"])
    except (KeyError, TypeError) as error:
        raise UserError(
            "the run's config.json is damaged (it has no whole 'budgets'): restore it, or start a new run."
        ) from error


def shape_of(content: dict[str, Any]) -> EnvShape:
    """The shape of a run's environment; runs that are older than pictures say nothing of them. Raises ``UserError``
    when it is damaged."""
    try:
        shape, image = content["shape"], content["shape"].get("image")
        bounds = tuple(shape["action_low"]), tuple(shape["action_high"])
        dtype = shape.get("action_dtype", EnvShape._field_defaults["action_dtype"])
        span, lidars = shape.get("budget_range"), tuple((first, count) for first, count in shape.get("lidars", ()))
        found = EnvShape(
            shape["observation"], *bounds, shape["constraints"], None if image is None else tuple(image), dtype,
            None if span is None else tuple(span), lidars,
        )  # fmt: skip
        sizes = (found.observation, found.constraints, *(found.image or ()), *(number for ring in lidars for number in ring))
        numbers = (*found.action_low, *found.action_high, *(found.budget_range or ()))
        whole = all(type(size) is int and size >= 0 for size in sizes) and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        whole = whole and all(count > 1 and first + count <= found.observation for first, count in lidars)
        if not whole or not 0 < len(found.action_low) == len(found.action_high) or (span is not None and len(span) != 2) or not isinstance(dtype, str):
            raise TypeError(found)
        np.dtype(dtype)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            "the run's config.json is damaged (it has no whole 'shape'): restore it, or start a new run."
        ) from error
    return found


def setup_of(content: dict[str, Any]) -> EnvSetup:
    """How a run's environments are made; an older run than a setting has its default. Raises ``UserError``."""
    train = content["train"]
    kwargs, repeat = train.get("env_kwargs", {}), train.get("action_repeat", 1)
    if not isinstance(kwargs, dict) or not isinstance(repeat, int):
        raise UserError("the run's config.json is damaged (it has no whole 'train'): restore it, or start a new run.")
    return EnvSetup(train["env"], kwargs, bool(train.get("flatten", False)), repeat)


def require_same_settings(saved: dict[str, Any], now: dict[str, Any], run: Path, operational: frozenset[str]) -> None:
    """Raises ``UserError`` naming the first setting, but for those of ``operational``, in which a resumed run differs
    from the saved one."""
    if saved["system"] != now["system"]:
        raise UserError(f"{run} was trained with {saved['system']}, not {now['system']}: resume it with that.")
    for part in ("train", "learner"):
        before, after = saved[part], now[part]
        for name in dict.fromkeys([*before, *after]):
            if part == "train" and name in operational:
                continue
            if (name in before) != (name in after):
                which = "with" if name in before else "without"
                raise UserError(
                    f"{run} was written by a version of saddlepoint {which} {flag(name)}: finish it with that version, or start a new run with --out."
                )
            if before[name] != after[name]:
                raise UserError(
                    f"{run} was started with {flag(name)} {before[name]} and cannot go on with {after[name]}: leave it out,"
                    " or start a new run with --out."
                )


def require_same(saved: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """Raises ``UserError`` naming the first thing in which a resumed run differs from the saved one."""
    require_same_settings(saved, now, run, OPERATIONAL)
    if saved["resolved"]["device"] != now["resolved"]["device"]:
        before, after = saved["resolved"]["device"], now["resolved"]["device"]
        raise UserError(f"{run} was trained on {before}, not {after}: resume it on a machine with {before}.")
    if saved["budgets"] != now["budgets"]:
        raise UserError(f"{run} was started with another cost budget: leave out the cost flags, or choose a new --out.")
    before, after = shape_of(saved), shape_of(now)
    if "lidars" not in saved["shape"]:  # a run that is older than they are
        after = after._replace(lidars=())
    if before != after:
        raise UserError(f"the environment of {run} has other spaces than when the run started: restore it.")


def settings_digest(content: dict[str, Any], operational: frozenset[str]) -> str:
    """Of all in a config.json that a run may never change, for its checkpoints to hold."""
    parts = {name: content[name] for name in ("system", "learner", "budgets", "shape", "tasks") if name in content}
    train = {name: value for name, value in content["train"].items() if name not in operational}
    return seal_of(_plain(parts | {"train": train}))


# ------------------------------------------------------------------------------------------------ the folder


@contextmanager
def opened(run: Path, saved: dict[str, Any] | None, main: bool = True) -> Iterator[None]:
    """Hold a run folder as its only writer: a new one (``saved`` None), or that of a run to go on with, whose
    config.json was ``saved``.

    The folder is looked at once it is held. What a start left that was killed before its first checkpoint is removed.
    Processes that are not the ``main`` one of a run hold nothing. Raises ``UserError`` when another process has the
    folder or had it meanwhile, when it holds something else, and for links, pipes and devices in it, to which nothing is
    to be written.
    """
    if not main:
        yield
        return
    with only_writer(run):
        _refuse_links(run)
        if saved is None:
            require_new(run)
            _clear(run)
        elif read(run) != saved:
            raise UserError(f"another process went on with {run} meanwhile: give the command again.")
        remove_unfinished(run)
        yield


def require_new(run: Path) -> None:
    """Raises ``UserError`` when the folder already holds a run or other files. One that holds what a start left which
    was killed before its first checkpoint is new."""
    try:
        if not run.exists():
            return
        names = {path.name for path in run.iterdir()} if run.is_dir() else {""}
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte; a folder that may not be read
        raise UserError(f"the run folder {str(run)!r:.300} cannot be looked at ({reason_of(error)}): choose another --out.") from error
    if _has_checkpoint(run):
        raise UserError(f"{run} already holds a run: go on with --resume {run}, or choose another --out.")
    if lost_checkpoints(run):
        raise UserError(f"{run} holds a run whose checkpoints are gone: choose another --out, or remove it.")
    if any(map(_is_foreign, names)):
        raise UserError(f"{run} exists and is not an empty folder: choose another --out.")


def lost_checkpoints(run: Path) -> bool:
    """Whether a folder without checkpoints is that of a run which had some: it holds more than what a start leaves that
    was killed before its first."""
    names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    metrics = run / "metrics.jsonl"
    return ("config.json" in names and any(map(_is_foreign, names))) or (metrics.is_file() and metrics.stat().st_size > 0)


def _is_foreign(name: str) -> bool:
    return name not in STILLBORN and not name.startswith(".writing-")


def _has_checkpoint(run: Path) -> bool:
    """Whether there is one that was once whole, wherever it lies."""
    home = run / "checkpoints"
    return home.is_dir() and any(path.name.removeprefix(".old-").isdecimal() for path in home.iterdir())


def _clear(run: Path) -> None:
    for path in run.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _refuse_links(run: Path) -> None:
    """Raises ``UserError`` for a link among a run's own files, and for a pipe or device, which could wait for ever; the
    folder itself may be a link."""
    home = run / "checkpoints"
    for path in (*run.iterdir(), *(home.iterdir() if home.is_dir() and not home.is_symlink() else ())):
        if path.is_symlink():
            raise UserError(
                f"{path} is a link, through which nothing is written: put the file or folder itself there, or remove it."
            )
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is neither a file nor a folder: remove it.")


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Hold the run's lock, freed even after kill -9. Raises ``UserError`` when another process has it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"the run folder {str(run)!r:.300} cannot be written ({reason_of(error)}): choose another --out.") from error
    with hold_lock(run / LOCK, f"another process is training in {run}: wait for it, or choose another --out."):
        yield


def write(run: Path, content: dict[str, Any]) -> str | None:
    """Write config.json, with a digest of it. A resumed run's keeps what it was ``made_with`` before, and adds what it
    is made with now where that differs; then one sentence says so."""
    before = read(run).get("made_with") if (run / "config.json").exists() else None
    before = before if isinstance(before, list) else []
    now = versions()
    whole = content | {"made_with": before if now in before else [*before, now]}
    write_json(run / "config.json", sealed(whole))
    if not before or before[-1] == now or not isinstance(before[-1], dict):
        return None
    changed = [f"{name} {now.get(name, 'none')} instead of {before[-1].get(name, 'none')}" for name in sorted({*now, *before[-1]})
               if now.get(name) != before[-1].get(name)]  # fmt: skip
    return f"note: {', '.join(changed)}: this run was made with other versions, so its last bits may differ"


def _plain(value: Any) -> Any:
    """Tuples to lists and paths to strings, so that what is compared is what is read back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
