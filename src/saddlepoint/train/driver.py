"""The driver of every run: steps, evaluations, checkpoints, signals, callbacks, faults; and going on exactly where a
run stopped.

What is learnt, and how, is a ``Training``: reinforcement learning (``train.loop``), pretraining (``offline.loop``),
post-training of pictures (``safediffusion.trainer``). The driver calls it in one fixed order, and saves what it must to
repeat that order after a stop at any point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.faults import explain
from saddlepoint.foreign import foreign
from saddlepoint.train import best, checkpoint
from saddlepoint.train.callbacks import Callback
from saddlepoint.train.log import RunLog
from saddlepoint.train.schedule import Line, Schedule
from saddlepoint.train.signals import Interrupted, StopRequest
from saddlepoint.train.training import Alone, Peers, Salvageable, Training
from saddlepoint.train.verdict import Binds, bound_costs_in_words, within_budget
from saddlepoint.types import ForeignFault, NonFiniteError, UserError
from saddlepoint.usual import usual_torch


class Run:
    """A run as a callback sees it."""

    def __init__(
        self, training: Training, schedule: Schedule, folder: Path, budgets: tuple[CostBudget, ...], binds: Binds
    ) -> None:
        self._training = training
        self.schedule, self.folder, self.budgets, self.binds = schedule, folder, budgets, binds
        self.stop_reason: str | None = None

    @property
    def step(self) -> int:
        """How far the run is, in units."""
        return self._training.step

    @property
    def unit(self) -> str:
        return self._training.unit

    @property
    def total(self) -> int:
        return self.schedule.total

    @property
    def learner(self) -> Any:
        """The learner itself; a callback that changes it changes the run."""
        return self._training.agent

    def within_budget(self, metrics: dict[str, float]) -> bool | None:
        """Whether an evaluation is within every budget, for the policy that they bind; None without budgets."""
        return within_budget(metrics, self.budgets, self.binds)

    def stop(self, reason: str) -> None:
        """End the run after this step, with a checkpoint."""
        self.stop_reason = self.stop_reason or reason


class RunDriver:
    """Drives one training to its end, a signal (``Interrupted``), a callback's wish or a fault (``UserError``)."""

    def __init__(
        self, training: Training, schedule: Schedule, folder: Path, log: RunLog, stop: StopRequest, *, peers: Peers | None = None,
        budgets: tuple[CostBudget, ...] = (), binds: Binds = "both", callbacks: Sequence[Callback] = (), config_digest: str = "",
    ) -> None:  # fmt: skip
        self.training, self.schedule, self.folder, self.log, self.stop = training, schedule, folder, log, stop
        self.peers: Peers = peers or Alone()
        self.callbacks, self.config_digest = tuple(callbacks), config_digest
        self.run_view = Run(training, schedule, folder, budgets, binds)
        self.saved = -1  # step of the newest checkpoint
        self.kept = (-1, -1, -1, -1)  # how far that one is: ``_reached``
        self.evaluated = -1 if schedule.evaluate_first else 0  # step of the last evaluation
        self.settled = 0  # step whose updates, callbacks and training metrics are done
        self.best: dict[str, float] | None = None  # step and return of best/
        self.over: dict[str, Any] | None = None  # step and costs, in words, of the last evaluation, where it was over the budget
        stop.last_good = self.last_good

    def run(self) -> None:
        """Go on until all is done."""
        schedule, training = self.schedule, self.training
        self.stop.hold()
        while True:
            last = training.step >= schedule.total
            with self._faults():
                if self.saved < 0:
                    self._save()  # a new run can be resumed from its first moment, and a full disk shows early
                if training.learn() and self.settled != training.step:
                    self._settle(last)
                if self._evaluation_due(last) and not self.peers.any(self.stop()):
                    self._evaluate()
                stopping = self.peers.any(self.stop())
                ending = self.peers.any(self.run_view.stop_reason is not None)
                due = last or stopping or ending or schedule.due(training.step, schedule.checkpoint_every)
                if due and self.kept != self._reached():
                    self._save()
                    self._call(
                        lambda callback: callback.on_checkpoint(
                            self.run_view, checkpoint.place(self.folder, training.step)
                        )
                    )
                    ending = self.peers.any(self.run_view.stop_reason is not None)
                if stopping and not (last and not self._evaluation_due(last)):
                    raise Interrupted(f"stopped at {training.unit} {training.step}; go on with --resume {self.folder}")
                if ending:
                    self.log.say(
                        f"stopped at {training.unit} {training.step}: {self.run_view.stop_reason or 'in another process'}"
                    )
                if ending or (last and not self._evaluation_due(last)):
                    if self.over and self.best:
                        step = f"{self.best['step']:.0f}"
                        self.log.say(f"the last evaluation was over the budget; the best within it, of step {step}, is in best/ (--checkpoint best)")
                    return
                training.advance()

    def resume(self) -> None:
        """Take up the newest whole checkpoint of the run's folder."""
        training = self.training
        path, warning = checkpoint.latest(self.folder)
        saved = checkpoint.load(path)
        if saved.step > self.schedule.total:
            raise UserError(
                f"{self.folder} has already made {saved.step} {training.unit}s: raise {training.total_flag} to go on."
            )
        if warning:
            self.log.say(f"warning: {warning}")
        if saved.seals.get("config", self.config_digest) != self.config_digest:
            raise UserError(
                f"{self.folder / 'config.json'} is not the one that the checkpoint of {training.unit} {saved.step} was made with: restore it."
            )
        with checkpoint.reading(path):
            state = saved.state
            training.load(saved)
            self.evaluated, self.settled, self.best = index(state["evaluated"]), index(state["settled"]), state["best"]
            if self.best is not None:
                self.best = {"step": int(self.best["step"]), "merit": float(self.best["merit"])}
            self.over = saved.seals.get("over")
            self._load_callbacks(state["callbacks"])
            wall_s = float(state["wall_s"])
        self.saved, self.kept = saved.step, self._reached()
        for sentence in self.log.resume(
            training.step, wall_s, self._is_kept, self.schedule.regular, saved.seals.get("metrics")
        ):
            self.log.say(f"warning: {sentence}")
        ended = (
            f"; that is all it was asked for ({training.total_flag})" if training.step >= self.schedule.total else ""
        )
        self.log.say(f"going on from {training.unit} {training.step}{ended}")

    def last_good(self) -> str:
        """Where a run can be taken up, in words."""
        return (
            f"the last good checkpoint is of {self.training.unit} {self.saved}"
            if self.saved >= 0
            else "there is no checkpoint yet"
        )

    def way_back(self) -> str:
        """The same, and what to do."""
        way = f"go on with --resume {self.folder}" if self.saved >= 0 else "the same command begins anew"
        return f"{self.last_good()}; {way}"

    # ------------------------------------------------------------------------------------------------ the parts of a step

    def _settle(self, last: bool) -> None:
        """What follows the updates of a step, once."""
        self.settled = self.training.step
        regular = self.schedule.due(self.training.step, self.schedule.log_every)
        if last or regular:
            self._write("train", self.training.training_metrics(regular))
        self._call(lambda callback: callback.on_step(self.run_view))

    def _evaluation_due(self, last: bool) -> bool:
        step, schedule = self.training.step, self.schedule
        if schedule.eval_every <= 0 or self.evaluated == step:
            return False
        return last or schedule.due(step, schedule.eval_every) or (schedule.evaluate_first and step == 0)

    def _evaluate(self) -> None:
        training = self.training
        try:
            metrics = training.evaluate()
        except UserError as error:  # of an environment, or a score: the training is whole
            self._salvage()
            raise type(error)(f"in an evaluation, {error}") from error
        self.stop.hold()
        if metrics is None:
            return
        self.evaluated = training.step
        if not metrics:
            return
        self._write("eval", metrics)
        if words := training.evaluation_words(metrics):
            self.log.say(f"{training.unit} {training.step}: {words}")
        view, self.over = self.run_view, None
        if view.within_budget(metrics) is False:
            self.over = {"step": training.step, "costs": bound_costs_in_words(metrics, view.budgets, view.binds)}
        self._keep_best(metrics)
        self._call(lambda callback: callback.on_evaluation(self.run_view, metrics))

    def _write(self, kind: Any, metrics: dict[str, float]) -> None:
        step = self.training.step
        self.log.write(step, kind, metrics, self.schedule.regular({"step": step, "kind": kind}))

    def _keep_best(self, metrics: dict[str, float]) -> None:
        """``best/``: the learner of the evaluation that ranks highest, the first of equals."""
        found = self.training.merit(metrics)
        if found is None or not math.isfinite(found) or (self.best is not None and found <= self.best["merit"]):
            return
        self.best = {"step": self.training.step, "merit": found}
        if self.peers.main:
            with usual_torch():
                learner = self._finite(self.training.agent.state_dict())
            best.keep(self.folder, self.training.step, learner, metrics, self._seals())

    def _call(self, call: Callable[[Callback], bool | None]) -> None:
        for callback in self.callbacks:
            name = type(callback).__name__
            try:
                answer = foreign(f"the callback {name}", call, callback)
                if isinstance(answer, bool | np.bool_) and not answer:
                    self.run_view.stop(f"the callback {name} asked for it")
            except UserError:
                self._salvage()
                raise

    # ------------------------------------------------------------------------------------------------ keeping

    def _reached(self) -> tuple[int, int, int, int]:
        """What a checkpoint of now would hold that one of the same step may lack: a run can be stopped before its last
        updates and its evaluation."""
        return self.training.step, self.training.updates, self.evaluated, self.settled

    def _save(self) -> None:
        """A checkpoint, written by the first process; all go on when it is there."""
        parts = self.training.state()
        learner = self._finite(parts.learner)
        if self.peers.main:
            self.log.flush()
            state = parts.state | {
                "evaluated": self.evaluated, "settled": self.settled, "best": self.best, "wall_s": self.log.wall_s,
                "callbacks": [[type(callback).__name__, own] for callback in self.callbacks if (own := self._state_of(callback)) is not None],
            }  # fmt: skip
            whole = checkpoint.Checkpoint(self.training.step, learner, parts.replay, state, self._seals())
            checkpoint.save(self.folder, whole, self.schedule.keep_checkpoints)
        self.peers.wait()
        self.saved, self.kept = self.training.step, self._reached()

    def _state_of(self, callback: Callback) -> dict[str, Any] | None:
        """What a callback has saved; None, which is told, where that fails: it never costs what is learnt."""
        name = type(callback).__name__
        try:
            state = foreign(f"the callback {name}", callback.state_dict)
            checkpoint.require_storable(state)
        except (UserError, TypeError, ValueError) as error:
            self.log.say(f"warning: the state of the callback {name} cannot be saved, so a resumed run starts it afresh: {error}")
            return None
        return state

    def _seals(self) -> dict[str, Any]:
        """What a checkpoint says of the files beside it, so that their damage is noticed, and of a policy over its budget."""
        return {"metrics": self.log.seal(), "config": self.config_digest, "over": self.over}

    def _salvage(self) -> None:
        """After a fault that leaves the training whole: keep it. Several processes cannot: the others know nothing of
        the fault."""
        if self.peers.count == 1 and self.kept != self._reached():
            self._save()

    def _finite(self, learner: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in learner.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise NonFiniteError(f"the learner's {name} is not finite: lower the learning rates.")
        return learner

    def _load_callbacks(self, stored: list[Any]) -> None:
        """Give each callback the state that was saved of one of its class, in order; one that is new starts afresh."""
        left = [(str(name), state) for name, state in stored]
        for callback in self.callbacks:
            at = next((i for i, (name, _) in enumerate(left) if name == type(callback).__name__), None)
            if at is not None:
                foreign(f"the callback {type(callback).__name__}", callback.load_state_dict, left.pop(at)[1])

    def _is_kept(self, line: Line) -> bool:
        """Whether an uninterrupted run would have this line: no later one, none that only an earlier end caused."""
        step = self.training.step
        again = line["step"] > self.evaluated if line["kind"] == "eval" else line["step"] > self.settled
        return (self.schedule.regular(line) or step >= self.schedule.total) and line["step"] <= step and not again

    def _faults(self) -> Faults:
        return Faults(self)


class Faults:
    """Gives every fault of a step its place and the last good checkpoint, and keeps the training first where it is
    whole."""

    def __init__(self, driver: RunDriver) -> None:
        self.driver = driver

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, Interrupted):
            return
        driver = self.driver
        if isinstance(error, Salvageable):
            cause = error.__cause__
            assert isinstance(cause, UserError)
            driver._salvage()
            error = cause
        if isinstance(error, ForeignFault) and driver.stop():  # it was given up, or the signal reached it as well
            raise Interrupted(
                f"stopped; {driver.last_good()}; go on with --resume {driver.folder} ({error})"
            ) from error
        if isinstance(error, NonFiniteError | ForeignFault):
            place = f"{driver.training.unit} {driver.training.step}"
            raise type(error)(f"{str(error).rstrip('.')} ({place}; {driver.last_good()}).") from error
        if isinstance(error, RuntimeError) and driver.stop():
            # Ctrl-C also reaches what works for us, such as the C++ compiler: the step cannot be finished.
            raise Interrupted(f"stopped; {driver.last_good()}; go on with --resume {driver.folder}") from error
        # Memory; metrics and TensorBoard on a full disk. A checkpoint's own faults are sentences already.
        if sentence := explain(error, driver.way_back()):
            raise UserError(sentence) from error
        if not isinstance(error, UserError):
            error.add_note(driver.way_back())
