"""A task of your own in a few lines: run laps round a ring, stay off the hazards, and do not leave the ring.

    python examples/custom_navigation.py
"""

import gymnasium as gym
import numpy as np

from saddlepoint.envs import EnvBatch, check_env
from saddlepoint.envs.navigation import POINT, Cost, Objective, Scene, Task, hazards, inside, touching, vases

RADIUS, WIDTH = 1.2, 0.5  # of the ring, m


def off_the_ring(scene: Scene) -> np.ndarray:
    """How far the robot is outside the ring, (envs,)."""
    away = np.linalg.norm(scene.agent[:, :2], axis=1)
    return np.maximum(np.abs(away - RADIUS) - WIDTH, 0.0)


def lap_speed(scene: Scene) -> np.ndarray:
    """Heading along the ring, anticlockwise, (envs,): the robot's x axis times the tangent."""
    x, y = scene.agent[:, 0], scene.agent[:, 1]
    tangent = np.stack([-y, x], axis=1) / np.maximum(np.hypot(x, y), 1e-6)[:, None]
    return 0.1 * (scene.rotation[:, :2, 0] * tangent).sum(axis=1)


TASK = Task(
    name="PointLaps", robot=POINT, extent=1.6, kinds=(hazards(4), vases(2)), lidars=("hazards", "vases"),
    objective=Objective(reward=lap_speed),
    costs=(Cost("cost_hazards", inside("hazards", 0.2)), Cost("cost_vases", touching("vases")),
           Cost("cost_ring", off_the_ring)),
)  # fmt: skip
gym.register("PointLaps-v0", entry_point="saddlepoint.envs.navigation.env:NavigationEnv", kwargs={"task": TASK},
             max_episode_steps=500)  # fmt: skip

if __name__ == "__main__":
    print(check_env("PointLaps-v0"))
    batch = EnvBatch("PointLaps-v0", 2, seed=0)
    batch.reset()
    print(batch.step(np.array([[1.0, 0.2], [1.0, -0.2]], np.float32)))
