"""What the training loop steps: several environments of one task, checked, seeded, guarded, and captured exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from saddlepoint.envs.backends import Backend, EnvStep, LocalEnvs, VectorisedEnvs
from saddlepoint.envs.tasks import env_spec, in_decisions
from saddlepoint.envs.workers import WorkerEnvs
from saddlepoint.options import truth_value, whole_number
from saddlepoint.types import EnvSetup, ForeignFault, NonFiniteError, UserError

__all__ = ["EnvBatch", "EnvStep"]


class EnvBatch:
    """``num_envs`` environments of ``env``: an id, a class or function that makes one, or an ``EnvSetup``. An episode
    that ends is followed by a new one in the same step.

    The environment is checked on creation (``check_env``: ``UserError`` at the first fault). Environment i gets word i
    of ``numpy.random.SeedSequence(seed)``, so that runs with seeds 0 and 1 share no environment, and more environments
    leave the first ones as they were. A task of ours with a vectorised form (the toy) is stepped as one, unless its
    actions are held or its episodes cut; else environments are stepped in turn, or in worker ``processes``. ``env_kwargs`` are those of the
    setup. Unless ``needs_cost``, an environment may be without a cost: it then has 0 constraints. What is not right in
    an answer stops the step (``GuardedEnv``). ``stop`` says whether somebody wishes to, while a worker is silent.
    """

    def __init__(
        self,
        env: str | Callable[..., Any] | EnvSetup,
        num_envs: int,
        *,
        seed: int,
        processes: bool = False,
        render_mode: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        needs_cost: bool = True,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        num_envs, seed = whole_number("num_envs", num_envs, least=1), whole_number("seed", seed)
        processes, needs_cost = truth_value("processes", processes), truth_value("needs_cost", needs_cost)
        setup = EnvSetup.of(env)
        if env_kwargs is not None:
            own = replace(setup, kwargs=env_kwargs).kwargs  # checked
            setup = replace(setup, kwargs={**setup.kwargs, **own})
        task = env_spec(setup)
        ours = task.source == "saddlepoint" and not task.pixels  # each environment draws its own pictures
        vectorised = ours and task.action_repeat == 1 and setup.cut is None and gym.spec(setup.name).vector_entry_point is not None
        if processes and vectorised:
            raise UserError(
                f"{setup.name} is stepped as one already, so worker processes would do nothing:"
                " leave out --env-processes."
            )
        self._envs: Backend
        if vectorised:
            self._envs = VectorisedEnvs(setup, num_envs, render_mode)
        elif processes:
            self._envs = WorkerEnvs(setup, num_envs, render_mode, stop)
        else:
            self._envs = LocalEnvs(setup, range(num_envs), render_mode)
        self.num_envs, self.setup = num_envs, setup
        try:
            self.shape = self._envs.shape(needs_cost)
            if task.horizon is None:  # what makes the environment may have wrapped it
                task = in_decisions(replace(task, horizon=self._envs.horizon()), task.action_repeat)
        except BaseException:
            self.close()
            raise
        self.spec = replace(task, constraints=self.shape.constraints)
        """the task; its horizon and budgets count steps of this batch"""
        self._seed: int = seed
        self._actions = (num_envs, self.shape.action)
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
        if seed is not None:
            seed = whole_number("seed", seed)
        if seed is not None or not self._started:
            seeds = self._seeds(self._seed if seed is None else seed)
        self._started = True
        self.observation = self._envs.reset(seeds)
        return self.observation.copy()

    def step(self, action: np.ndarray) -> EnvStep:
        """(envs, action) -> one step of every environment; actions are clipped to the bounds.

        Raises ``NonFiniteError`` for a reward, cost or observation that is not finite, ``ForeignFault`` for whatever
        else an environment must not answer, for an error that it raises and for a worker that died.
        """
        if not isinstance(action, np.ndarray) or action.shape != self._actions or action.dtype.kind not in "fiu":
            raise UserError(f"the actions of {self.num_envs} environments must be an array of numbers of shape {self._actions}, not {action!r:.60}.")
        step = self._envs.step(action)
        self._steps += 1
        self.observation = step.observation
        return step

    def notes(self) -> list[str]:
        """What a run should say of its environments when it starts, a sentence each."""
        notes, spec = [], self.spec
        if spec.action_repeat > 1:
            length = "" if spec.horizon is None else f", so that an episode has {spec.horizon} steps"
            notes.append(
                f"each action is held for {spec.action_repeat} simulator steps, and counts as one step{length}"
            )
        if self.setup.cut is not None:
            notes.append(f"training episodes are cut after {self.setup.cut} steps; evaluations play whole ones")
        if spec.horizon is None and self.setup.longest is not None:
            notes.append(
                f"{spec.id} has no time limit: what has not ended after {self.setup.longest} steps is cut there"
            )
        if "<" in spec.id or spec.id.startswith("__main__:"):
            notes.append(f"{spec.id} was given in Python: to resume and evaluate this run, give the same there again")
        notes += [
            f"{spec.id} cannot be restored in mid-episode ({reason.rstrip('.')}): a resumed run starts new episodes"
            for reason in self._envs.notes()
        ]
        return notes

    def snapshot(self) -> dict[str, Any]:
        """Where every environment is, as nested dicts of arrays, numbers, strings, None and lists.

        Where the environments themselves fail, such as by the death of a worker, ``envs`` is None: ``restore`` then
        starts new episodes. A snapshot never costs what is learnt.
        """
        try:
            envs = self._envs.snapshot()
        except (ForeignFault, NonFiniteError):
            envs = None
        return {
            "id": self.spec.id,
            "num_envs": self.num_envs,
            "steps": self._steps,
            "observation": self.observation.copy(),
            "envs": envs,
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
        seeds = self._seeds([self._seed, self._steps])
        if state["envs"] is None:
            self.observation = self._envs.reset(seeds)
            return False
        self.observation = np.array(state["observation"], self.shape.dtype)
        fresh = self._envs.restore(state["envs"], seeds)
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
