"""The baselines' options. A name means what it means in ``ALGDConfig``, so that one override fits every system of a sweep."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from saddlepoint.constrained.lagrangian import MultiplierUpdate
from saddlepoint.nn.critics import CriticValues, require_critic
from saddlepoint.nn.encoding import Encoding
from saddlepoint.options import (
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
class SACConfig:
    """Soft actor-critic without a constraint (arXiv 1812.05905). The budget only says which episodes the metrics count as violations."""

    entropy: Literal["tuned", "fixed"] = "tuned"
    """the temperature beta (SAC's alpha) follows ``target_entropy``, or stays as it is"""
    beta: float = 5e-3
    """temperature of pi ~ exp(Q / beta); the start value when tuned"""
    target_entropy: float = -1.0
    """wanted entropy per action dimension, in nats, for actions scaled to [-1, 1] (SAC's own choice)"""
    noise_memory: float = 10.0
    """steps of an episode that noise is remembered for, at most a twentieth of an episode; 1 draws it anew at every step"""
    critic_hidden: tuple[int, ...] = (256, 256)
    """hidden layers of the critics"""
    encoding: Encoding = "objects"
    """what the networks see of an observation: itself; with ``zoom`` also the outer tenth of each entry's range at either end, tenfold; with ``objects``
    the same, but of each ring of lidar readings that the environment declares its two nearest objects"""
    critic_network: str = "layer_norm"
    """kind of the critics: ``mlp``, ``layer_norm``, ``residual`` (SimBa), or ``module:name``, a class of your own (``saddlepoint.nn.critics``).
    The first two, with scalar values, run in C++ where the processor has AVX2, the others in PyTorch"""
    critic_values: CriticValues = "scalar"
    """how critics represent a value: a number fitted by squared error, or a categorical over symlog values fitted by cross-entropy"""
    policy_hidden: tuple[int, ...] = (256, 256)
    """hidden layers of the policy"""
    reward_unit: Literal["value", "random", "one"] = "value"
    """what rewards are counted in: their mean size in the replay at the first update, made by random actions; with ``value`` the critics see them so,
    and beta and lambda weigh them against the running size of the critics' values; or one"""
    gamma: float = 0.99
    """discount of rewards"""
    cost_gamma: float = 0.97
    """discount of costs: of the cost critic where there is one, and of the discounted costs that the metrics report"""
    policy_learning_rate: float = 3e-4
    """Adam's step for the policy"""
    critic_learning_rate: float = 1e-3
    """Adam's step for the reward critics"""
    temperature_rate: float = 1e-3
    """Adam's step for log beta when tuned"""
    batch_size: int = 128
    """transitions an update"""
    polyak: float = 0.02
    """share of the online critics that enters the targets"""
    target_every: int = 1
    """updates between two Polyak steps"""

    POSITIVE: ClassVar[tuple[str, ...]] = (
        "beta", "policy_learning_rate", "critic_learning_rate", "temperature_rate", "batch_size", "target_every",
    )  # fmt: skip
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ()
    SHARES: ClassVar[tuple[str, ...]] = ("gamma", "cost_gamma", "polyak")
    ACTING: ClassVar[frozenset[str]] = frozenset({"noise_memory"})
    """settings of acting alone, which a trained policy may change"""
    EFFECTIVE_WITH: ClassVar[dict[str, Effect]] = {
        "target_entropy": (lambda c: c.entropy == "tuned", "--entropy tuned"),
        "temperature_rate": (lambda c: c.entropy == "tuned", "--entropy tuned"),
    }

    @property
    def cost_steps(self) -> int:
        """SAC learns no costs, so its batches look no further than one step (``replay.Sampling``)."""
        return 1

    @property
    def costly_share(self) -> float:
        """As ``cost_steps``: every transition is drawn alike."""
        return 0.0

    def validate(self) -> None:
        """Raise ``UserError`` for values that cannot work."""
        require_finite(self)
        require_positive(self, self.POSITIVE)
        require_not_negative(self, self.NOT_NEGATIVE)
        require_shares(self, self.SHARES)
        require_layers(self, ("critic_hidden", "policy_hidden"))
        require_at_least(self, {"noise_memory": 1})
        require_critic(self.critic_network, self.critic_values)
        if self.entropy == "tuned" and self.target_entropy >= math.log(2):
            raise UserError(
                f"--target-entropy {self.target_entropy} cannot be reached: no policy on [-1, 1] has more than log 2 = 0.69 a dimension."
            )

    def refuse_idle(self, given: Collection[str]) -> None:
        """Raise ``UserError`` when one of the options ``given`` has no effect beside the others."""
        refuse_idle(self, given, self.EFFECTIVE_WITH)


@dataclass(frozen=True)
class ConstrainedConfig(SACConfig, ABC):
    """What SAC with a cost critic and a multiplier adds, whatever moves the multiplier."""

    cost_members: int = 2
    """members of each constraint's cost ensemble"""
    risk_std: float = 0.0
    """k in the risk R = mean + k * std of the cost critics"""
    cost_learning_rate: float = 4e-4
    """Adam's step for the cost critics"""
    nonnegative_costs: bool = True
    """bootstrap the cost critics with no less than 0, which no sum of costs is below"""
    cost_bootstrap: Literal["own", "pair", "largest"] = "largest"
    """what a cost critic bootstraps with: its own target, the larger of two of its constraint's members (in the mean over all pairs), or the largest"""
    cost_steps: int = 5
    """steps of costs as they were paid, before the cost critics bootstrap: true costs travel at once, and a policy that seeks low estimates finds fewer"""
    costly_share: float = 0.3
    """share of a batch that is drawn from the transitions that pay within ``cost_steps`` steps: hazards are met in a few of a hundred steps"""
    cost_through_termination: bool = False
    """let the cost critic bootstrap through the end of the task"""
    cost_unit: Literal["budget", "one"] = "budget"
    """what lambda counts costs in: one, or budgets, so that lambda is the price of a whole one"""
    multiplier: float = 0.01
    """lambda at the start"""
    multiplier_actions: Literal["policy", "replay", "recent"] = "recent"
    """what moves lambda: the risk of the policy's actions at replayed states, of replayed ones, or the measured cost of recent episodes"""
    recent_steps: int = 1500
    """environment steps that ``recent`` looks back; no less than an episode of each environment"""
    budget_share: float = 0.8
    """share of the budget that lambda aims at"""
    largest_violation: float | None = 1.0
    """a violation moves lambda as if it were at most this many budgets (None, or a budget of 0: as it is)"""
    cost_polyak: float | None = None
    """share of the online cost critics that enters their targets (None: as --polyak)"""

    POSITIVE: ClassVar[tuple[str, ...]] = (
        *SACConfig.POSITIVE, "cost_members", "cost_learning_rate", "recent_steps", "cost_steps", "budget_share",
        "largest_violation",
    )  # fmt: skip
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("risk_std", "multiplier", "costly_share")
    SHARES: ClassVar[tuple[str, ...]] = (*SACConfig.SHARES, "cost_polyak")
    EFFECTIVE_WITH: ClassVar[dict[str, Effect]] = SACConfig.EFFECTIVE_WITH | {
        "risk_std": (lambda c: c.cost_members > 1, "more than one of --cost-members"),
        "cost_bootstrap": (lambda c: c.cost_members > 1, "more than one of --cost-members"),
        "recent_steps": (lambda c: c.multiplier_actions == "recent", "--multiplier-actions recent"),
    }

    @abstractmethod
    def multiplier_update(self) -> MultiplierUpdate:
        """What moves lambda."""


@dataclass(frozen=True)
class DualConfig(ConstrainedConfig):
    """A multiplier that climbs the dual."""

    multiplier_rule: Literal["exponential", "dual_ascent", "log_adam"] = "exponential"
    """how lambda moves: see saddlepoint.constrained.lagrangian.MultiplierUpdate"""
    multiplier_rate: float = 2.5e-4
    """step size of lambda's update, and the integral gain of ``exponential``"""
    proportional: float = 0.5
    """gain of ``exponential`` on the violation"""

    POSITIVE: ClassVar[tuple[str, ...]] = (*ConstrainedConfig.POSITIVE, "multiplier_rate")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (*ConstrainedConfig.NOT_NEGATIVE, "proportional")
    EFFECTIVE_WITH: ClassVar[dict[str, Effect]] = ConstrainedConfig.EFFECTIVE_WITH | {
        "proportional": (lambda c: c.multiplier_rule == "exponential", "--multiplier-rule exponential"),
    }

    def validate(self) -> None:
        super().validate()
        if self.multiplier_rule in ("log_adam", "exponential") and self.multiplier == 0:
            raise UserError(
                f"--multiplier-rule {self.multiplier_rule} moves log lambda and cannot start from --multiplier 0: give a positive one."
            )

    def multiplier_update(self) -> MultiplierUpdate:
        return MultiplierUpdate(self.multiplier_rule, self.multiplier_rate, proportional=self.proportional)


@dataclass(frozen=True)
class SACLagConfig(DualConfig):
    """SAC whose policy pays lambda for each unit of estimated cost (Ha et al., arXiv 2002.08550)."""


@dataclass(frozen=True)
class SACPIDConfig(ConstrainedConfig):
    """SAC-Lag whose lambda is a PID controller's answer to the violation (Stooke, Achiam, Abbeel, arXiv 2007.03964)."""

    multiplier: float = 0.01
    """lambda, and the controller's integral, at the start"""
    proportional: float = 0.02
    """gain Kp on the smoothed violation"""
    integral: float = 1e-5
    """gain Ki: what each update adds to the integral for one unit of violation"""
    derivative: float = 0.02
    """gain Kd on the rise of the smoothed violation"""
    smoothing: float = 0.99
    """share of the old violation in its moving average"""

    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *ConstrainedConfig.NOT_NEGATIVE, "proportional", "integral", "derivative", "smoothing",
    )  # fmt: skip

    def validate(self) -> None:
        super().validate()
        if self.smoothing >= 1:
            raise UserError(f"--smoothing must be below 1, not {self.smoothing}: at 1 the violation is never seen.")
        if self.proportional == self.integral == self.derivative == 0:
            raise UserError("--proportional, --integral and --derivative are all 0: give the controller a gain.")

    def multiplier_update(self) -> MultiplierUpdate:
        return MultiplierUpdate(
            "pid", self.integral, proportional=self.proportional, derivative=self.derivative, smoothing=self.smoothing
        )


