"""TD-MPC2's multi-task sets, whose chunks know their tasks by number only: the tasks in that order, by their names
there (arXiv 2310.16828, appendix)."""

from __future__ import annotations

from typing import NamedTuple

CONTROL_ENV, META_WORLD_ENV = "dmc/{}", "mw/{}"
"""environment ids of their tasks here; TD-MPC2 writes mw-reach for ours of mw/reach"""

CONTROL = (
    "walker-stand", "walker-walk", "walker-run", "cheetah-run", "reacher-easy", "reacher-hard", "acrobot-swingup", "pendulum-swingup",
    "cartpole-balance", "cartpole-balance-sparse", "cartpole-swingup", "cartpole-swingup-sparse", "cup-catch", "finger-spin",
    "finger-turn-easy", "finger-turn-hard", "fish-swim", "hopper-stand", "hopper-hop", "walker-walk-backwards", "walker-run-backwards",
    "cheetah-run-backwards", "cheetah-run-front", "cheetah-run-back", "cheetah-jump", "hopper-hop-backwards", "reacher-three-easy",
    "reacher-three-hard", "cup-spin", "pendulum-spin",
)  # fmt: skip
META_WORLD = (
    "assembly", "basketball", "button-press-topdown", "button-press-topdown-wall", "button-press", "button-press-wall", "coffee-button",
    "coffee-pull", "coffee-push", "dial-turn", "disassemble", "door-open", "door-close", "drawer-close", "drawer-open", "faucet-open",
    "faucet-close", "hammer", "handle-press-side", "handle-press", "handle-pull-side", "handle-pull", "lever-pull", "peg-insert-side",
    "peg-unplug-side", "pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide", "plate-slide-side", "plate-slide-back",
    "plate-slide-back-side", "push-back", "push", "push-wall", "reach", "reach-wall", "shelf-place", "soccer", "stick-push", "stick-pull",
    "sweep-into", "sweep", "window-open", "window-close", "bin-picking", "box-close", "door-lock", "door-unlock", "hand-insert",
)  # fmt: skip
CONTROL_STEPS, META_WORLD_STEPS = 500, 100
"""steps of an episode in which each action is repeated twice; mt80 stores DMControl's in five parts"""
META_WORLD_OBSERVATIONS, META_WORLD_ACTIONS = 39, 4
"""of all its tasks; the last is the goal's height, which is always 0 in some"""

SETS: dict[str, tuple[str, ...]] = {"mt30": CONTROL, "mt80": (*CONTROL, *(f"mw-{name}" for name in META_WORLD))}


class KnownTask(NamedTuple):
    """What the data do not say of a task of these sets."""

    env: str
    """environment id"""
    steps: int
    """of an episode"""
    observation: int | None
    """entries of an observation; None where the data show them"""
    action: int | None
    """entries of an action, likewise"""


def known_task(name: str) -> KnownTask | None:
    """A task of these sets; None for others."""
    if name in CONTROL:
        return KnownTask(CONTROL_ENV.format(name), CONTROL_STEPS, None, None)
    if name in SETS["mt80"]:
        return KnownTask(META_WORLD_ENV.format(name.removeprefix("mw-")), META_WORLD_STEPS, META_WORLD_OBSERVATIONS, META_WORLD_ACTIONS)
    return None
