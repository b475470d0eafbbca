"""ALGD's options. The departures from the released arithmetic are named options here; ``PARITY`` turns them back."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from saddlepoint.algd.energy import ENERGIES
from saddlepoint.constrained.lagrangian import MultiplierRule
from saddlepoint.diffusion.network import SCORE_NETWORKS
from saddlepoint.nn.choice import choose
from saddlepoint.nn.critics import require_critic
from saddlepoint.nn.encoding import Encoding
from saddlepoint.options import (
    MOST_LEVELS,
    Effect,
    refuse_idle,
    require_at_least,
    require_finite,
    require_layers,
    require_not_negative,
    require_positive,
    require_shares,
)
from saddlepoint.types import UserError


@dataclass(frozen=True)
class ALGDConfig:
    """Augmented-Lagrangian-guided diffusion (arXiv 2602.02924). Numbers in brackets are the deviations of the release (docs/deviations.md)."""

    # --- the energy
    energy: str = "relative"
    """what guides the denoising: ``augmented``, the augmented Lagrangian; ``relative``, the same with rho counted in lambda; ``plain``, the ordinary
    one (the paper's unstable case); ``none``, reward alone; or ``module:name``, a function of your own (``saddlepoint.algd.energy``)"""
    rho: float = 0.3
    """penalty weight of the augmented Lagrangian"""
    risk_std: float = 0.0
    """k in the risk R = mean + k * std of the cost critics"""

    # --- the diffusion
    steps: int = 5
    """diffusion steps K"""
    schedule: Literal["ve", "vp"] = "ve"
    """variance exploding or variance preserving"""
    sigma_min: float = 0.1
    """smallest noise level, also the noise that the last step keeps when there is an entropy bonus (released: 0.01, whose path-entropy bound is loose by
    0.6 to 2.3 nats a dimension at K = 5; at 0.1 it is loose by 0.2 to 0.6)"""
    sigma_max: float = 1.0
    """largest noise level of a VE schedule; a VP schedule that reaches its prior ends near 1"""
    vp_betas: Literal["reaching", "released"] = "reaching"
    """VP noise: ``reaching`` ends at its N(0, I) prior; ``released`` is linear from ``beta_first`` to ``beta_last`` and ends at alpha_bar 0.95 [4]"""
    beta_first: float = 1e-4
    """first beta of ``released``"""
    beta_last: float = 0.02
    """last beta of ``released``"""
    step_noise: Literal["ancestral", "euler"] = "ancestral"
    """noise of a reverse step: the posterior's, or the released Euler-Maruyama one, which keeps the behaviour policy nearly random"""
    noise_memory: float = 10.0
    """steps of an episode that the chain's noise is remembered for, at most a twentieth of an episode: a policy with several good actions then keeps to one
    of them instead of dithering between them. m steps are a correlation of 1 - 1/m from step to step; 1 (released) draws all noise anew"""
    prediction: Literal["score", "noise", "clean", "guided"] | None = None
    """what the network's output means: the score itself (released VE), score = -output/sigma, score = (alpha*output - x)/sigma^2, or the
    released DDPM: an untrained noise head plus a unit-normalised score as guidance [3, 5]. None: ``noise`` with VE, ``clean`` with VP, where the noise at
    the first step, with alpha 0.1, tells of the action with ten times its error (docs/deviations.md has both measured)"""
    guidance: float = 0.05
    """weight of the score in ``guided``"""
    score_space: Literal["latent", "action"] = "latent"
    """where the score lives: in the latent with the tanh Jacobian, or (released) taken at the action and added to the latent [6]"""
    entropy: Literal["fixed", "tuned", "none"] = "fixed"
    """the temperature's hold on the policy's noise: a path-entropy bonus with beta fixed, so that noise falls as the policy earns; with beta tuned to
    ``target_entropy``, so that it does not; or none (released)"""
    beta: float = 5e-4
    """temperature of pi ~ exp(-L_A / beta), in units of reward (``reward_unit``); the start value when tuned"""
    target_entropy: float = -0.8
    """wanted path entropy per action dimension, in nats, for actions scaled to [-1, 1] (a Gaussian of std 0.11 has -0.8)"""

    # --- the score target
    proposals: int = 4
    """Monte-Carlo proposals N of the score target"""
    score_form: Literal["gradient", "mean"] = "gradient"
    """form of the Monte-Carlo score"""
    score_weight: float = 0.1
    """weight of the score loss beside the mean energy of the chain's actions"""
    score_loss_scale: Literal["energy", "one"] = "energy"
    """square errors of the score are multiplied by beta * sigma_tau^2, which puts them in the units of the energy beside them and lets all levels
    weigh alike, or by one (released)"""
    score_pairing: Literal["before", "after"] = "before"
    """the latent paired with step tau: the one the step starts from, or (released) the one it ends at [8]"""
    detach_point: bool = True
    """keep the score loss from training the chain through a_tau [10]"""
    clip_proposals: bool = True
    """keep action-space proposals inside the action box [9]"""

    # --- the multiplier
    multiplier_rule: MultiplierRule = "exponential"
    """how lambda moves: see saddlepoint.constrained.lagrangian.MultiplierUpdate"""
    cost_unit: Literal["budget", "one"] = "budget"
    """what lambda and rho count costs in: one, or budgets, so that lambda is the price of a whole one; then the same lambda, rho and rate mean the same
    for limits of any size, while costs that are large all the time beside a large budget (speed) want a larger lambda"""
    multiplier: float = 0.01
    """lambda at the start"""
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
    multiplier_actions: Literal["policy", "replay", "recent"] = "recent"
    """what moves lambda: the risk of the policy's actions at replayed states, (released) of replayed ones [13], or the measured cost of recent episodes"""
    recent_steps: int = 1500
    """environment steps that ``recent`` looks back; no less than an episode of each environment"""

    budget_share: float = 0.8
    """share of the budget that lambda aims at: below 1 it leaves room for what an evaluation costs more or less than the episodes before it"""
    largest_violation: float | None = 1.0
    """a violation moves lambda as if it were at most this many budgets (None, or a budget of 0: as it is): what is left unspent is at most one
    budget, so that lambda, driven up by the first clumsy episodes, would else stay up long after them"""

    # --- critics and learning
    cost_members: int = 2
    """members of each constraint's cost ensemble"""
    critic_hidden: tuple[int, ...] = (256, 256)
    """hidden layers of the critics"""
    encoding: Encoding = "objects"
    """what the networks see of an observation: itself; with ``zoom`` also the outer tenth of each entry's range at either end, tenfold; with ``objects``
    the same, but of each ring of lidar readings that the environment declares its two nearest objects"""
    critic_network: str = "layer_norm"
    """kind of the critics: ``mlp``, ``layer_norm``, ``residual`` (SimBa), or ``module:name``, a class of your own (``saddlepoint.nn.critics``).
    The first two, with scalar values, run in C++ where the processor has AVX2, the others in PyTorch"""
    critic_values: Literal["scalar", "two_hot"] = "scalar"
    """how critics represent a value: a number fitted by squared error, or a categorical over symlog values fitted by cross-entropy"""
    score_network: str = "mlp"
    """kind of the score network: ``mlp``, or ``module:name``, a class of your own (``saddlepoint.diffusion.network``)"""
    policy_hidden: tuple[int, ...] = (128, 128, 128)
    """hidden layers of the score network"""
    time_embedding: int = 16
    """width of the learned embedding of the step"""
    reward_unit: Literal["value", "random", "one"] = "value"
    """what rewards are counted in: their mean size in the replay at the first update, made by random actions (unless --warmup-actions policy); with
    ``value`` the critics see them so, and beta, lambda and rho weigh them against the running size of the critics' values, so that lambda is the price of one
    unit of cost in shares of all that is earned; or one (released). Raw rewards differ a hundredfold
    between tasks (0.57 a step in HalfCheetah, 0.003 in PointGoal1)"""
    gamma: float = 0.99
    """discount of rewards"""
    cost_gamma: float = 0.97
    """discount of costs"""
    nonnegative_costs: bool = True
    """bootstrap the cost critics with no less than 0, which no sum of costs is below: a policy that seeks low estimates finds those that are too low"""
    cost_bootstrap: Literal["own", "pair", "largest"] = "largest"
    """what a cost critic bootstraps with at the next state: its own target, the larger of two of its constraint's members (in the mean over all pairs), or
    the largest of all. The last two mirror the rewards' smallest of two: an action chosen for a low estimate is one whose estimate is too low"""
    cost_steps: int = 5
    """steps of costs as they were paid, before the cost critics bootstrap: true costs travel at once, and a policy that seeks low estimates finds fewer"""
    costly_share: float = 0.3
    """share of a batch that is drawn from the transitions that pay within ``cost_steps`` steps: hazards are met in a few of a hundred steps"""
    cost_through_termination: bool = False
    """let the cost critic bootstrap through the end of the task (the released navigation tasks do [15])"""
    policy_learning_rate: float = 3e-4
    """Adam's step for the policy"""
    critic_learning_rate: float = 1e-3
    """Adam's step for the reward critics"""
    cost_learning_rate: float = 4e-4
    """Adam's step for the cost critics: smaller, because costs are rare and their critics soon learn single layouts by heart"""
    temperature_rate: float = 1e-3
    """Adam's step for log beta when tuned"""
    batch_size: int = 128
    """transitions an update"""
    polyak: float = 0.02
    """share of the online critics that enters the targets"""
    cost_polyak: float | None = None
    """the same for the cost critics (None: as --polyak). A cost estimate closes its gap in some 1/(share * (1 - cost_gamma)) updates: 20,000 with 0.005
    and 0.99"""
    target_every: int = 1
    """updates between two Polyak steps"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of an update's matrix products: ``auto`` takes bfloat16 only where the processor was measured to be faster with it; acting is in float32"""

    # --- acting without noise
    evaluation: Literal["zero", "best_of_n"] = "zero"
    """deterministic action: the noise-free chain from latent 0 (released), or the best by energy of ``evaluation_samples`` samples"""
    evaluation_samples: int = 16
    """samples of ``best_of_n``"""

    ACTING: ClassVar[frozenset[str]] = frozenset({"evaluation", "evaluation_samples", "noise_memory"})
    """settings of acting alone, which a trained policy may change"""

    def validate(self) -> None:
        """Raise ``UserError`` for values or combinations that cannot work."""
        positive = (
            "rho", "steps", "sigma_min", "sigma_max", "beta", "proposals", "cost_members", "time_embedding", "batch_size",
            "policy_learning_rate", "critic_learning_rate", "cost_learning_rate", "temperature_rate", "multiplier_rate",
            "multiplier_interval", "recent_steps", "cost_steps", "budget_share", "largest_violation", "target_every", "evaluation_samples",
        )  # fmt: skip
        require_positive(self, positive)
        if self.steps > MOST_LEVELS:
            raise UserError(f"--steps must be at most {MOST_LEVELS:,} diffusion steps, not {self.steps}.")
        require_finite(self)
        if self.entropy == "tuned" and self.target_entropy >= math.log(2):
            raise UserError(
                f"--target-entropy {self.target_entropy} cannot be reached: no policy on [-1, 1] has more than log 2 = 0.69 a dimension."
            )
        require_shares(self, ("gamma", "cost_gamma", "polyak", "cost_polyak"))
        require_layers(self, ("critic_hidden", "policy_hidden"))
        require_at_least(self, {"noise_memory": 1})
        if not 0 <= self.costly_share <= 1:
            raise UserError(f"--costly-share must lie in [0, 1], not {self.costly_share}.")
        require_not_negative(self, ("multiplier", "score_weight", "risk_std", "proportional", "derivative", "smoothing"))
        choose(self.energy, ENERGIES, "--energy")
        choose(self.score_network, SCORE_NETWORKS, "--score-network")
        require_critic(self.critic_network, self.critic_values)
        if self.smoothing >= 1:
            raise UserError(f"--smoothing must be below 1, not {self.smoothing}: at 1 the violation is never seen.")
        if self.multiplier_rule in ("log_adam", "exponential") and self.multiplier == 0:
            raise UserError(
                f"--multiplier-rule {self.multiplier_rule} moves log lambda and cannot start from --multiplier 0: give a positive one."
            )
        if self.schedule == "ve" and (
            self.sigma_min > self.sigma_max or (self.sigma_min == self.sigma_max and self.steps > 1)
        ):
            raise UserError(
                f"--sigma-min {self.sigma_min} is not below --sigma-max {self.sigma_max}: a schedule runs from clean to noisy."
            )
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise UserError(
                f"--beta-first {self.beta_first} and --beta-last {self.beta_last} must satisfy 0 < first <= last < 1."
            )
        if self.schedule == "vp" and self.vp_betas == "reaching" and self.sigma_min >= 0.995:
            raise UserError(
                f"--sigma-min {self.sigma_min} leaves no room below the VP prior's 0.995: choose a smaller one."
            )
        if self.prediction == "guided" and not (
            self.schedule == "vp" and self.vp_betas == "released" and self.entropy == "none"
        ):
            raise UserError(
                "--prediction guided is the released DDPM chain: it needs --schedule vp --vp-betas released --entropy none."
            )
        if self.prediction != "guided" and self.schedule == "vp" and self.step_noise == "euler":
            raise UserError("--step-noise euler is defined for --schedule ve only: use ancestral.")
        if self.entropy != "none" and self.step_noise == "euler":
            raise UserError(
                "--step-noise euler ends in a step without noise, whose path entropy is not defined: use --entropy none or ancestral."
            )
        if self.score_space == "latent" and self.prediction == "guided":
            raise UserError("--prediction guided takes its score at the action: use --score-space action.")

    def refuse_idle(self, given: Collection[str]) -> None:
        """Raise ``UserError`` when one of the options ``given`` has no effect beside the others."""
        refuse_idle(self, given, dict.fromkeys(OF_PENALTY, PENALTY), EFFECTIVE_WITH)

    def refuse_acting(self, trained: ALGDConfig, given: Collection[str]) -> None:
        """Raise ``UserError`` when an agent that was ``trained`` otherwise cannot act so, or one of the settings ``given`` does nothing."""
        self.refuse_idle(given)


SCORE: Effect = (lambda c: c.score_weight > 0, "a --score-weight above 0")
PENALTY: Effect = (lambda c: c.energy != "none", "an --energy other than none")
OF_PENALTY = (
    "cost_unit", "multiplier", "budget_share", "multiplier_rule", "multiplier_rate", "multiplier_interval", "multiplier_actions", "recent_steps",
    "largest_violation", "proportional", "derivative", "smoothing", "risk_std",
)  # fmt: skip
"""what an energy without a penalty has no use for"""
PID: Effect = (lambda c: c.multiplier_rule == "pid", "--multiplier-rule pid")

EFFECTIVE_WITH: dict[str, Effect] = {
    "rho": (lambda c: c.energy in ("augmented", "relative") or c.multiplier_rule == "augmented", "--energy augmented or relative"),
    "guidance": (lambda c: c.prediction == "guided", "--prediction guided"),
    "step_noise": (lambda c: c.prediction != "guided", "a --prediction other than guided"),
    "vp_betas": (lambda c: c.schedule == "vp", "--schedule vp"),
    "sigma_max": (lambda c: c.schedule == "ve" and c.steps > 1, "--schedule ve and more than one of --steps"),
    "sigma_min": (lambda c: c.schedule == "ve" or c.vp_betas == "reaching", "--schedule ve or --vp-betas reaching"),
    "beta_first": (lambda c: c.schedule == "vp" and c.vp_betas == "released", "--schedule vp --vp-betas released"),
    "beta_last": (lambda c: c.schedule == "vp" and c.vp_betas == "released", "--schedule vp --vp-betas released"),
    "target_entropy": (lambda c: c.entropy == "tuned", "--entropy tuned"),
    "temperature_rate": (lambda c: c.entropy == "tuned", "--entropy tuned"),
    "proposals": SCORE,
    "score_form": SCORE,
    "score_loss_scale": SCORE,
    "score_pairing": SCORE,
    "detach_point": (lambda c: SCORE[0](c) and (c.steps > 1 or c.score_pairing == "after"), f"{SCORE[1]}, and more than one of --steps"),
    "clip_proposals": (lambda c: c.score_space == "action", "--score-space action"),
    "multiplier_rate": (lambda c: c.multiplier_rule != "augmented", "a --multiplier-rule other than augmented"),
    "proportional": (lambda c: c.multiplier_rule in ("pid", "exponential"), "--multiplier-rule exponential or pid"),
    "derivative": PID,
    "smoothing": PID,
    "recent_steps": (lambda c: c.multiplier_actions == "recent", "--multiplier-actions recent"),
    "multiplier_interval": (lambda c: c.multiplier_rule == "augmented", "--multiplier-rule augmented"),
    "evaluation_samples": (lambda c: c.evaluation == "best_of_n", "--evaluation best_of_n"),
    "risk_std": (lambda c: c.cost_members > 1, "more than one of --cost-members"),
    "cost_bootstrap": (lambda c: c.cost_members > 1, "more than one of --cost-members"),
}
"""options that act only beside others: when, and in words"""


EARLIER = ALGDConfig(
    energy="augmented", rho=1.0, risk_std=1.0, beta=0.1, encoding="raw", critic_network="mlp", cost_members=4, reward_unit="random", cost_unit="one",
    multiplier_rule="dual_ascent", multiplier=0.6931, multiplier_rate=3e-4, proportional=0.05, recent_steps=2000, budget_share=1.0, largest_violation=2.0,
    cost_steps=1, costly_share=0.0, cost_gamma=0.99, batch_size=256, noise_memory=1.0, polyak=0.005, critic_learning_rate=1e-3, cost_learning_rate=1e-3,
)  # fmt: skip
"""The default of the results that docs/results.md and docs/deviations.md had before docs/budget-lab.md."""

PARITY = replace(
    EARLIER, sigma_min=0.01, beta=1.0, critic_learning_rate=3e-4, cost_learning_rate=3e-4, target_every=2,
    step_noise="euler", prediction="score", score_space="action", entropy="none", score_loss_scale="one", score_pairing="after",
    detach_point=False, clip_proposals=False, multiplier_rule="log_adam", multiplier_actions="replay",
    nonnegative_costs=False, cost_bootstrap="own", largest_violation=None, reward_unit="one",
)  # fmt: skip
"""The released VE-SDE agent, to the fixtures' tolerance."""

PARITY_VP = replace(PARITY, schedule="vp", vp_betas="released", prediction="guided")
"""The released DDPM agent."""

PRESETS: dict[str, ALGDConfig] = {"default": ALGDConfig(), "earlier": EARLIER, "parity": PARITY, "parity-vp": PARITY_VP}