@dataclass(frozen=True)
class CALConfig(DualConfig):
    """Conservative augmented Lagrangian with a Gaussian policy (arXiv 2401.14758)."""

    cost_members: int = 4
    """members E of each constraint's cost ensemble"""
    risk_std: float = 0.5
    """conservatism k of the upper confidence bound mean + k * std"""
    rho: float = 0.02
    """convexity c: how strongly the violation rectifies the multiplier that the policy pays, in units of lambda (released: 10, of raw rewards and costs)"""

    POSITIVE: ClassVar[tuple[str, ...]] = (*DualConfig.POSITIVE, "rho")


EARLIER: dict[str, Any] = {
    "encoding": "raw", "critic_network": "mlp", "reward_unit": "random", "batch_size": 256, "polyak": 0.005, "beta": 0.1, "cost_gamma": 0.99,
    "critic_learning_rate": 1e-3, "noise_memory": 1.0,
}
EARLIER_CONSTRAINED: dict[str, Any] = EARLIER | {
    "cost_learning_rate": 1e-3,
    "cost_members": 1, "risk_std": 1.0, "cost_bootstrap": "own", "cost_steps": 1, "costly_share": 0.0, "cost_unit": "one", "recent_steps": 2000,
    "budget_share": 1.0, "largest_violation": None, "multiplier": 0.6931,
}
EARLIER_DUAL: dict[str, Any] = EARLIER_CONSTRAINED | {"multiplier_rule": "dual_ascent", "multiplier_rate": 3e-4, "proportional": 0.4}
"""Settings of the results that docs/results.md had before docs/budget-lab.md."""

