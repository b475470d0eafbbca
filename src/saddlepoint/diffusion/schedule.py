"""Noise schedules as data: alpha and sigma of  a_tau = alpha_tau * a_0 + sigma_tau * eps,  eps ~ N(0, I)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Schedule(NamedTuple):
    """Marginals of a noising process at levels tau = 0 .. steps-1, from nearly clean to noisiest. Both (steps,), float64."""

    alpha: Tensor
    sigma: Tensor

    @property
    def steps(self) -> int:
        return len(self.sigma)

    @property
    def alpha_bar(self) -> Tensor:
        """alpha^2: the share of the signal's variance that is left, for variance-preserving schedules."""
        return self.alpha.square()

    def previous(self) -> Schedule:
        """The levels one step cleaner: level tau-1 at index tau, and the clean sample (alpha 1, sigma 0) at index 0."""
        one, zero = self.alpha.new_ones(1), self.sigma.new_zeros(1)
        return Schedule(torch.cat([one, self.alpha[:-1]]), torch.cat([zero, self.sigma[:-1]]))

    @property
    def delta_sigma2(self) -> Tensor:
        """sigma_tau^2 - sigma_{tau-1}^2 with sigma_{-1} = 0: the variance that a variance-exploding step adds."""
        return self.sigma.square() - self.previous().sigma.square()


def ve_schedule(steps: int, sigma_min: float, sigma_max: float) -> Schedule:
    """Variance exploding: alpha = 1, sigma_k = sigma_min * (sigma_max / sigma_min)^(k / (steps - 1)); sigma_min alone for one step.

    ALGD, VE variant. Raises ``ValueError`` unless 0 < sigma_min <= sigma_max and steps >= 1.
    """
    if steps < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(
            f"a VE schedule needs steps >= 1 and 0 < sigma_min <= sigma_max, not {steps}, {sigma_min}, {sigma_max}"
        )
    position = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    sigma = sigma_min * (sigma_max / sigma_min) ** position
    return Schedule(torch.ones_like(sigma), sigma)


def vp_schedule(betas: Tensor) -> Schedule:
    """Variance preserving: alpha^2 = prod_{j<=k} (1 - beta_j), sigma^2 = 1 - alpha^2 (Ho et al. 2020). ``betas`` (steps,) in (0, 1)."""
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError("a VP schedule needs a vector of betas strictly between 0 and 1")
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    return Schedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def linear_betas(steps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """beta linear from ``first`` to ``last``, both inclusive; ``first`` alone for one step. (steps,) float64."""
    return first + (last - first) * torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)


def prior_reaching_betas(steps: int, sigma_min: float = 0.02, sigma_max: float = 0.995) -> Tensor:
    """Betas whose VP schedule ends at N(0, I): log(sigma/alpha) is linear from its value at sigma_min to that at sigma_max.

    The released betas (1e-4 .. 0.02) were made for 1,000 steps: over 5 they leave alpha_bar = 0.95, while sampling starts from N(0, I).
    """
    if steps < 1 or not 0 < sigma_min <= sigma_max < 1:
        raise ValueError(
            f"a VP schedule needs steps >= 1 and 0 < sigma_min <= sigma_max < 1, not {steps}, {sigma_min}, {sigma_max}"
        )
    noise_to_signal = [s / (1 - s * s) ** 0.5 for s in (sigma_min, sigma_max)]
    ratio = ve_schedule(steps, *noise_to_signal).sigma
    alpha_bar = 1 / (1 + ratio.square())
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
