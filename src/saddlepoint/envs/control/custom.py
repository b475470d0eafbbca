"""TD-MPC2's eleven own tasks on the suite's robots. Written here; the constants are those of TD-MPC2's public program.

Rewards are built of dm_control's ``tolerance``. In the docstrings ``[x >= b; m]`` is 1 where x >= b and falls with the
distance below b, to 0.1 (a Gaussian) at the margin m; ``[x >= b; m, v]`` falls on a line that passes v at the margin
and ends at 0. v is the velocity forwards, z a height; lengths in m, speeds in m/s.

This module imports dm_control: it is imported where a task is made and not before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from xml.etree import ElementTree

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, cheetah, common, hopper, pendulum, reacher, walker
from dm_control.suite.base import Task
from dm_control.utils.rewards import tolerance


def at_least(x: float, bound: float, margin: float, at_margin: float | None = None) -> float:
    """[x >= bound; margin], or [x >= bound; margin, at_margin]."""
    if at_margin is None:
        return float(tolerance(x, (bound, math.inf), margin))
    return float(tolerance(x, (bound, math.inf), margin, sigmoid="linear", value_at_margin=at_margin))


class WalkerBackwards(walker.PlanarWalker):
    """s/4 (3 [z >= 1.2; 0.6] + (1 + uprightness)/2), with s = (1 + 5 [-v >= goal; goal/2, 0.5]) / 6."""

    def get_reward(self, physics: Any) -> float:
        stand = (3 * at_least(physics.torso_height(), 1.2, 0.6) + (1 + physics.torso_upright()) / 2) / 4
        goal = self._move_speed
        return stand * (1 + 5 * at_least(-physics.horizontal_velocity(), goal, goal / 2, 0.5)) / 6


class CheetahBackwards(cheetah.Cheetah):
    """[-v >= 8; 8, 0]."""

    def get_reward(self, physics: Any) -> float:
        return at_least(-physics.speed(), 8.0, 8.0, 0.0)


class CheetahOnOneFoot(cheetah.Cheetah):
    """u (1 + 5 [v >= 6; 6, 0]) / 6, with u = (3 [z_foot >= 1.2; 0.6] + 2 [z_torso >= 1.2; 0.6]) / 5 and ``raised`` the
    foot in the air.
    """

    def __init__(self, raised: str) -> None:
        super().__init__()
        self._raised = raised

    def get_reward(self, physics: Any) -> float:
        foot, torso = (at_least(physics.named.data.xpos[body, "z"], 1.2, 0.6) for body in (self._raised, "torso"))
        return (3 * foot + 2 * torso) / 5 * (1 + 5 * at_least(physics.speed(), 6.0, 6.0, 0.0)) / 6


class CheetahJump(cheetah.Cheetah):
    """(5 h + w) / 6: h the mean over the feet of [(z_torso + z_foot)/2 >= 1.2; 0.6], w = [0.5 >= |v|; 0.5, 0]."""

    def get_reward(self, physics: Any) -> float:
        torso, *feet = (physics.named.data.xpos[body, "z"] for body in ("torso", "ffoot", "bfoot"))
        height = np.mean([at_least((torso + foot) / 2, 1.2, 0.6) for foot in feet])
        return float(5 * height + at_least(-abs(physics.speed()), -0.5, 0.5, 0.0)) / 6


class HopperBackwards(hopper.Hopper):
    """[-v >= 1; 0.5, 0.5] while 0.6 <= z_torso - z_foot <= 2, else 0."""

    def get_reward(self, physics: Any) -> float:
        stands = 0.6 <= physics.height() <= 2
        return at_least(-physics.speed(), 1.0, 0.5, 0.5) if stands else 0.0


class PendulumSpin(pendulum.SwingUp):
    """[|omega| >= 9 rad/s; 4.5, 0.5]."""

    def get_reward(self, physics: Any) -> float:
        return at_least(float(abs(physics.angular_velocity().item())), 9.0, 4.5, 0.5)


class CupSpin(ball_in_cup.BallInCup):
    """([d >= 0.5; 0.25, 0.5] + 2 [|ball's velocity| >= 6; 3, 0.5]) / 3 while the ball, at distance d of the cup's
    middle, is out of the cup, else 0. Nine episodes in ten begin with the ball in the cup.
    """

    def initialize_episode(self, physics: Any) -> None:
        anywhere = self.random.uniform() < 0.1
        placed = False
        while not placed:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()  # looks for contacts
            placed = physics.data.ncon == 0 and (anywhere or physics.in_target() > 0)
        Task.initialize_episode(self, physics)

    def get_reward(self, physics: Any) -> float:
        if physics.in_target():
            return 0.0
        speed = math.hypot(*(physics.named.data.qvel[joint].item() for joint in ("ball_x", "ball_z")))
        distance = float(np.linalg.norm(physics.ball_to_target()))
        return (at_least(distance, 0.5, 0.25, 0.5) + 2 * at_least(speed, 6.0, 3.0, 0.5)) / 3


def three_links() -> str:
    """The suite's reacher with three links, as MJCF: 0.09 m from joint to joint and to the finger, the second and third
    joint limited to 80 degrees either way.
    """
    model = ElementTree.fromstring(common.read_model("reacher.xml"))
    (arm,) = model.iterfind("worldbody/body[@name='arm']")
    (hand,) = arm.iterfind("body")
    (finger,) = hand.iterfind("body")
    (upper,) = arm.iterfind("geom")
    (wrist,) = hand.iterfind("joint")
    upper.set("fromto", "0 0 0 0.09 0 0")
    hand.set("pos", "0.09 0 0")
    finger.set("pos", "0.09 0 0")
    wrist.set("range", "-80 80")
    arm.remove(hand)
    forearm = ElementTree.SubElement(arm, "body", name="forearm", pos="0.09 0 0")
    ElementTree.SubElement(forearm, "joint", name="elbow", limited="true", range="-80 80")
    ElementTree.SubElement(forearm, "geom", {**upper.attrib, "name": "forearm"})
    forearm.append(hand)
    (actuators,) = model.iterfind("actuator")
    actuators.insert(1, ElementTree.Element("motor", name="elbow", joint="elbow"))
    return ElementTree.tostring(model, encoding="unicode")


def _make(domain: Any, task: Callable[[], Any], seconds: float | None = None) -> control.Environment:
    """The robot of ``domain`` at ``task``, without a time limit; a control step takes ``seconds``, else one of MuJoCo's."""
    model, assets = domain.get_model_and_assets()
    physics = domain.Physics.from_xml_string(model, assets)
    return control.Environment(physics, task(), time_limit=math.inf, control_timestep=seconds)


def _make_three_links(target_size: float) -> control.Environment:
    physics = reacher.Physics.from_xml_string(three_links(), common.ASSETS)
    return control.Environment(physics, reacher.Reacher(target_size), time_limit=math.inf)


CUSTOM: dict[str, Callable[[], control.Environment]] = {
    "cheetah-jump": partial(_make, cheetah, CheetahJump),
    "cheetah-run-back": partial(_make, cheetah, partial(CheetahOnOneFoot, "ffoot")),
    "cheetah-run-backwards": partial(_make, cheetah, CheetahBackwards),
    "cheetah-run-front": partial(_make, cheetah, partial(CheetahOnOneFoot, "bfoot")),
    "cup-spin": partial(_make, ball_in_cup, CupSpin, 0.02),
    "hopper-hop-backwards": partial(_make, hopper, partial(HopperBackwards, True), 0.02),
    "pendulum-spin": partial(_make, pendulum, PendulumSpin),
    "reacher-three-easy": partial(_make_three_links, 0.05),
    "reacher-three-hard": partial(_make_three_links, 0.015),
    "walker-run-backwards": partial(_make, walker, partial(WalkerBackwards, 8.0), 0.025),
    "walker-walk-backwards": partial(_make, walker, partial(WalkerBackwards, 1.0), 0.025),
}
"""By name: what makes the environment, as the suite's own functions do."""
