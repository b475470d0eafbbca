"""MBDPO's options. The corrections of the released program are named options here; ``PARITY`` turns them back."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from saddlepoint.constrained.lagrangian import MultiplierRule
from saddlepoint.mbdpo.idle import COST_OPTIONS, EFFECTIVE_WITH, imagines
from saddlepoint.options import MOST_LEVELS, flag, refuse_idle, require_positive, require_shares
from saddlepoint.types import UserError


@dataclass(frozen=True)
class MBDPOConfig:
    """Model-based diffusion policy optimisation (arXiv 2605.26282). Numbers in brackets are the deviations of the release (docs/deviations.md)."""

    # --- planning
    planner: Literal["denoise", "mppi", "score", "policy"] = "denoise"
    """what acts: denoising with model-based scores, MPPI (preset td-mpc2, which also takes the energy and the search's TD targets away, is TD-MPC2),
    denoising by the score network alone, or the policy prior"""
    horizon: int = 3
    """steps that are imagined, and length of the sub-sequences of an update"""
    proposals: int = 512
    """action sequences that are imagined at each denoising level, or MPPI iteration"""
    elites: int = 64
    """best proposals that are averaged; 0 averages all"""
    policy_rollouts: int = 24
    """proposals that are replaced by rollouts of the policy prior"""
    rollouts: Literal["once", "each"] = "once"
    """draw the policy rollouts once a plan, or (released) anew at each level, which is work without news [7]"""
    steps: int = 20
    """noise levels of the diffusion; all but the cleanest are visited"""
    beta_first: float = 1e-4
    """first beta of the variance-preserving schedule"""
    beta_last: float = 1e-2
    """last beta"""
    levels: Literal["betas", "geometric"] = "betas"
    """what the noise levels are: betas linear from ``beta_first`` to ``beta_last`` (released), or proposals whose spread about the plan grows by the same
    factor from level to level, from ``spread_first`` to ``spread_last``: wide enough to cross the box of actions and fine at the end [6]"""
    spread_first: float = 0.03
    """std of the proposals at the cleanest level, which is not visited, for actions scaled to [-1, 1]"""
    spread_last: float = 1.7
    """std of the proposals at the noisiest level"""
    temperature: float = 0.5
    """of the softmax over the elites' standardised values (MPPI: weights exp(temperature * (value - best)))"""
    action_noise: float = 0.05
    """std of the exploration noise on the first action of the plan, for actions scaled to [-1, 1]"""
    reverse_start: Literal["plan", "noise"] = "plan"
    """where plans are denoised from, but for deterministic ones: the last plan moved on by a step (released), or a draw of the forward process from it,
    so that what no value decides stays random and a reward that is rare can be found [6]"""
    mppi_iterations: int = 6
    """rounds of MPPI"""
    mppi_min_std: float = 0.05
    """smallest std of MPPI's proposals, also its exploration noise"""
    mppi_max_std: float = 2.0
    """largest, with which it begins"""
    acting_average: int = 0
    """updates that the weights which act look back: an exponential average of those that learn (0: act with the weights of the last update)"""
    average_acts: Literal["always", "evaluation", "never"] = "always"
    """where the averaged weights act: also while the agent explores, so that the data, and the costs that move lambda, are of the policy that is evaluated; in
    evaluation alone; or nowhere, to look at the weights of the last update"""
    shield: bool = False
    """with a cost budget: act by a plan only where its imagined cost keeps within what the episode has left of the budget; else by the best by return of all
    imagined plans that do, or the least costly where none does"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the matrix products while planning; auto: bfloat16 where the processor multiplies it in hardware and it was measured to be faster"""

    # --- the energy of behaviour
    energy_weight: float = 0.01
    """eta: how much the normalised energy shapes imagined rewards; at 0 there is no energy"""
    energy_clip: float = 5.0
    """bound of the normalised energy"""
    energy_momentum: float = 0.99
    """of the running mean and std of its logits"""
    negative_noise: float = 0.5
    """std of the noise on the policy's action that makes the noisy negative"""
    energy_pairs: Literal["aligned", "released"] = "aligned"
    """positives are the actions taken in their own states, or (released) in other samples' states, which teaches noise [1]"""

    # --- values
    gamma: float = 0.99
    """discount of rewards; TD-MPC2's rule is clip((T/5 - 1)/(T/5), 0.95, 0.995) for episodes of T steps
    (``heuristic_discount``), which each of several tasks has by its own length"""
    td_action: Literal["search", "stored", "plan", "prior"] = "search"
    """whose action the TD target values: the plan's, which is what acts, as the score network denoises it from nothing, or (``stored``) from the actions
    that were really taken from there on, or (``plan``) as a model-based search from there with --score-proposals finds it, at several times an update's cost;
    or (released) the policy prior's [5]"""
    td_levels: int = 4
    """denoising levels that these plans visit for each next state"""
    target_critics: Literal["random", "first"] = "random"
    """which two target critics' minimum is the target: drawn anew, or (released) always the first two, so that the others never enter [5]"""
    episodic: Literal["auto", "on", "off"] = "auto"
    """learn and imagine where the task ends: from the first end that is seen, always or (released default) never"""

    # --- the score network
    score_training: Literal["planner", "released"] = "planner"
    """on many states and levels, at points such as the planner visits, with errors in units of the plan; or (released) on one state, level and
    N(0, I) point an update, with errors of up to 1,400, whose gradient drowns all other losses once it is clipped [3]"""
    score_states: int = 16
    """states an update for which Monte-Carlo targets are made"""
    score_proposals: int = 64
    """proposals of each target"""

    # --- safety, for environments with a cost
    penalty: Literal["relative", "augmented"] = "relative"
    """the augmented Lagrangian of imagined costs, with rho counted in lambda or not"""
    rho: float = 0.3
    """penalty weight of the augmented Lagrangian"""
    cost_unit: Literal["budget", "one"] = "budget"
    """what lambda and rho count costs in: budgets, so that lambda is the price of a whole one, or one"""
    price_unit: Literal["value", "one"] = "value"
    """what lambda counts prices in: the running size of the critics' values, so that it is a share of all that is earned, or one"""
    budget_share: float = 0.8
    """share of the budget that lambda aims at: below 1 it leaves room for what an evaluation costs more or less than the episodes before it"""
    risk_std: float = 1.0
    """k in the risk R = mean + k * std of the cost critics"""
    cost_members: int = 4
    """members of each constraint's cost ensemble"""
    cost_gamma: float = 0.99
    """discount of costs"""
    cost_polyak: float | None = 0.05
    """share of the online cost critics that enters their targets (None: as --polyak). A cost estimate closes its gap in some 1/(share * (1 - cost_gamma))
    updates: 2,000, and 10,000 with 0.01, which left it so far below what episodes cost that lambda swung (docs/results.md)"""
    cost_weight: float = 0.1
    """weight of the losses of the cost head and the cost critics"""
    multiplier_rule: MultiplierRule = "exponential"
    """how lambda moves: see saddlepoint.constrained.lagrangian.MultiplierUpdate"""
    multiplier_actions: Literal["policy", "recent"] = "recent"
    """what moves lambda: the risk of the TD target's actions at replayed states, or the measured cost of recent episodes"""
    recent_steps: int = 1500
    """environment steps that ``recent`` looks back; no less than an episode of each environment"""
    multiplier: float = 0.01
    """lambda at the start (with --start-from, where this differs from what that run began with; else it goes on from that run's lambda)"""
    multiplier_rate: float = 2.5e-4
    """step size of lambda's update, and the integral gain of ``pid`` and ``exponential``"""
    proportional: float = 0.5
    """gain of ``pid`` on the smoothed violation, and of ``exponential`` on the violation"""
    derivative: float = 0.05
    """gain of ``pid`` on the rise of the smoothed violation"""
    smoothing: float = 0.99
    """share of the old violation in the moving average of ``pid``"""
    multiplier_interval: int = 1000
    """updates between two steps of the rule ``augmented``"""
    largest_violation: float | None = 1.0
    """a violation moves lambda as if it were at most this many budgets (None, or a budget of 0: as it is)"""

    # --- learning
    batch_size: int = 256
    """sub-sequences an update"""
    learning_rate: float = 3e-4
    """Adam's step"""
    learning_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the matrix products of learning, and then of planning; weights, norms, activations and losses stay in float32; auto: bfloat16 where that was
    measured to be faster, unless ``precision`` is float32"""
    encoder_rate: float = 0.3
    """the encoder's step as a share of it"""
    clip: float = 20.0
    """bound of the gradient's norm, for the model and for the policy prior"""
    temporal_decay: float = 0.5
    """weight of each imagined step beside the one before it"""
    consistency_weight: float = 20.0
    """weight of the latent prediction loss"""
    reward_weight: float = 0.1
    """weight of the reward loss"""
    value_weight: float = 0.1
    """weight of the value loss"""
    termination_weight: float = 1.0
    """weight of the termination loss"""
    contrastive_weight: float = 1.0
    """weight of the energy's loss"""
    score_weight: float = 1.0
    """weight of the score loss"""
    entropy_weight: float = 1e-4
    """weight of the prior's scaled entropy"""
    polyak: float = 0.01
    """share of the online critics that enters the targets, and rate of the running value scale"""
    random_shift: int = 3
    """pixels by which the pictures of an update are moved at most, each way (with --env ...@pixels); 0 leaves them"""
    leak_task_gradient: bool = False
    """let the prior's loss add to the next update of the task embedding (released) [9]"""

    # --- sizes
    encoder_layers: int = 2
    """layers of the encoder, the last included; 1 makes two, as in TD-MPC2"""
    encoder_width: int = 256
    """its hidden units"""
    encoder_channels: int = 32
    """channels of each of the four convolutions before it (with --env ...@pixels)"""
    width: int = 512
    """hidden units of all other networks, two layers each"""
    latent: int = 512
    """width of the latent state"""
    simplex: int = 8
    """entries of each simplex of the latent state"""
    critics: int = 5
    """members of the reward-value ensemble"""
    dropout: float = 0.01
    """in the first layer of the critics while they are fitted (the release also drops units in the prior's loss)"""
    bins: int = 101
    """bins of the two-hot regressions"""
    bin_limit: float = 10.0
    """last bin, in symlog units"""
    time_embedding: int = 64
    """width of the score network's embedding of the level"""
    task_embedding: int = 96
    """width of the learned embedding of the task, with several tasks"""

    @property
    def precision_of_learning(self) -> Literal["auto", "float32", "bfloat16"]:
        """``learning_precision``, of which auto stays with float32 where all of ``precision`` does."""
        return "float32" if self.learning_precision == "auto" and self.precision == "float32" else self.learning_precision

    @property
    def trains_score(self) -> bool:
        """Whether the score network is used at all; else it is not trained."""
        return self.planner == "score" or self.td_action in ("search", "stored")

    @property
    def score_elites(self) -> int:
        """Elites among ``score_proposals``: the planner's share."""
        return max(round(self.elites * self.score_proposals / self.proposals), 1) if self.elites else 0

    @property
    def score_rollouts(self) -> int:
        """Rollouts of the prior among ``score_proposals``: the planner's share."""
        return round(self.policy_rollouts * self.score_proposals / self.proposals)

    def td_search(self) -> MBDPOConfig:
        """The planner of the TD target ``plan``: denoising from a start that is given, with fewer proposals."""
        return replace(
            self, planner="denoise", td_action="plan", proposals=self.score_proposals, elites=self.score_elites, policy_rollouts=self.score_rollouts,
            rollouts="once", reverse_start="plan", shield=False,
        )  # fmt: skip

    ACTING: ClassVar[frozenset[str]] = frozenset({
        "planner", "proposals", "elites", "policy_rollouts", "rollouts", "temperature", "action_noise", "reverse_start", "mppi_iterations", "mppi_min_std",
        "mppi_max_std", "average_acts", "shield",
    })  # fmt: skip
    """settings of acting alone, which a trained policy may change"""

    def validate(self) -> None:
        """Raise ``UserError`` for values or combinations that cannot work."""
        positive = (
            "horizon", "steps", "temperature", "mppi_iterations", "mppi_min_std", "energy_clip", "td_levels", "score_states",
            "score_proposals", "rho", "budget_share", "cost_members", "multiplier_rate", "multiplier_interval", "recent_steps", "batch_size", "learning_rate",
            "encoder_rate", "clip", "temporal_decay", "encoder_layers", "encoder_width", "encoder_channels", "width", "latent", "simplex",
            "bin_limit", "time_embedding", "task_embedding",
        )  # fmt: skip
        require_positive(self, positive)
        if not 0 <= self.random_shift <= MOST_SHIFT:
            raise UserError(f"--random-shift {self.random_shift} must lie between 0 and {MOST_SHIFT} pixels.")
        for name, value in vars(self).items():
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{flag(name)} must be a finite number that is not negative, not {value}.")
        require_shares(self, ("gamma", "cost_gamma", "polyak", "cost_polyak"))
        if self.acting_average < 0:
            raise UserError(f"--acting-average {self.acting_average} must be a number of updates, or 0 for none.")
        if self.shield and not imagines(self):
            raise UserError(f"--shield checks plans that are imagined, and --planner {self.planner} imagines none: take denoise or mppi, or leave it out.")
        if self.steps > MOST_LEVELS:
            raise UserError(f"--steps must be at most {MOST_LEVELS:,} noise levels, not {self.steps}.")
        if self.steps < 2:
            raise UserError(f"--steps {self.steps} leaves no level to visit: the cleanest is not; give at least 2.")
        if self.proposals < 2 or self.score_proposals < 2:
            raise UserError("--proposals and --score-proposals must be at least 2: values are standardised among them.")
        if not 0 <= self.elites <= self.proposals:
            raise UserError(f"--elites {self.elites} must lie between 0 and --proposals {self.proposals}.")
        if not 0 <= self.policy_rollouts <= self.proposals:
            raise UserError(f"--policy-rollouts {self.policy_rollouts} must lie between 0 and --proposals {self.proposals}.")
        if self.mppi_min_std > self.mppi_max_std:
            raise UserError(f"--mppi-min-std {self.mppi_min_std} must not exceed --mppi-max-std {self.mppi_max_std}.")
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise UserError(f"--beta-first {self.beta_first} and --beta-last {self.beta_last} must satisfy 0 < first <= last < 1.")
        if not 1e-6 <= self.spread_first < self.spread_last <= 1e6:  # beyond, levels round to no noise or no signal
            raise UserError(f"--spread-first {self.spread_first} and --spread-last {self.spread_last} must satisfy 1e-6 <= first < last <= 1e6.")
        if self.largest_violation is not None and not self.largest_violation > 0:
            raise UserError(f"--largest-violation must be greater than 0, or None, not {self.largest_violation}.")
        if self.smoothing >= 1:
            raise UserError(f"--smoothing must be below 1, not {self.smoothing}: at 1 the violation is never seen.")
        if self.energy_momentum > 1 or self.dropout >= 1:
            raise UserError("--energy-momentum must be at most 1, and --dropout below 1.")
        if self.critics < 2 or self.bins < 2:
            raise UserError("--critics and --bins must be at least 2: a value averages two critics, and a code has two bins.")
        if self.latent % self.simplex:
            raise UserError(f"--latent {self.latent} must be a multiple of --simplex {self.simplex}.")
        if self.score_training == "released" and self.td_action in ("search", "stored"):
            raise UserError("--score-training released fits no plan that a TD target could use: give --td-action prior, or train it as the planner acts.")
        if self.multiplier_rule in ("log_adam", "exponential") and self.multiplier == 0:
            raise UserError(f"--multiplier-rule {self.multiplier_rule} moves log lambda and cannot start from --multiplier 0: give a positive one.")

    def refuse_idle(self, given: Collection[str]) -> None:
        """Raise ``UserError`` when one of the options ``given`` has no effect beside the others."""
        refuse_idle(self, given, EFFECTIVE_WITH)

    def refuse_acting(self, trained: MBDPOConfig, given: Collection[str]) -> None:
        """Raise ``UserError`` when an agent that was ``trained`` otherwise cannot act so, or one of the settings ``given`` changes no action."""
        if self.planner == "score" and not trained.trains_score:
            raise UserError("--planner score acts by the score network, and this agent has trained none: take another planner.")
        replace(self, td_action="prior", score_training="released").refuse_idle(given)  # what serves learning alone does nothing here

    def refuse_cost_options(self, given: Collection[str]) -> None:
        """Raise ``UserError`` when one of the options ``given`` is of costs; for what reports none."""
        for name in sorted(COST_OPTIONS & set(given)):
            raise UserError(f"{flag(name)} does nothing here: the environment reports no cost. Leave it out, or take another environment.")

    def refuse_pixel_options(self) -> None:
        """Raise ``UserError`` where an option of pictures was changed; for environments that show none."""
        for name in ("random_shift", "encoder_channels"):
            if getattr(self, name) != getattr(DEFAULT, name):
                raise UserError(f"{flag(name)} does nothing here: it needs an environment observed as pixels (--env ...@pixels). Leave it out.")


MOST_SHIFT = 16
"""a quarter of the pictures' side: beyond that a shift moves what matters out of them"""


def heuristic_discount(episode_length: float) -> float:
    """clip((T/5 - 1)/(T/5), 0.95, 0.995) for episodes of T steps (TD-MPC2)."""
    share = episode_length / 5
    return min(max((share - 1) / share, 0.95), 0.995)


DEFAULT = MBDPOConfig()
PARITY = replace(
    DEFAULT, rollouts="each", energy_pairs="released", td_action="prior", target_critics="first", episodic="off",
    score_training="released", leak_task_gradient=True, precision="float32", penalty="augmented", rho=1.0, cost_unit="one", price_unit="one",
    budget_share=1.0, multiplier_rule="dual_ascent", recent_steps=2000, multiplier=0.6931, multiplier_rate=3e-4, proportional=0.05, largest_violation=2.0,
)  # fmt: skip
"""The released agent, to the fixtures' tolerance; with a budget, the first control of lambda, which the release has not."""
SMALL = replace(
    DEFAULT, proposals=128, elites=24, policy_rollouts=12, steps=8, levels="geometric", encoder_width=128, width=128, latent=128, batch_size=128,
    score_states=8, score_proposals=32, td_levels=7,
)  # fmt: skip
"""For a laptop's CPU. Its seven visited levels spread proposals from 1.70 to 0.05 about a plan, and TD targets visit all of them: with the betas of its first
version (0.33 to 0.06, two levels for TD targets) a target's plan came no further than 0.40 from zero (docs/deviations.md)."""

PRESETS: dict[str, MBDPOConfig] = {
    "default": DEFAULT,
    "parity": PARITY,
    "small": SMALL,
    "td-mpc2": replace(DEFAULT, planner="mppi", td_action="prior", energy_weight=0.0),
    "size-1": replace(DEFAULT, width=384, latent=128, critics=2),
    "size-5": DEFAULT,
    "size-19": replace(DEFAULT, encoder_layers=3, encoder_width=1024, width=1024, latent=768),
    "size-48": replace(DEFAULT, encoder_layers=4, encoder_width=1792, width=1792, latent=768),
    "size-317": replace(DEFAULT, encoder_layers=5, encoder_width=4096, width=4096, latent=1376, critics=8),
}
"""sizes in millions of parameters are TD-MPC2's"""
PRESET_RUNS: dict[str, dict[str, Any]] = {"small": {"warmup_actions": "turns", "catch_up": True}}
"""settings of the run that go with a preset on the command line and in sweeps, where they are not given"""
