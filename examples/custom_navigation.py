"""A task of your own in a few lines: run laps on a ring, off the hazards, without touching the vases or leaving it."""

import numpy as np

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs import EnvBatch, register_task
from saddlepoint.envs.navigation import POINT, Cost, Objective, Scene, Task, hazards, inside, touching, vases

RADIUS, WIDTH = 1.2, 0.5  # of the ring, m


def off_the_ring(scene: Scene) -> np.ndarray:
    """How far the robot is outside the ring, (envs,)."""
    return np.maximum(np.abs(np.linalg.norm(scene.agent[:, :2], axis=1) - RADIUS) - WIDTH, 0.0)


def heading(scene: Scene) -> np.ndarray:
    """How well the robot looks along the ring, anticlockwise, (envs,): its x axis times the tangent."""
    x, y = scene.agent[:, 0], scene.agent[:, 1]
    return (scene.rotation[:, 1, 0] * x - scene.rotation[:, 0, 0] * y) / np.maximum(np.hypot(x, y), 1e-6)


TASK = Task(
    name="PointLaps", robot=POINT, extent=1.6, kinds=(hazards(4), vases(2)), lidars=("hazards", "vases"),
    objective=Objective(reward=heading),
    costs=(Cost("cost_hazards", inside("hazards", 0.2)), Cost("cost_vases", touching("vases")),
           Cost("cost_ring", off_the_ring)),
)  # fmt: skip
register_task(
    "saddlepoint/PointLaps-v0", "laps on a ring", (CostBudget(25, horizon=500),), 500, kwargs={"task": TASK},
    entry_point="saddlepoint.envs.navigation.env:NavigationEnv",
    vector_entry_point="saddlepoint.envs.navigation.vector:NavigationVectorEnv",
)  # fmt: skip

if __name__ == "__main__":
    batch = EnvBatch("saddlepoint/PointLaps-v0", 4, seed=0)  # checks the environment
    batch.reset()
    step = batch.step(np.tile(np.float32([1.0, 0.2]), (4, 1)))
    print(f"{batch.shape}\nreward {step.reward}\ncost {step.cost.ravel()}")
