"""Training in environments: act, store, update, evaluate; and all that a checkpoint needs to go on exactly there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.constrained.calibration import blindness
from saddlepoint.envs.batch import EnvBatch, EnvStep
from saddlepoint.replay import Replay
from saddlepoint.train import checkpoint
from saddlepoint.train.acting import Actor
from saddlepoint.train.at_budget import at_budget
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.dialled import DialledEnvs
from saddlepoint.train.episodes import Episodes, EpisodeSums, stored_like, summarise
from saddlepoint.train.evaluate import evaluate, evaluate_in, require_finite_action
from saddlepoint.train.log import RunLog
from saddlepoint.train.signals import StopRequest
from saddlepoint.train.training import Parts, Salvageable
from saddlepoint.train.verdict import evaluation_in_words, ranked_return, surcharge, within_budget
from saddlepoint.types import ForeignFault, Learner, NonFiniteError
from saddlepoint.usual import usual_torch

LEARNER, ENVS, EVALUATION, WARMUP, ACTING, RESTART, BUDGETS = range(7)
"""the streams of random numbers that are derived from a run's seed"""
HELD_STEPS = 20
"""steps of a held action of the warm-up: of 40 episodes of dmc/pendulum-swingup 8 then met a reward, of 40 with a new uniform action each step none"""
TURN_STEPS = 500
"""steps of held and of random actions of the warm-up ``turns``, held ones first: an episode of DeepMind Control"""
RARE = 0.01
"""share of the steps until then below which rewards other than the usual are rare, so that ``turns`` goes on holding actions (docs/deviations.md)"""
LARGEST_SURCHARGE = 0.5
"""of a budget: the mean cost of a few episodes is uncertain"""
AT_ONCE = 64
"""updates between two looks at a signal"""


