"""Exact capture of an environment in mid-episode, in types that JSON and npz can hold.

Restorable are MuJoCo environments (whatever has a ``mujoco.MjData`` in ``data``, as Gymnasium's do) and environments
with two methods of their own, ``snapshot() -> dict`` and ``restore(state)``, as the toy has (``restore`` returns False
where it cannot). Of the wrappers around them the plain attributes are kept (counters, flags, numbers, arrays); a
wrapper that holds anything else makes the stack not restorable, rather than almost restored.
"""

from __future__ import annotations

import copy
import sys
from types import FunctionType, MethodType
from typing import Any

import gymnasium as gym
import numpy as np

_CONSTANT = frozenset({
    "env", "spec", "metadata", "model", "data", "mujoco_renderer", "render_mode", "fullpath", "width", "height",
    "camera_name", "camera_id", "_np_random", "_np_random_seed", "_action_space", "_observation_space", "_metadata",
    "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_render_mode",
    "_disable_render_order_enforcing",
})  # fmt: skip
"""Attributes that belong to how an environment was made, not to where it is; its random generator is kept apart."""


MOST_DEPTH, MOST_BITS, MOST_ITEMS = 50, 10_000, 100_000
"""the most levels of nesting, bits of a whole number and entries of a list or dict that a checkpoint can be read back with;
arrays may be of any size"""
RUNNING = "RunningMeanStd"
"""Gymnasium's running statistics, whose attributes are plain"""


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The exact state of a generator; its wide integers become decimal strings, which JSON keeps exactly."""
    return {"generator": _texts(rng.bit_generator.state)}


def load_rng(state: dict[str, Any]) -> np.random.Generator:
    """The generator whose state ``rng_state`` returned."""
    numbers = _numbers(state["generator"])
    rng = np.random.Generator(_BIT_GENERATORS[numbers["bit_generator"]]())
    rng.bit_generator.state = numbers
    return rng


def snapshot(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """All of ``env`` that its future depends on: nested dicts of arrays, numbers, strings, None and lists.

    Where ``env`` cannot be captured, ``{"restorable": False, "reason": ...}``.
    """
    try:
        return {
            "restorable": True,
            "names": [type(layer).__name__ for layer in _layers(env)],
            "wrappers": {str(i): _attributes(layer) for i, layer in enumerate(_layers(env)[:-1])},
            "base": _base_state(env.unwrapped),
        }
    except _NotPlainError as reason:
        return {"restorable": False, "reason": str(reason)}


def restore(env: gym.Env[Any, Any], state: dict[str, Any]) -> bool:
    """Put ``env``, a fresh one of the same make, where the other was; it need not have been reset.

    False, and ``env`` must be reset, where that cannot be done exactly (another make, another version of MuJoCo).
    """
    layers = _layers(env)
    if not state["restorable"] or state["names"] != [type(layer).__name__ for layer in layers]:
        return False
    if not _restore_base(env.unwrapped, state["base"]):
        return False
    for i, layer in enumerate(layers[:-1]):
        _set_attributes(layer, state["wrappers"][str(i)])
    return True


class _NotPlainError(Exception):
    """Something of the environment's has no exact plain form; the message says what."""


def _layers(env: gym.Env[Any, Any]) -> list[gym.Env[Any, Any]]:
    """The wrappers from the outermost in, and the environment itself."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _base_state(base: Any) -> dict[str, Any]:
    if _has_own_pair(base):
        state = base.snapshot()
        return {"own": _plain(state, f"what {type(base).__name__}.snapshot() returns")}
    if not _is_mujoco(base):
        raise _NotPlainError(
            f"{type(base).__name__} is no MuJoCo environment and has no methods snapshot() and restore(state)"
        )
    physics = mujoco_state(base.model, base.data)
    return {"mujoco": physics, "attributes": _attributes(base), "rng": rng_state(base.np_random)}


def _restore_base(base: Any, state: dict[str, Any]) -> bool:
    if "own" in state:
        return base.restore(state["own"]) is not False
    if not _is_mujoco(base) or not load_mujoco(base.model, base.data, state["mujoco"]):
        return False
    _set_attributes(base, state["attributes"])
    base.np_random = load_rng(state["rng"])
    return True


def _has_own_pair(base: gym.Env[Any, Any]) -> bool:
    return callable(getattr(base, "snapshot", None)) and callable(getattr(base, "restore", None))


def _is_mujoco(base: gym.Env[Any, Any]) -> bool:
    mujoco = sys.modules.get("mujoco")  # where it was never imported, nothing is a MuJoCo environment
    return mujoco is not None and isinstance(vars(base).get("data"), mujoco.MjData)


def mujoco_state(model: Any, data: Any) -> dict[str, Any]:
    """Full physics state and every array of ``MjData`` that has a fixed size.

    The arrays are needed as well: derived quantities such as ``xpos`` lag the state by one sub-step, Ant's reward uses
    them, and a forward call would move them. What lives in the arena (contacts, constraint rows) changes size and is
    computed anew in every step; it is what is empty in a fresh ``MjData``.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, physics, kind)
    arrays = {name: getattr(data, name).copy() for name in _fixed_arrays(mujoco.MjData(model))}
    return {"version": mujoco.__version__, "physics": physics, "arrays": arrays}


