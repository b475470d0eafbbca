"""Pretraining on a data set: draw, update, evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.losses import Sequences, UpdateNoise
from saddlepoint.mbdpo.peers import share_noise
from saddlepoint.mbdpo.tasks import Task
from saddlepoint.offline.config import PretrainConfig
from saddlepoint.offline.dataset import Dataset, Windows
from saddlepoint.offline.evaluate import evaluate_task, over_tasks
from saddlepoint.offline.processes import Processes
from saddlepoint.train import checkpoint
from saddlepoint.train.log import RunLog
from saddlepoint.train.loop import EVALUATION, stream
from saddlepoint.train.signals import StopRequest
from saddlepoint.train.training import Parts
from saddlepoint.train.verdict import evaluation_in_words
from saddlepoint.types import Metrics


class Pretraining:
    """The training that ``train.driver`` drives on a data set: its state, and how it moves by one update.

    Every draw, of windows and of noise, comes from the agent's own generator, which its state holds; the processes draw the same and take their shares.
    ``tasks`` are those to evaluate, with their numbers.
    """

    unit: ClassVar[str] = "update"
    total_flag: ClassVar[str] = "--total-updates"

    def __init__(
        self, config: PretrainConfig, data: Dataset, agent: MBDPO, tasks: Sequence[tuple[int, Task]], processes: Processes, log: RunLog,
        stop: StopRequest,
    ) -> None:  # fmt: skip
        self.config, self.data, self.agent, self.tasks = config, data, agent, tasks
        self.processes, self.log, self.stop = processes, log, stop
        self.step = 0
        self.metrics: Metrics = {}  # of the last update

    @property
    def updates(self) -> int:
        return self.step

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Take up a checkpoint."""
        self.agent.load_state_dict(saved.learner)
        self.step, self.metrics = saved.step, {name: float(value) for name, value in saved.state["metrics"].items()}

    def learn(self) -> bool:
        """Nothing is owed between two updates."""
        return True

    def sequences(self, windows: Windows) -> Sequences:
        """What was read, as the agent takes it."""
        observation, action, reward, terminated = (
            torch.from_numpy(part).to(self.agent.device, self.agent.dtype) for part in (windows.observation, windows.action, windows.reward, windows.terminated)
        )
        task = torch.from_numpy(windows.task).to(self.agent.device)
        return Sequences(observation, action, reward, reward.new_zeros(0, *reward.shape), terminated, task)

    def advance(self) -> None:
        """One update."""
        agent, rank, count = self.agent, self.processes.rank, self.processes.count
        c = agent.config
        windows = self.data.sample(c.batch_size, c.horizon, agent.generator, rank, count)
        noise = share_noise(UpdateNoise.draw(agent.model, c.batch_size, agent.generator), rank, count)
        data = self.sequences(windows)
        if count > 1 and data.task is not None:  # looking a task up rescales its embedding where it is too long: in every process alike
            with torch.no_grad():
                agent.model.embedding(self.processes.pool(data.task))
        self.metrics = agent.update_sequences(data, noise)
        self.step += 1
        self.log.progress(self.step, self.step)

    def evaluate(self) -> dict[str, float] | None:
        """Each process plays some of the tasks. A stop in any of them is a stop of all: the evaluation is made up for on resume."""
        config, seed = self.config, stream(self.config.seed, EVALUATION)
        mine: dict[str, float] = {}
        stopped = False
        for number, task in self.tasks[self.processes.rank :: self.processes.count]:
            found = evaluate_task(self.agent, number, task, config.eval_episodes, seed, self.stop)
            if found is None:
                stopped = True
                break
            mine |= found
        parts = self.processes.gather(mine)
        if self.processes.any(stopped):
            return None
        metrics = {name: value for part in parts for name, value in part.items()}
        return metrics | over_tasks(metrics, [task for _, task in self.tasks])

    def evaluation_words(self, metrics: dict[str, float]) -> str:
        return f"mean over {len(self.tasks)} tasks: {evaluation_in_words(metrics, (), 'both')}"

    def merit(self, metrics: dict[str, float]) -> float | None:
        """The mean over the tasks of their mean returns."""
        return metrics["eval/return_mean"]

    def training_metrics(self, regular: bool) -> dict[str, float]:
        return {f"train/{name}": value for name, value in self.processes.mean(self.metrics).items()} | {"train/updates": float(self.step)}

    def state(self) -> Parts:
        return Parts(self.agent.state_dict(), {}, {"metrics": self.processes.mean(self.metrics)})
