"""The training loop: act, store, update, evaluate, checkpoint; and go on exactly where a run stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.envs.batch import EnvBatch, EnvStep
from saddlepoint.replay import Replay
from saddlepoint.train import checkpoint
from saddlepoint.train.acting import Actor
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.episodes import Episodes, EpisodeSums, summarise
from saddlepoint.train.evaluate import evaluate, evaluate_in, require_finite_action
from saddlepoint.train.log import RunLog
from saddlepoint.train.signals import Interrupted, StopRequest
from saddlepoint.types import ForeignFault, Learner, NonFiniteError, UserError

LEARNER, ENVS, EVALUATION, WARMUP, ACTING, RESTART = range(6)
"""the streams of random numbers that are derived from a run's seed"""
HELD_STEPS = 20
"""steps of a held action of the warm-up: of 40 episodes of dmc/pendulum-swingup 8 then met a reward, of 40 with a new uniform action each step none"""
AT_ONCE = 64
"""updates between two looks at a signal"""


def stream(seed: int, *path: int) -> int:
    """A seed for one purpose, independent of those for the others; below 2**31, which every library takes."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0] >> 1)


class Loop:
    """The state of a run, and how it moves by one step.

    Every random draw comes from a generator that is saved, or from a seed made of the run's seed, and evaluation
    touches none of them; so a run depends on its configuration only, to the bit on a CPU with a given number of
    threads.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, envs: EnvBatch, agent: Learner, replay: Replay,
        budgets: tuple[CostBudget, ...], device: torch.device, log: RunLog, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.envs, self.agent, self.replay = config, folder, envs, agent, replay
        self.budgets, self.device, self.log, self.stop = budgets, device, log, stop
        self.actor = Actor(agent, config.num_envs, device)
        self.step = 0
        self.updates = 0
        self.saved = -1  # step of the newest checkpoint
        self.kept = (-1, -1, -1)  # how far that one is: ``_reached``
        self.evaluated = 0  # step of the last evaluation
        self.logged = 0  # step whose training metrics were written, if they were due
        self.metrics: dict[str, Any] = {}  # of the last update
        self.sums = EpisodeSums(config.num_envs, budgets)
        self.finished = Episodes.none(len(budgets))  # since the last line of training metrics
        self.observation = np.zeros((config.num_envs, envs.shape.observation), envs.shape.dtype)
        self.low = np.array(envs.shape.action_low, np.float32)
        self.high = np.array(envs.shape.action_high, np.float32)
        self.warmup_generator = torch.Generator().manual_seed(stream(config.seed, WARMUP))
        self.generator = torch.Generator(device=device).manual_seed(stream(config.seed, ACTING))

    def begin(self, observation: np.ndarray) -> None:
        """Take the first observations of a new run, (envs, observation)."""
        self.observation = observation
        self._observe()

    def run(self) -> None:
        """Go on until ``total_steps``, a signal (``Interrupted``) or a fault (``UserError``)."""
        config = self.config
        while True:
            last = self.step >= config.total_steps
            try:
                learned = self._learn()
                if learned and self.logged != self.step:
                    self.logged = self.step
                    if last or config.due(self.step, config.log_every):
                        self._log_training()
                if learned and self.evaluated != self.step and (last or config.due(self.step, config.eval_every)):
                    self._evaluate()
                stopping = self.stop()
                # A new run writes one at once: it can be resumed from its first moment, and a full disk shows early.
                due = last or stopping or self.step == 0 or config.due(self.step, config.checkpoint_every)
                if due and self.kept != self._reached():
                    self._save(self.envs.snapshot())
                if last and self.evaluated == self.step:
                    return
                if stopping:
                    raise Interrupted(f"stopped at step {self.step}; go on with --resume {self.folder}")
                self._advance()
            except (NonFiniteError, ForeignFault) as error:
                if self.stop() and isinstance(error, ForeignFault):  # it is given up, or the signal reached it as well
                    way = f"{self._last_good()}; go on with --resume {self.folder}"
                    raise Interrupted(f"stopped; {way} ({error})") from error
                raise type(error)(f"{str(error).rstrip('.')} (step {self.step}; {self._last_good()}).") from error
            except OSError as error:  # metrics and TensorBoard; a checkpoint's own faults are sentences already
                reason = error.strerror or str(error)
                raise UserError(f"{self.folder} cannot be written ({reason}): make room and go on with --resume; {self._last_good()}.") from error
            except RuntimeError as error:
                if not self.stop():
                    raise
                # Ctrl-C also reaches what works for us, such as the C++ compiler: the step cannot be finished.
                raise Interrupted(f"stopped; {self._last_good()}; go on with --resume {self.folder}") from error

    def resume(self) -> None:
        """Take up the newest whole checkpoint of the run's folder."""
        path, warning = checkpoint.latest(self.folder)
        if warning:
            self.log.say(f"warning: {warning}")
        saved = checkpoint.load(path)
        if saved.step > self.config.total_steps:
            raise UserError(f"{self.folder} has already made {saved.step} steps: raise --total-steps to go on.")
        self.agent.load_state_dict(saved.learner)
        self.replay.load_state_dict(saved.replay)
        state = saved.state
        self.step = self.saved = saved.step
        self.updates, self.evaluated, self.metrics = state["updates"], state["evaluated"], state["metrics"]
        self.kept = self._reached()
        self.sums.load_state_dict(state["sums"])
        self.finished = Episodes(**state["finished"])
        self.warmup_generator.set_state(torch.from_numpy(state["warmup_generator"]))
        self.generator.set_state(torch.from_numpy(state["generator"]))
        self.observation = state["observation"]
        self.logged = -1 if self._owed() > 0 else self.step
        self.actor.load_state_dict(state)
        self.log.resume(self.step, state["wall_s"], self._is_kept)
        ended = "; that is all it was asked for (--total-steps)" if self.step >= self.config.total_steps else ""
        self.log.say(f"going on from step {self.step}{ended}")
        if state["envs"] is None or not self.envs.restore(state["envs"]):
            self.log.say("note: these environments cannot be restored in mid-episode: each starts a new episode here")
            self._new_episodes()

    def _new_episodes(self) -> None:
        """Give up the episodes at hand, which cannot be gone on with."""
        self.replay.break_episodes()
        self.sums.restart(np.ones(self.config.num_envs, bool))
        self.actor.restart()
        self.observation = self.envs.reset(stream(self.config.seed, RESTART, self.step))
        self._observe()

    def _advance(self) -> None:
        """One step of every environment."""
        action = self._action()
        require_finite_action(action)
        step = self._stepped(action)
        self.replay.add(
            self.observation, action, step.reward, step.cost, step.next_observation, step.terminated, step.truncated
        )
        ended = step.terminated | step.truncated
        if ended.any():
            self.actor.restart(ended)
        finished = self.sums.add(step.reward, step.cost, ended)
        if len(finished):
            self.finished = self.finished.join(finished)
        self.observation = step.observation
        self._observe()
        self.step += self.config.num_envs
        self.log.progress(self.step, self.updates)

    def _stepped(self, action: np.ndarray) -> EnvStep:
        """Their step. What they get wrong costs nothing that is learnt: it is kept first, without them, so that a resumed run goes on with new episodes
        instead of coming to the same fault again."""
        try:
            return self.envs.step(action)
        except (NonFiniteError, ForeignFault):
            self._save(envs=None)
            raise

    def _learn(self) -> bool:
        """The updates that are due at this step. False when asked to stop before the last of them: a resumed run makes the others first."""
        while (due := self._owed()) > 0:
            if self.stop():
                return False
            some = min(due, AT_ONCE)
            self.metrics = self.agent.update(self.replay, some)
            self.updates += some
            self.log.progress(self.step, self.updates)
        return True

    def _owed(self) -> int:
        config = self.config
        begun = self.step >= config.warmup_steps
        counted = self.step - (0 if config.catch_up else config.warmup_steps) if begun else 0
        return int(config.updates_per_step * counted) - self.updates

    def _action(self) -> np.ndarray:
        config = self.config
        if self.step < config.warmup_steps and config.warmup_actions != "policy":
            generator, held = self.warmup_generator, config.warmup_actions == "held"
            if held:  # what is drawn depends on its time alone: a resumed run keeps an action that is being held
                generator = torch.Generator().manual_seed(stream(config.seed, WARMUP, self.step // config.num_envs // HELD_STEPS))
            uniform = torch.rand(config.num_envs, len(self.low), generator=generator).numpy()
            return self.low + (self.high - self.low) * (uniform.round() if held else uniform)
        return self.actor.act(self.observation, "explore", self.generator)

    def _observe(self) -> None:
        self.agent.observe(self._tensor(self.observation))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, device=self.device)

    def _evaluate(self) -> None:
        config, seed = self.config, stream(self.config.seed, EVALUATION)
        episodes, before = config.eval_episodes, None if config.eval_envs else self.envs.snapshot()
        try:
            if before is None:
                setup, most = self.envs.setup, config.eval_envs
                metrics = evaluate(self.agent, setup, self.budgets, episodes, seed, self.device, self.stop, most)
            else:
                metrics = evaluate_in(self.envs, self.agent, self.budgets, episodes, seed, self.device, self.stop)
                if not self.envs.restore(before):
                    self._new_episodes()
        except UserError as error:
            if self.kept != self._reached():
                self._save(before or self.envs.snapshot())
            raise type(error)(f"in an evaluation, {error}") from error
        if metrics is not None:  # None: asked to stop; the evaluation is made up for on resume
            self.evaluated = self.step
            self.log.write(self.step, "eval", metrics)

    def _log_training(self) -> None:
        metrics = {f"train/{name}": float(value) for name, value in self.metrics.items()}
        if len(self.finished):
            metrics |= summarise(self.finished, self.budgets, "train")
        metrics |= {"train/episodes": float(len(self.finished)), "train/updates": float(self.updates)}
        self.log.write(self.step, "train", metrics)
        if self.config.due(self.step, self.config.log_every):
            self.finished = Episodes.none(len(self.budgets))

    def _is_kept(self, line: dict[str, Any]) -> bool:
        """Whether an uninterrupted run would have this line: no later one, none that only an earlier end caused."""
        every = self.config.eval_every if line["kind"] == "eval" else self.config.log_every
        on_schedule = self.config.due(line["step"], every) or self.step >= self.config.total_steps
        again = line["step"] > self.evaluated if line["kind"] == "eval" else line["step"] == self.step != self.logged
        return on_schedule and line["step"] <= self.step and not again  # what the checkpoint does not know of is made once more

    def _reached(self) -> tuple[int, int, int]:
        """What a checkpoint of now would hold that one of the same step may lack: a run can be stopped before its last updates and evaluation."""
        return self.step, self.updates, self.evaluated

    def _save(self, envs: dict[str, Any] | None) -> None:
        """A checkpoint, with what restores the environments or None where nothing can."""
        learner = self.agent.state_dict()
        for name, tensor in learner.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise NonFiniteError(f"the learner's {name} is not finite: lower the learning rates.")
        state = {
            "updates": self.updates,
            "evaluated": self.evaluated,
            "wall_s": self.log.wall_s,
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "sums": self.sums.state_dict(),
            "finished": self.finished._asdict(),
            "observation": self.observation,
            "warmup_generator": self.warmup_generator.get_state().numpy(),
            "generator": self.generator.get_state().cpu().numpy(),
            "envs": envs,
            **self.actor.state_dict(),
        }
        self.log.flush()
        whole = checkpoint.Checkpoint(self.step, learner, self.replay.state_dict(), state)
        checkpoint.save(self.folder, whole, self.config.keep_checkpoints)
        self.saved, self.kept = self.step, self._reached()

    def _last_good(self) -> str:
        return f"the last good checkpoint is of step {self.saved}" if self.saved >= 0 else "there is no checkpoint yet"
