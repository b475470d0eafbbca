"""One reverse step as a Gaussian, and whole reverse processes as tables of its coefficients."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from saddlepoint.diffusion.schedule import Schedule
from saddlepoint.nn.ops import ReverseTable

PredictionType = Literal["epsilon", "v_prediction", "sample"]
FlowSDE = Literal["ddim", "flow"]


class Gaussian(NamedTuple):
    """N(mean, std^2 I), elementwise. ``std`` broadcasts against ``mean``; 0 means the mean itself."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, noise ~ N(0, I) of the mean's shape."""
        return self.mean + self.std * noise

    def log_prob(self, point: Tensor) -> Tensor:
        """log N(point; mean, std^2), elementwise: the caller names the reduction. Same shape as ``point``."""
        return -0.5 * ((point - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)


def ddim_kernel(
    model_output: Tensor,
    sample: Tensor,
    alpha_bar_t: Tensor | float,
    alpha_bar_prev: Tensor | float,
    eta: float,
    prediction_type: PredictionType = "epsilon",
) -> Gaussian:
    """p(x_{t-1} | x_t) of stochastic DDIM (Song et al. 2021, Eq. 12 and 16); no clipping. ``sample`` and ``model_output``
    are (batch, ...); the alpha_bars are numbers, (batch,), or anything that broadcasts against ``sample``.

    x0, eps from the model's output; std = eta * sqrt((1 - ab_prev) / (1 - ab_t) * (1 - ab_t / ab_prev));
    mean = sqrt(ab_prev) * x0 + sqrt(1 - ab_prev - std^2) * eps.
    """
    ab_t, ab_prev = _per_row(alpha_bar_t, sample), _per_row(alpha_bar_prev, sample)
    alpha, sigma = ab_t.sqrt(), (1 - ab_t).sqrt()
    if prediction_type == "epsilon":
        epsilon = model_output
        clean = (sample - sigma * epsilon) / alpha
    elif prediction_type == "v_prediction":
        clean = alpha * sample - sigma * model_output
        epsilon = alpha * model_output + sigma * sample
    elif prediction_type == "sample":
        clean = model_output
        epsilon = (sample - alpha * clean) / sigma
    else:
        raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, not {prediction_type!r}")
    variance = eta**2 * (1 - ab_prev) / (1 - ab_t) * (1 - ab_t / ab_prev)
    mean = ab_prev.sqrt() * clean + (1 - ab_prev - variance).clamp(min=0).sqrt() * epsilon
    return Gaussian(mean, variance.clamp(min=0).sqrt())


def flow_kernel(
    velocity: Tensor,
    sample: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    eta: Tensor | float,
    sde: FlowSDE = "ddim",
) -> Gaussian:
    """p(x_{s'} | x_s) on the straight path x_s = (1 - s) x0 + s e, for the predicted velocity v = e - x0 and s' < s. No clipping.

    ``sample`` and ``velocity`` are (batch, ...); ``sigma`` (s), ``sigma_next`` (s') and ``eta`` are numbers, (batch,), or anything that broadcasts against
    ``sample``. With x0 = x - s v and e = x + (1 - s) v:

    - ``ddim``: std = eta (s'/s) sqrt(s^2 - ((1 - s) / (1 - s'))^2 s'^2), mean = (1 - s') x0 + sqrt(s'^2 - std^2) e: the DDIM step (Song et al. 2021, Eq. 12
      and 16) of the variance-preserving image of the path. eta in [0, 1].
    - ``flow``: with dt = s' - s and q = eta sqrt(s / (1 - s)): std = q sqrt(-dt), mean = x (1 + q^2 dt / 2s) + v (1 + q^2 (1 - s) / 2s) dt (Flow-GRPO, Liu et
      al. 2025). At s = 1 the s in 1 - s of q is s', as released.

    At eta 0 both are the Euler step x + v dt. Raises ``ValueError`` for another ``sde``.
    """
    s, following, noise = (_per_row(value, sample) for value in (sigma, sigma_next, eta))
    if sde == "ddim":
        clean, epsilon = sample - s * velocity, sample + (1 - s) * velocity
        ratio = (1 - s) / (1 - following)
        std = noise * following / s * (s.square() - (ratio * following).square()).clamp(min=0).sqrt()
        mean = (1 - following) * clean + (following.square() - std.square()).clamp(min=0).sqrt() * epsilon
        return Gaussian(mean, std)
    if sde == "flow":
        dt = following - s
        q2 = noise.square() * s / (1 - torch.where(s == 1, following, s))
        mean = sample * (1 + q2 * dt / (2 * s)) + velocity * (1 + q2 * (1 - s) / (2 * s)) * dt
        return Gaussian(mean, (q2 * -dt).sqrt())
    raise ValueError(f"sde must be ddim or flow, not {sde!r}")


def _per_row(value: Tensor | float, sample: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=sample.dtype, device=sample.device)
    return value.view(-1, *[1] * (sample.ndim - 1)) if value.ndim == 1 else value


class ReverseProcess(NamedTuple):
    """A reverse chain as data: x_{k-1} ~ N(keep_k x_k + drift_k score + denoise_k eps_hat, std_k^2), for k = steps-1 .. 0.

    ``score`` is the network's estimate of grad log p(x_k), ``eps_hat`` a noise prediction (only where ``denoise`` is not 0).
    All have an entry for each step; ``start`` is the std of the first latent.
    """

    keep: tuple[float, ...]
    drift: tuple[float, ...]
    denoise: tuple[float, ...]
    std: tuple[float, ...]
    start: float

    @classmethod
    def from_tables(cls, keep: Tensor, drift: Tensor, denoise: Tensor, std: Tensor, start: float) -> ReverseProcess:
        """From tensors (steps,)."""
        return cls(tuple(keep.tolist()), tuple(drift.tolist()), tuple(denoise.tolist()), tuple(std.tolist()), start)

    @property
    def steps(self) -> int:
        return len(self.keep)

    def kernel(self, k: int, x: Tensor, score: Tensor, eps_hat: Tensor | None = None) -> Gaussian:
        """The Gaussian of step k; ``x``, ``score``, ``eps_hat`` are (..., dim)."""
        mean = self.keep[k] * x + self.drift[k] * score
        return Gaussian(mean if eps_hat is None else mean + self.denoise[k] * eps_hat, x.new_tensor(self.std[k]))

    @property
    def table(self) -> ReverseTable:
        """The coefficients of a chain without a noise prediction."""
        return ReverseTable(self.keep, self.drift, self.std)

    def of_output(self, gain: tuple[float, ...], shift: tuple[float, ...]) -> ReverseProcess:
        """The same chain where ``score`` stands for a network's output and the score is gain_k * output + shift_k * x_k."""
        keep = tuple(keep + drift * s for keep, drift, s in zip(self.keep, self.drift, shift))
        return self._replace(keep=keep, drift=tuple(drift * g for drift, g in zip(self.drift, gain)))


def euler_reverse(schedule: Schedule) -> ReverseProcess:
    """Euler-Maruyama on the VE reverse SDE: x + dsigma^2 * score + sqrt(dsigma^2) * eps, no noise at k = 0.  ALGD as released."""
    step = schedule.delta_sigma2.clamp(min=1e-8)
    std = step.sqrt()
    std[0] = 0
    return ReverseProcess.from_tables(torch.ones_like(step), step, torch.zeros_like(step), std, float(schedule.sigma[-1]))


def ancestral_reverse(schedule: Schedule, final_std: float = 0.0) -> ReverseProcess:
    """The posterior q(x_{k-1} | x_k, x_0) at x_0 = (x_k + sigma_k^2 score) / alpha_k, for VE and VP alike (Ho et al. 2020, Eq. 6-7).

    With r = alpha_k / alpha_{k-1} and v = sigma_k^2 - r^2 sigma_{k-1}^2 (the variance the forward step adds):
    mean = x_k / r + (v / r) * score, std = sqrt(v) * sigma_{k-1} / sigma_k. The last step's std is ``final_std`` (the posterior's own is 0).
    """
    previous = schedule.previous()
    ratio = schedule.alpha / previous.alpha
    added = schedule.sigma.square() - ratio.square() * previous.sigma.square()
    std = added.sqrt() * previous.sigma / schedule.sigma
    std[0] = final_std
    return ReverseProcess.from_tables(1 / ratio, added / ratio, torch.zeros_like(std), std, float(schedule.sigma[-1]))


def guided_ddpm_reverse(betas: Tensor, guidance: float, epsilon: float = 1e-8) -> ReverseProcess:
    """The released "DDPM" chain: the DDPM posterior mean from a noise prediction, plus ``guidance`` * unit score at every step.

    ``epsilon`` stands where the release puts it; it matters, because 1 - alpha_bar_0 is only 1e-4. The first latent is N(0, I).
    """
    betas = torch.as_tensor(betas, dtype=torch.float64)
    alpha = 1 - betas
    alpha_bar = torch.cumprod(alpha, dim=0)
    previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    noise = 1 - alpha_bar + epsilon
    clean_weight = previous.sqrt() * betas / noise
    root = (alpha_bar + epsilon).sqrt()
    keep = alpha.sqrt() * (1 - previous) / noise + clean_weight / root
    denoise = -clean_weight * (1 - alpha_bar).sqrt() / root
    std = (betas * (1 - previous) / noise + epsilon).sqrt()
    std[0] = 0
    return ReverseProcess.from_tables(keep, torch.full_like(betas, guidance), denoise, std, 1.0)
