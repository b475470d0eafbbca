"""Every DMControl task by name, and their registration. dm_control itself is imported only when one is made.

``dmc/{name}``: the 39 tasks of TD-MPC2 (arXiv 2310.16828, Appendix), 28 of dm_control's suite and 11 that TD-MPC2 added
(``custom.py``). As in that paper an agent's step is two control steps of the suite (action repeat 2), an episode 500
agent steps = 1000 control steps, and a return lies within [0, 1000]. The "environment steps" of published curves count
control steps: 100k of them are 50k steps of these environments. Nothing terminates, and there is no cost.

``dmc/{name}-safe``: three of them with a cost (``costs.py``), of our own choosing after the constraints that the
documentation of the Real-World RL suite (arXiv 2003.11881) describes.
"""

from __future__ import annotations

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.control.costs import COSTS
from saddlepoint.envs.tasks import register_task

HORIZON = 500  # agent steps
EPISODE_LIMIT = 25.0  # of the 1000 control steps; the share that Safety-Gymnasium allows

SUITE = (
    "acrobot-swingup",
    "cartpole-balance", "cartpole-balance-sparse", "cartpole-swingup", "cartpole-swingup-sparse",
    "cheetah-run",
    "cup-catch",
    "dog-run", "dog-stand", "dog-trot", "dog-walk",
    "finger-spin", "finger-turn-easy", "finger-turn-hard",
    "fish-swim",
    "hopper-hop", "hopper-stand",
    "humanoid-run", "humanoid-stand", "humanoid-walk",
    "pendulum-swingup",
    "quadruped-run", "quadruped-walk",
    "reacher-easy", "reacher-hard",
    "walker-run", "walker-stand", "walker-walk",
)  # fmt: skip
"""Tasks of dm_control's suite, under the names that TD-MPC2 gives them (``cup`` is its ``ball_in_cup``)."""

CUSTOM = (
    "cheetah-jump", "cheetah-run-back", "cheetah-run-backwards", "cheetah-run-front",
    "cup-spin",
    "hopper-hop-backwards",
    "pendulum-spin",
    "reacher-three-easy", "reacher-three-hard",
    "walker-run-backwards", "walker-walk-backwards",
)  # fmt: skip
"""Tasks that TD-MPC2 added on the suite's robots."""


def _register(id: str, text: str, budgets: tuple[CostBudget, ...], task: str) -> None:
    register_task(
        id, text, budgets, HORIZON, extra="control",
        entry_point="saddlepoint.envs.control.env:ControlEnv", kwargs={"task": task, "safe": bool(budgets)},
    )  # fmt: skip


for _name in SUITE:
    _register(f"dmc/{_name}", f"DMControl's {_name}, action repeat 2; no cost", (), _name)
for _name in CUSTOM:
    _register(f"dmc/{_name}", f"TD-MPC2's {_name} on DMControl's robot, action repeat 2; no cost", (), _name)
for _name, _cost in COSTS.items():
    _register(
        f"dmc/{_name}-safe", f"DMControl's {_name}, action repeat 2; cost 1 a control step {_cost.text}",
        (CostBudget(EPISODE_LIMIT, horizon=HORIZON),), _name,
    )  # fmt: skip
