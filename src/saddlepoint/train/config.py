"""What a training run is asked to do, whatever the system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from saddlepoint.options import require_at_least, require_episodes, require_seed
from saddlepoint.train.boards import Track, require_wandb
from saddlepoint.train.schedule import Schedule
from saddlepoint.train.verdict import Binds
from saddlepoint.types import EnvSetup, UserError, as_json

EnvSource: TypeAlias = str | Callable[..., Any]
WARMUP = 5_000
"""most steps of the warm-up where nothing says otherwise"""


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Steps are steps of single environments, summed over all of them."""

    env: EnvSource
    """environment id, such as saddlepoint/Toy-v0 (`saddlepoint envs` lists them), or module:id, or module:name of a
    class or function that makes one, or that itself in Python; with @pixels after it, observed through pictures of it"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """arguments of the environment, as name=value ... or one JSON object; max_episode_steps replaces its time limit"""
    flatten: bool = False
    """make one vector of Dict, Tuple and discrete observations, as gymnasium.wrappers.FlattenObservation does"""
    action_repeat: int = 0
    """simulator steps that each action is held for; rewards and costs are summed, and a step of the run is one such
    decision, also in budgets and --total-steps. 0 takes the task's own, mostly 1"""
    episode_steps: int = 0
    """steps after which a training episode is cut and the next one begins; evaluations play whole ones. Short ones show more layouts where each episode
    has another. 0 takes the task's own, mostly whole ones"""
    seed: int = 0
    """seeds the learner, the environments and the evaluation, each with a stream of its own"""
    total_steps: int = 100_000
    """environment steps of the whole run, rounded up to whole steps of all environments"""
    warmup_steps: int | None = None
    """steps without an update, at the start; by default 5,000, and no more than a tenth of the run"""
    warmup_actions: Literal["random", "held", "turns", "policy"] = "random"
    """actions of these steps: uniformly random; at random ends of their bounds, each kept for twenty steps, which goes further; these two by turns of 500
    steps, but held ones as long as rewards are rare; or the policy's own, which is what a run with --start-from takes"""
    catch_up: bool = False
    """make the updates of the warm-up's steps as well, all of them when it ends (as TD-MPC2 does)"""
    updates_per_step: float = 1.0
    """gradient updates an environment step (update-to-data ratio); may be a fraction"""
    num_envs: int = 1
    """environments stepped together"""
    env_processes: bool = False
    """step each environment in a process of its own"""
    normalise_observations: bool = False
    """show the learner observations of running mean 0 and variance 1; the statistics are saved, resumed, used in
    evaluation and exported"""
    replay_size: int = 1_000_000
    """transitions kept for learning"""
    eval_every: int = 5_000
    """steps between evaluations; there is always one at the end"""
    eval_episodes: int = 10
    """whole episodes of each evaluation, at least 10"""
    eval_envs: int = 10
    """environments that an evaluation makes, to play side by side; 0 evaluates in the training environments, where a
    simulator allows no second one"""
    checkpoint_every: int = 10_000
    """steps between checkpoints; there is always one at the end"""
    keep_checkpoints: int = 2
    """newest checkpoints kept; each holds the filled part of the replay"""
    budget_range: tuple[float, float] | None = None
    """lowest and highest budget of one policy that serves all between: each training episode has a budget of its own, which the policy and its critics
    are told; `evaluate --budget`, load_policy(run, budget=...) and an exported file's input `budget` then turn it. --cost-limit is where the run itself
    is evaluated. For algd"""
    binds: Binds = "both"
    """the policy that the budget binds: the sampled one, which acts in training; the noise-free one, which is usually deployed; or each of the two. best/,
    the verdict on an evaluation and StopWhenSafe go by it, and lambda, where recent episodes move it: what the noise-free policy cost more than the
    sampled one in evaluations is added to what training episodes cost (not with --budget-range)"""
    log_every: int = 1_000
    """steps between lines of training metrics"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the learner lives; auto takes CUDA if there is one, which has not been tested on a GPU yet"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""
    compile: Literal["auto", "on", "off"] = "auto"
    """compile the update; auto does so where that pays: on a CPU, where it is C++ that takes about a minute to build once, from a thousand updates on where
    the processor has AVX2; on CUDA (not tested on a GPU yet) in long runs"""
    track: Track = "none"
    """a board beside TensorBoard: wandb is Weights & Biases (pip install saddlepoint[wandb]; WANDB_MODE=offline keeps it on the disk)"""
    out: Path | None = None
    """run folder, which must not hold a run yet; by default a new one under runs/"""
    quiet: bool = False
    """plain log lines instead of the live progress line"""

    def validate(self) -> None:
        """Raises ``UserError`` for a value or a combination that cannot work."""
        one = ("total_steps", "num_envs", "replay_size", "eval_every", "checkpoint_every", "keep_checkpoints", "log_every")
        require_at_least(self, dict.fromkeys(one, 1) | dict.fromkeys(("threads", "eval_envs", "episode_steps"), 0))
        require_seed(self.seed)
        require_episodes(self.eval_episodes, 10, "--eval-episodes")
        if not 0 < self.updates_per_step < float("inf"):
            raise UserError(f"--updates-per-step must be a finite number above 0, not {self.updates_per_step}.")
        if self.warmup < 0:
            raise UserError(f"--warmup-steps must be at least 0, not {self.warmup}.")
        if self.warmup >= self.total_steps:
            raise UserError(
                f"--warmup-steps {self.warmup} leaves nothing of --total-steps {self.total_steps} to learn in:"
                " lower the first or raise the second."
            )
        if self.catch_up and not self.warmup:
            raise UserError("--catch-up does nothing with --warmup-steps 0, which leaves nothing to make up for: leave it out.")
        if self.replay_size < self.num_envs:
            raise UserError(f"--replay-size {self.replay_size} is less than one step of --num-envs: raise it.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto.")

        if self.track == "wandb":
            require_wandb()
        self.setup()

    def setup(self) -> EnvSetup:
        """How the run's environments are made. Raises ``UserError``."""
        kwargs = as_json("env_kwargs", self.env_kwargs)
        return EnvSetup(self.env, kwargs, self.flatten, self.action_repeat)

    @property
    def warmup(self) -> int:
        """``warmup_steps`` as a number."""
        return min(WARMUP, self.total_steps // 10) if self.warmup_steps is None else self.warmup_steps

    def resolve_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def schedule(self) -> Schedule:
        """When things are due."""
        return Schedule(self.total_steps, self.log_every, self.eval_every, self.checkpoint_every, self.keep_checkpoints, stride=self.num_envs)