def stream(seed: int, *path: int) -> int:
    """A seed for one purpose, independent of those for the others; below 2**31, which every library takes."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0] >> 1)


class Loop:
    """The training that ``train.driver`` drives in environments: its state, and how it moves by one step.

    Every random draw comes from a generator that is saved, or from a seed made of the run's seed, and evaluation
    touches none of them: it moves lambda alone (``_charge``). So a run depends on its configuration only, to the bit on a CPU with a given number of
    threads.
    """

    unit: ClassVar[str] = "step"
    total_flag: ClassVar[str] = "--total-steps"

    def __init__(
        self, config: TrainConfig, envs: EnvBatch | DialledEnvs, agent: Learner, replay: Replay,
        budgets: tuple[CostBudget, ...], device: torch.device, log: RunLog, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.config, self.envs, self.agent, self.replay = config, envs, agent, replay
        self.budgets, self.device, self.log, self.stop = budgets, device, log, stop
        self.actor = Actor(agent, config.num_envs, device)
        self.step = 0
        self.updates = 0
        self.envs_whole = True  # whether they can be gone on with
        self.envs_before: dict[str, Any] | None = None  # while they play an evaluation
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

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Take up a checkpoint; environments that cannot be restored start new episodes."""
        with usual_torch():
            self.agent.load_state_dict(saved.learner)
            self.replay.load_state_dict(saved.replay)
        state = saved.state
        self.step, self.updates = saved.step, int(state["updates"])
        self.metrics = {name: float(value) for name, value in state["metrics"].items()}
        self.sums.load_state_dict(state["sums"])
        self.finished = Episodes.stored(state["finished"], len(self.budgets))
        if "surcharge" in state:  # not in checkpoints from before it was measured
            self.replay.surcharge = torch.from_numpy(stored_like(state["surcharge"], self.replay.surcharge.numpy()))
        self.warmup_generator.set_state(torch.from_numpy(state["warmup_generator"]))
        self.generator.set_state(torch.from_numpy(state["generator"]))
        self.observation = stored_like(state["observation"], self.observation)
        self.actor.load_state_dict(state)
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

    def advance(self) -> None:
        """One step of every environment."""
        with usual_torch():
            action = self._action()
        require_finite_action(action)
        step = self._stepped(action)
        ended = step.terminated | step.truncated
        with usual_torch():
            self.replay.add(
                self.observation, action, step.reward, step.cost, step.next_observation, step.terminated, step.truncated
            )
            self.actor.follow(step.cost, ended)
        finished = self.sums.add(step.reward, step.cost, ended)
        if len(finished):
            self.finished = self.finished.join(finished)
            self.log.show(summarise(self._whole(self.finished), self.budgets, "train"))
        self.observation = step.observation
        self._observe()
        self.step += self.config.num_envs
        self.log.progress(self.step, self.updates)

    def _stepped(self, action: np.ndarray) -> EnvStep:
        """Step the environments. After a fault of theirs the learner is whole: it is saved without them, so that a resumed run begins new episodes instead
        of coming to the same fault again."""
        try:
            return self.envs.step(action)
        except (NonFiniteError, ForeignFault) as error:
            self.envs_whole = False
            raise Salvageable from error

    def learn(self) -> bool:
        """The updates that are due at this step. False when asked to stop before the last of them: a resumed run makes the others first."""
        while (due := self._owed()) > 0:
            if self.stop():
                return False
            some = min(due, AT_ONCE)
            with usual_torch():
                self.metrics = self.agent.update(self.replay, some)
            self.updates += some
            self.log.progress(self.step, self.updates)
        return True

    def _owed(self) -> int:
        config = self.config
        begun = self.step >= config.warmup
        counted = self.step - (0 if config.catch_up else config.warmup) if begun else 0
        return int(config.updates_per_step * counted) - self.updates

    def _action(self) -> np.ndarray:
        config = self.config
        if self.step < config.warmup and config.warmup_actions != "policy":
            generator, held = self.warmup_generator, self._holds()
            if held:  # what is drawn depends on its time alone: a resumed run keeps an action that is being held
                generator = torch.Generator().manual_seed(stream(config.seed, WARMUP, self.step // config.num_envs // HELD_STEPS))
            uniform = torch.rand(config.num_envs, len(self.low), generator=generator).numpy()
            return self.low + (self.high - self.low) * (uniform.round() if held else uniform)
        return self.actor.act(self.observation, "explore", self.generator)

    def _holds(self) -> bool:
        """Whether the actions of the warm-up are held now."""
        if self.config.warmup_actions != "turns":
            return self.config.warmup_actions == "held"
        turns, within = divmod(self.step // self.config.num_envs, TURN_STEPS)
        return turns % 2 == 0 or self.replay.unusual_rewards(newest=within) < RARE

    def _observe(self) -> None:
        with usual_torch():
            self.agent.observe(self._tensor(self.observation))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, device=self.device)

    def evaluate(self) -> dict[str, float] | None:
        metrics = self._evaluated()
        regular = self.config.schedule().due(self.step, self.config.eval_every)  # the one at the end is not made where the run goes on
        if metrics is not None and self.budgets and regular:
            self._charge(surcharge(metrics, self.budgets, self.config.binds))
        return metrics

    def _charge(self, found: list[float]) -> None:
        """What moves lambda counts the mean of this surcharge and the one before it, which is itself such a mean."""
        for i, (budget, new) in enumerate(zip(self.budgets, found, strict=True)):
            most = LARGEST_SURCHARGE * budget.critic
            self.replay.surcharge[i] = (self.replay.surcharge[i] + min(max(new, -most), most)) / 2

    def _evaluated(self) -> dict[str, float] | None:
        config, seed = self.config, stream(self.config.seed, EVALUATION)
        policy = at_budget(self.agent, self.budgets[0].limit if self.budgets else None, self.envs.shape)
        episodes, before = config.eval_episodes, None if config.eval_envs else self.envs.snapshot()
        if before is None:
            most = max(config.eval_envs, 1)
            return evaluate(policy, replace(self.envs.setup, cut=None), self.budgets, episodes, seed, self.device, self.stop, most)
        self.envs_before = before  # what a checkpoint holds when this fails
        inner = self.envs.envs if isinstance(self.envs, DialledEnvs) else self.envs
        metrics = evaluate_in(inner, policy, self.budgets, episodes, seed, self.device, self.stop)
        self.envs_before = None
        if not self.envs.restore(before):
            self._new_episodes()
        return metrics

    def evaluation_words(self, metrics: dict[str, float]) -> str:
        words = evaluation_in_words(metrics, self.budgets, self.config.binds)
        blind = blindness(metrics, self.budgets, "eval/stochastic")
        return f"{words}; {blind}" if blind else words

    def merit(self, metrics: dict[str, float]) -> float | None:
        """The return; None over the budget."""
        return None if within_budget(metrics, self.budgets, self.config.binds) is False else ranked_return(metrics, self.config.binds)

    def training_metrics(self, regular: bool) -> dict[str, float]:
        metrics = {f"train/{name}": value for name, value in self._learnt().items()}
        if len(self.finished):
            metrics |= summarise(self._whole(self.finished), self.budgets, "train")
        metrics |= {"train/episodes": float(len(self.finished)), "train/updates": float(self.updates)}
        if regular:
            self.finished = Episodes.none(len(self.budgets))
        return metrics

    def _learnt(self) -> dict[str, float]:
        """What the last update says of itself, as numbers."""
        with usual_torch():
            return {name: float(value) for name, value in self.metrics.items()}

    def _whole(self, episodes: Episodes) -> Episodes:
        """Cut episodes as whole ones that go on like them: sums grow by the number of times that they fit into one."""
        cut, horizon = self.envs.setup.cut, self.envs.spec.horizon or self.envs.setup.longest
        if cut is None or horizon is None:
            return episodes
        times = horizon / cut
        return Episodes(episodes.returns * times, episodes.costs * times, episodes.discounted_costs, episodes.lengths)

    def state(self) -> Parts:
        state = {
            "updates": self.updates,
            "metrics": self._learnt(),
            "sums": self.sums.state_dict(),
            "finished": self.finished._asdict(),
            "surcharge": self.replay.surcharge.numpy().copy(),
            "observation": self.observation,
            "warmup_generator": self.warmup_generator.get_state().numpy(),
            "generator": self.generator.get_state().cpu().numpy(),
            "envs": (self.envs_before or self.envs.snapshot()) if self.envs_whole else None,
            **self.actor.state_dict(),
        }
        with usual_torch():
            return Parts(self.agent.state_dict(), self.replay.state_dict(), state)
