"""Evaluation of a model of several tasks, each as the single-task agent that the model is for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from saddlepoint.envs import EnvBatch
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.tasks import Task, find_task
from saddlepoint.mbdpo.transfer import specialise
from saddlepoint.offline.config import PretrainConfig
from saddlepoint.offline.dataset import Dataset
from saddlepoint.train.evaluate import evaluate
from saddlepoint.types import UserError


def playable(data: Dataset, config: PretrainConfig) -> tuple[tuple[Task, ...], dict[str, str]]:
    """The tasks, with the observation sizes of their environments where these can be made here, and by name why others are not to be evaluated.

    Raises ``UserError`` where that is one of ``config.eval_tasks``, or an environment does not fit the data.
    """
    wanted = [find_task(data.tasks, name, data.folder, "--eval-tasks") for name in config.eval_tasks]
    tasks, faults = [], {}
    for number, task in enumerate(data.tasks):
        try:
            if not data.holds(number):
                raise UserError(f"{data.folder} has no episodes of {task.name}.")
            envs = EnvBatch(task.env, 1, seed=0, needs_cost=False)
        except UserError as error:
            if number in wanted:
                raise
            faults[task.name] = str(error)
            tasks.append(task)
            continue
        shape = envs.shape
        envs.close()
        if shape.action != task.shape.action or not task.observation <= shape.observation <= data.observation:
            raise UserError(
                f"{task.env} has {shape.observation} observations and {shape.action} actions, which does not fit the {task.observation} and"
                f" {task.shape.action} of {task.name} in {data.folder}: it is another environment."
            )
        if (shape.action_low, shape.action_high) != (task.action_low, task.action_high):
            raise UserError(f"{task.env} has other bounds of its actions than {task.name} in {data.folder}: it is another environment.")
        tasks.append(replace(task, observation=shape.observation))  # of a converted task only the entries in use are known
    return tuple(tasks), faults


def evaluate_task(agent: MBDPO, number: int, task: Task, episodes: int, seed: int, stop: Callable[[], bool]) -> dict[str, float] | None:
    """``evaluate``'s metrics of one task, as ``eval/<task>/...`` and ``eval/<task>/stochastic/...``; None when ``stop`` asked to leave.

    ``agent`` is not touched.
    """
    policy = specialise(agent, number, task, device=agent.device)
    metrics = evaluate(policy, task.env, (), episodes, seed, agent.device, stop)
    if metrics is None:
        return None
    return {f"eval/{task.name}/{name.removeprefix('eval/')}": value for name, value in metrics.items()}


def over_tasks(metrics: dict[str, float], tasks: Sequence[Task]) -> dict[str, float]:
    """``eval/return_mean``, ``_std``, ``_min`` and ``_max`` over the tasks' mean returns, ``eval/success_rate`` over those that report a success, and so
    for the stochastic policy."""
    summary: dict[str, float] = {}
    for prefix, end in (("eval", "return_mean"), ("eval/stochastic", "stochastic/return_mean")):
        means = np.array([metrics[f"eval/{task.name}/{end}"] for task in tasks])
        for name, value in (("mean", means.mean()), ("std", means.std()), ("min", means.min()), ("max", means.max())):
            summary[f"{prefix}/return_{name}"] = float(value)
        rates = [metrics[key] for task in tasks if (key := f"eval/{task.name}{prefix.removeprefix('eval')}/success_rate") in metrics]
        if rates:
            summary[f"{prefix}/success_rate"] = float(np.mean(rates))
    return summary
