"""Meta-World's 50 tasks by name, and their registration. metaworld itself is imported only when one is made.

``mw/{name}``: the tasks as TD-MPC2 plays them (arXiv 2310.16828, appendix): the goal is part of the observation and drawn
anew for every episode, an agent's step is two control steps (action repeat 2), an episode 100 agent steps = 200 control
steps, and a return lies within [0, 2000]. Nothing terminates, there is no cost, and ``info["success"]`` says whether the
task is done as it stands. The "environment steps" of published curves count control steps.

These are Meta-World's v3; TD-MPC2's figures and its data set mt80 are of v2, in an older MuJoCo: returns are near, not
the same.
"""

from __future__ import annotations

from saddlepoint.envs.tasks import register_task

HORIZON = 100  # agent steps

TASKS = (
    "assembly", "basketball", "bin-picking", "box-close",
    "button-press", "button-press-topdown", "button-press-topdown-wall", "button-press-wall",
    "coffee-button", "coffee-pull", "coffee-push",
    "dial-turn", "disassemble",
    "door-close", "door-lock", "door-open", "door-unlock", "drawer-close", "drawer-open",
    "faucet-close", "faucet-open",
    "hammer", "hand-insert", "handle-press", "handle-press-side", "handle-pull", "handle-pull-side",
    "lever-pull",
    "peg-insert-side", "peg-unplug-side", "pick-out-of-hole", "pick-place", "pick-place-wall",
    "plate-slide", "plate-slide-back", "plate-slide-back-side", "plate-slide-side",
    "push", "push-back", "push-wall",
    "reach", "reach-wall",
    "shelf-place", "soccer", "stick-pull", "stick-push", "sweep", "sweep-into",
    "window-close", "window-open",
)  # fmt: skip
"""Under Meta-World's names without the ``-v3``."""

for _name in TASKS:
    register_task(
        f"mw/{_name}", f"Meta-World's {_name}, action repeat 2; no cost", (), HORIZON, extra="metaworld",
        entry_point="saddlepoint.envs.metaworld.env:MetaWorldEnv", kwargs={"task": _name},
    )  # fmt: skip
