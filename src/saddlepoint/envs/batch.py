"""What the training loop steps: several environments of one task, checked, seeded, guarded, and captured exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from saddlepoint.envs.backends import Backend, EnvStep, LocalEnvs, VectorisedEnvs
from saddlepoint.envs.tasks import env_spec
from saddlepoint.envs.workers import WorkerEnvs
from saddlepoint.types import ForeignFault, NonFiniteError, UserError

__all__ = ["EnvBatch", "EnvStep"]


class EnvBatch:
    """``num_envs`` environments of the task ``id``. An episode that ends is followed by a new one in the same step.

    The environment is checked on creation (``check_env``: ``UserError`` at the first fault). Environment i gets word i
    of ``numpy.random.SeedSequence(seed)``, so that runs with seeds 0 and 1 share no environment, and more environments
    leave the first ones as they were. A task of ours with a vectorised form (the toy) is stepped as one; else
    environments are stepped in turn, or in worker ``processes``. ``env_kwargs`` go to ``make_env``
    (``max_episode_steps`` among them). Unless ``needs_cost``, an environment may be without a cost: it then has 0
    constraints. Actions are clipped to the bounds, which a learner's own scaling leaves by the last bit where they are asymmetric.
    """

    def __init__(
        self,
        id: str,
        num_envs: int,
        *,
        seed: int,
        processes: bool = False,
        render_mode: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        needs_cost: bool = True,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"at least one environment is needed, not {num_envs}: correct --num-envs.")
        if seed < 0:
            raise UserError(f"a seed must be an integer >= 0, not {seed}: correct --seed.")
        kwargs = env_kwargs or {}
        task = env_spec(id, kwargs.get("max_episode_steps"))
        ours = task.source == "saddlepoint" and not task.pixels  # each environment draws its own pictures
        vectorised = ours and gym.spec(id).vector_entry_point is not None
        if processes and vectorised:
            raise UserError(f"{id} is stepped as one already, so worker processes would do nothing: leave out --env-processes.")
        backend = VectorisedEnvs if vectorised else WorkerEnvs if processes else LocalEnvs
        self._envs: Backend = backend(id, num_envs, render_mode, kwargs)
        self.num_envs = num_envs
        try:
            self.shape = self._envs.shape(needs_cost)
        except UserError:
            self.close()
            raise
        self._low, self._high = np.array(self.shape.action_low, np.float32), np.array(self.shape.action_high, np.float32)
        self.spec = replace(task, constraints=self.shape.constraints)
        self._seed: int = seed
        self._started = False
        self._steps = 0
        self.observation = np.zeros((num_envs, self.shape.observation), self.shape.dtype)
        """(envs, observation), of the shape's ``dtype``: what to act on next"""

    def reset(self, seed: int | None = None) -> np.ndarray:
        """New episodes everywhere; (envs, observation), of the shape's ``dtype``.

        With None, the first reset takes the seed given at creation and later ones go on with each environment's own
        generator.
        """
        seeds = None
        if seed is not None or not self._started:
            seeds = self._seeds(self._seed if seed is None else seed)
        self._started = True
        self.observation = self._envs.reset(seeds)
        self._require_finite("observation", self.observation)
        return self.observation.copy()

    def step(self, action: np.ndarray) -> EnvStep:
        """(envs, action) -> one step of every environment.

        Raises ``NonFiniteError`` for a reward, cost or observation that is not finite, ``ForeignFault`` for a negative
        cost, for an error that the environment raises and for a worker that died.
        """
        step = self._envs.step(action.clip(self._low, self._high))
        self._steps += 1
        # One number says whether all are finite: the sum of what is not is not; only then look which.
        if not np.isfinite(step.reward.sum() + step.cost.sum() + step.next_observation.sum() + step.observation.sum()):
            self._require_finite("reward", step.reward)
            self._require_finite("cost", step.cost)
            self._require_finite("observation", step.next_observation)
            self._require_finite("observation", step.observation)
        if step.cost.min(initial=0.0) < 0:
            raise ForeignFault(
                f"{self.spec.id} gave the negative cost {step.cost.min()} at step {self._steps}: costs must be >= 0."
            )
        self.observation = step.observation
        return step

    def snapshot(self) -> dict[str, Any]:
        """Where every environment is, as nested dicts of arrays, numbers, strings, None and lists."""
        return {
            "id": self.spec.id,
            "num_envs": self.num_envs,
            "steps": self._steps,
            "observation": self.observation.copy(),
            "envs": self._envs.snapshot(),
        }

    def restore(self, state: dict[str, Any]) -> bool:
        """Go where ``snapshot`` was taken; ``observation`` is then what to act on.

        False when some environment cannot be restored exactly: that one has been reset, with a seed made of the batch's
        seed and the step. Raises ``UserError`` when ``state`` is of another task or number of environments.
        """
        if (state["id"], state["num_envs"]) != (self.spec.id, self.num_envs):
            raise UserError(
                f"the saved state is of {state['num_envs']} environments of {state['id']}, "
                f"not of {self.num_envs} of {self.spec.id}: "
                "resume with the run's own --env and --num-envs."
            )
        self._steps, self._started = int(state["steps"]), True
        self.observation = np.array(state["observation"], self.shape.dtype)
        fresh = self._envs.restore(state["envs"], self._seeds([self._seed, self._steps]))
        for i, observation in fresh.items():
            self.observation[i] = observation
        return not fresh

    def render(self) -> np.ndarray:
        """A picture of environment 0, (height, width, 3) uint8; needs ``render_mode="rgb_array"``."""
        return self._envs.render()

    def close(self) -> None:
        self._envs.close()

    def _seeds(self, entropy: int | list[int]) -> list[int]:
        return [int(word) for word in np.random.SeedSequence(entropy).generate_state(self.num_envs)]

    def _require_finite(self, what: str, values: np.ndarray) -> None:
        finite = np.isfinite(values.reshape(self.num_envs, -1)).all(axis=1)
        if not finite.all():
            raise NonFiniteError(
                f"the {what} of {self.spec.id} is not finite in environment {int(np.argmin(finite))} "
                f"at step {self._steps}: "
                "correct the environment, or look at the action it was given."
            )
