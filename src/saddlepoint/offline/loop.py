"""The loop of a pretraining run: draw, update, evaluate, checkpoint; and go on exactly where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.losses import Sequences, UpdateNoise
from saddlepoint.mbdpo.peers import share_noise
from saddlepoint.mbdpo.tasks import Task
from saddlepoint.offline.config import PretrainConfig, is_due
from saddlepoint.offline.dataset import Dataset, Windows
from saddlepoint.offline.evaluate import evaluate_task, over_tasks
from saddlepoint.offline.processes import Processes
from saddlepoint.train import checkpoint
from saddlepoint.train.log import RunLog
from saddlepoint.train.loop import EVALUATION, stream
from saddlepoint.train.signals import Interrupted, StopRequest
from saddlepoint.types import ForeignFault, Metrics, NonFiniteError, UserError


class Pretraining:
    """The state of a run, and how it moves by one update.

    Every draw, of windows and of noise, comes from the agent's own generator, which its state holds; the processes draw the same and take their shares.
    ``tasks`` are those to evaluate, with their numbers. ``log`` is None in all processes but the first.
    """

    def __init__(
        self, config: PretrainConfig, folder: Path, data: Dataset, agent: MBDPO, tasks: Sequence[tuple[int, Task]], processes: Processes,
        log: RunLog | None, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.data, self.agent, self.tasks = config, folder, data, agent, tasks
        self.processes, self.log, self.stop = processes, log, stop
        self.step = 0
        self.saved = -1  # step of the newest checkpoint
        self.kept = (-1, -1)  # step and last evaluation of that one
        self.evaluated = 0  # step of the last evaluation
        self.metrics: Metrics = {}  # of the last update

    def run(self) -> None:
        """Go on until ``total_updates``, a signal (``Interrupted``) or a fault (``UserError``)."""
        config = self.config
        while True:
            last = self.step >= config.total_updates
            try:
                if self._evaluation_due(last):
                    self._evaluate()
                stopping = self.processes.any(self.stop())
                # A new run writes one at once: it can be resumed from its first moment, and a full disk shows early.
                due = last or stopping or self.step == 0 or is_due(self.step, config.checkpoint_every)
                if due and self.kept != (self.step, self.evaluated):
                    self._save()
                if last and not self._evaluation_due(last):
                    return
                if stopping:
                    raise Interrupted(f"stopped at update {self.step}; go on with --resume {self.folder}")
                self._advance()
                if is_due(self.step, config.log_every) or self.step >= config.total_updates:
                    self._log_training()
            except NonFiniteError as error:
                raise NonFiniteError(f"{str(error).rstrip('.')} (update {self.step}; {self._last_good()}).") from error
            except ForeignFault as error:  # of an evaluation's environment
                if self.processes.count == 1 and self.kept != (self.step, self.evaluated):
                    self._save()
                raise ForeignFault(f"in an evaluation, {str(error).rstrip('.')} (update {self.step}; {self._last_good()}).") from error
            except OSError as error:  # the data, metrics and TensorBoard; a checkpoint's own faults are sentences already
                where = error.filename or self.folder
                raise UserError(f"{where} cannot be read or written ({error.strerror or error}): go on with --resume; {self._last_good()}.") from error

    def resume(self) -> None:
        """Take up the newest whole checkpoint of the run's folder."""
        path, warning = checkpoint.latest(self.folder)
        saved = checkpoint.load(path)
        if saved.step > self.config.total_updates:
            raise UserError(f"{self.folder} has already made {saved.step} updates: raise --total-updates to go on.")
        self.agent.load_state_dict(saved.learner)
        self.step = self.saved = saved.step
        self.evaluated, self.metrics = saved.state["evaluated"], saved.state["metrics"]
        self.kept = (self.step, self.evaluated)
        if self.log is None:
            return
        self.log.resume(self.step, saved.state["wall_s"], self._is_kept)
        if warning:
            self.log.say(f"warning: {warning}")
        ended = "; that is all it was asked for (--total-updates)" if self.step >= self.config.total_updates else ""
        self.log.say(f"going on from update {self.step}{ended}")

    def sequences(self, windows: Windows) -> Sequences:
        """What was read, as the agent takes it."""
        observation, action, reward, terminated = (
            torch.from_numpy(part).to(self.agent.device, self.agent.dtype) for part in (windows.observation, windows.action, windows.reward, windows.terminated)
        )
        task = torch.from_numpy(windows.task).to(self.agent.device)
        return Sequences(observation, action, reward, reward.new_zeros(0, *reward.shape), terminated, task)

    def _advance(self) -> None:
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
        if self.log is not None:
            self.log.progress(self.step, self.step)

    def _evaluation_due(self, last: bool) -> bool:
        every = self.config.eval_every
        return bool(self.tasks) and every > 0 and self.evaluated != self.step and (last or is_due(self.step, every))

    def _evaluate(self) -> None:
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
            return
        self.evaluated = self.step
        if self.log is not None:
            metrics = {name: value for part in parts for name, value in part.items()}
            self.log.write(self.step, "eval", metrics | over_tasks(metrics, [task for _, task in self.tasks]))

    def _log_training(self) -> None:
        metrics = {f"train/{name}": value for name, value in self.processes.mean(self.metrics).items()}
        if self.log is not None:
            self.log.write(self.step, "train", metrics | {"train/updates": float(self.step)})

    def _is_kept(self, line: dict[str, Any]) -> bool:
        """Whether an uninterrupted run would have this line: no later one, none that only an earlier end caused."""
        every = self.config.eval_every if line["kind"] == "eval" else self.config.log_every
        if line["kind"] == "eval" and line["step"] > self.evaluated:
            return False  # the checkpoint does not know of it: it is made once more
        return line["step"] <= self.step and (is_due(line["step"], every) or self.step >= self.config.total_updates)

    def _save(self) -> None:
        learner = self.agent.state_dict()
        for name, tensor in learner.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise NonFiniteError(f"the learner's {name} is not finite: lower the learning rates.")
        metrics = self.processes.mean(self.metrics)
        if self.log is not None:
            state = {"evaluated": self.evaluated, "wall_s": self.log.wall_s, "metrics": metrics}
            self.log.flush()
            checkpoint.save(self.folder, checkpoint.Checkpoint(self.step, learner, {}, state), self.config.keep_checkpoints)
        self.saved, self.kept = self.step, (self.step, self.evaluated)

    def _last_good(self) -> str:
        return f"the last good checkpoint is of update {self.saved}" if self.saved >= 0 else "there is no checkpoint yet"
