"""CAL: conservative augmented Lagrangian (Wu et al., "Off-Policy Primal-Dual Safe Reinforcement Learning", ICLR 2024, arXiv 2401.14758)."""

from __future__ import annotations

from torch import Tensor

from saddlepoint.baselines.config import CALConfig
from saddlepoint.baselines.constrained import Constrained
from saddlepoint.constrained.lagrangian import effective_multiplier


class CAL(Constrained[CALConfig]):
    """SAC with two changes to SAC-Lag, which the paper calls conservative policy optimisation and local policy convexification.

    1. Cost is estimated from above,  Qc_UCB = mean_m Qc_m + k std_m Qc_m  over an ensemble (``risk_std``), for the policy and for lambda.
    2. The policy descends an augmented Lagrangian of weight c (``rho``). Its gradient is that of SAC-Lag with lambda rectified,
       lambda - min(lambda, c mean[h - Qc_UCB]) = [lambda + c (mean[Qc_UCB] - h)]_+,  one number a batch: the constraint is on the mean.

    ALGD's penalty has the same slope, but at each state and action by itself. The means are over the policy's actions, as ALGD's are; the released
    program takes replayed ones (``multiplier_actions``, preset ``released``), and 10 to 20 updates a step (the loop's --updates-per-step).
    """

    system = "cal"

    def weight(self, multiplier: Tensor, violation: Tensor) -> Tensor:
        return effective_multiplier(violation, multiplier, self.config.rho)
