"""Safe navigation: Point and Car among hazards, vases, buttons, gremlins and pillars, after Safety-Gymnasium 1.0.0.

What is imported here is data and needs no MuJoCo; the environments are ``env.NavigationEnv`` and
``vector.NavigationVectorEnv``. Importing ``catalogue`` registers the tasks.
"""

from saddlepoint.envs.navigation.catalogue import CATALOGUE, find_task
from saddlepoint.envs.navigation.objects import Kind, buttons, goal, gremlins, hazards, pillars, push_box, vases
from saddlepoint.envs.navigation.robots import CAR, POINT, Geom, Robot
from saddlepoint.envs.navigation.scene import Scene
from saddlepoint.envs.navigation.tasks import Cost, Objective, Task, inside, moving, reach_goal, touching

__all__ = [
    "CAR",
    "CATALOGUE",
    "POINT",
    "Cost",
    "Geom",
    "Kind",
    "Objective",
    "Robot",
    "Scene",
    "Task",
    "buttons",
    "find_task",
    "goal",
    "gremlins",
    "hazards",
    "inside",
    "moving",
    "pillars",
    "push_box",
    "reach_goal",
    "touching",
    "vases",
]