CAL_EARLIER = replace(
    CALConfig(), **EARLIER_DUAL | {"cost_members": 4, "risk_std": 0.5, "multiplier_rule": "log_adam"}, rho=10.0, multiplier_actions="policy",
)  # fmt: skip
CAL_RELEASED = replace(
    CAL_EARLIER, beta=1.0, critic_learning_rate=3e-4, temperature_rate=3e-4, target_every=2, multiplier_actions="replay",
    nonnegative_costs=False, reward_unit="one",
)
"""Settings of the authors' released program; its update-to-data ratio of 10 to 20 is the loop's --updates-per-step."""

SAC_PRESETS: dict[str, SACConfig] = {"default": SACConfig(), "earlier": SACConfig(**EARLIER)}
SAC_LAG_PRESETS: dict[str, SACLagConfig] = {"default": SACLagConfig(), "earlier": SACLagConfig(**EARLIER_DUAL)}
SAC_PID_PRESETS: dict[str, SACPIDConfig] = {
    "default": SACPIDConfig(),
    "earlier": SACPIDConfig(**EARLIER_CONSTRAINED | {"multiplier": 0.0, "proportional": 0.05, "integral": 3e-4, "derivative": 0.05}),
}
CAL_PRESETS: dict[str, CALConfig] = {"default": CALConfig(), "earlier": CAL_EARLIER, "released": CAL_RELEASED}
