"""What the ``-safe`` tasks charge: 1 for every control step that leaves a limit.

The kinds of limit are those that the documentation of the Real-World RL suite describes (cart within a region of the
track, joint velocities within a range) and the speed limit of ``velocity.py``. The numbers are ours, and so are the
budgets: do not compare with published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

CART_LIMIT = 0.5  # m from the middle; the track ends at 1.8
JOINT_LIMIT = 12.0  # rad/s, of any hip, knee or ankle
SPEED_LIMIT = 3.0  # m/s forwards; the reward grows up to 10


class Cost(NamedTuple):
    text: str
    violated: Callable[[Any], bool]
    """the suite's physics, after a control step -> whether that step costs 1"""


def cart_is_outside(physics: Any) -> bool:
    """|x| > ``CART_LIMIT``."""
    return bool(abs(physics.cart_position()) > CART_LIMIT)


def joint_is_too_fast(physics: Any) -> bool:
    """max_j |omega_j| > ``JOINT_LIMIT`` over the walker's six joints; the first three velocities are the torso's."""
    return bool(np.abs(physics.velocity()[3:]).max() > JOINT_LIMIT)


def cheetah_is_too_fast(physics: Any) -> bool:
    """Forward velocity of the centre of mass > ``SPEED_LIMIT``; backwards is never too fast."""
    return bool(physics.speed() > SPEED_LIMIT)


COSTS = {
    "cartpole-swingup": Cost(f"with the cart more than {CART_LIMIT:g} m off the middle", cart_is_outside),
    "walker-walk": Cost(f"with a joint faster than {JOINT_LIMIT:g} rad/s", joint_is_too_fast),
    "cheetah-run": Cost(f"faster than {SPEED_LIMIT:g} m/s", cheetah_is_too_fast),
}
"""By the name of the task without ``-safe``."""