def _fixed_arrays(data: Any) -> list[str]:
    """Names of the non-empty arrays of a fresh ``MjData``; ``plugin_data`` holds addresses and stays out, and so do the arrays of islands,
    which lie in the arena: where there is no island MuJoCo answers with an array that it has just made, and what is written there is lost."""
    found = []
    for name in dir(data):
        value = getattr(data, name) if not name.startswith("_") and name != "plugin_data" else None
        if isinstance(value, np.ndarray) and value.size and np.may_share_memory(value, getattr(data, name)):
            found.append(name)
    return found


def load_mujoco(model: Any, data: Any, state: dict[str, Any]) -> bool:
    """Put ``data`` where ``mujoco_state`` was taken; False where the model or the version of MuJoCo is another."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    arrays = {name: state["arrays"].get(name) for name in _fixed_arrays(mujoco.MjData(model))}
    if state["version"] != mujoco.__version__ or any(np.shape(value) != getattr(data, name).shape for name, value in arrays.items()):
        return False
    mujoco.mj_setState(model, data, np.asarray(state["physics"], np.float64), kind)
    for name, value in arrays.items():
        getattr(data, name)[...] = value
    return True


def _attributes(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    """The plain attributes of one layer. Functions and spaces are part of its making; anything else that is not plain
    raises.
    """
    kept = {}
    for name, value in vars(layer).items():
        if name in _CONSTANT or isinstance(value, (gym.Space, FunctionType, MethodType)):
            continue
        kept[name] = _plain(value, f"{type(layer).__name__}.{name}")
    return kept


def _set_attributes(layer: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(layer, name, _like(vars(layer).get(name), value))


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.copy()
    if isinstance(value, np.generic):
        value = value.item()
    if depth > MOST_DEPTH:
        raise _NotPlainError(f"{where} is nested more than {MOST_DEPTH} levels deep")
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and value.bit_length() <= MOST_BITS:
        return value
    if isinstance(value, str) and _is_text(value):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= MOST_ITEMS:
        return [_plain(item, where, depth + 1) for item in value]
    if isinstance(value, dict) and len(value) <= MOST_ITEMS and all(isinstance(key, str) and _is_text(key) for key in value):
        return {key: _plain(item, where, depth + 1) for key, item in value.items()}
    if type(value).__name__ == RUNNING:  # of Gymnasium's normalising wrappers
        return {RUNNING: {name: _plain(part, f"{where}.{name}", depth + 1) for name, part in vars(value).items()}}
    large = f" of {len(value):,} entries" if isinstance(value, (list, tuple, dict)) else ""
    raise _NotPlainError(f"{where} is a {type(value).__name__}{large}, which has no exact plain form")


def _is_text(text: str) -> bool:
    """Not where it holds half a surrogate pair, which no file can."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _like(current: Any, stored: Any) -> Any:
    """``stored`` in the type that the attribute has now: lists come back as tuples, numbers as numpy's, where those
    were.
    """
    if isinstance(current, tuple) and isinstance(stored, list):
        return tuple(stored)
    if isinstance(current, np.generic) and isinstance(stored, (bool, int, float)):
        return current.dtype.type(stored)
    if isinstance(stored, np.ndarray):
        return stored.copy()
    if isinstance(stored, dict) and stored.keys() == {RUNNING} and type(current).__name__ == RUNNING:
        restored = copy.copy(current)
        _set_attributes(restored, stored[RUNNING])
        return restored
    return stored


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _texts(item) for key, item in value.items()}
    return f"int:{value}" if isinstance(value, int) and value.bit_length() > 63 else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return int(value[4:]) if isinstance(value, str) and value.startswith("int:") else value


_BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    "PCG64": np.random.PCG64,
    "PCG64DXSM": np.random.PCG64DXSM,
    "MT19937": np.random.MT19937,
    "Philox": np.random.Philox,
    "SFC64": np.random.SFC64,
}
