"""The denoising steps of a scheduler as tables: the noise levels at both ends of each, and the Gaussian of a step."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from saddlepoint.diffusion.kernel import FlowSDE, Gaussian, PredictionType, ddim_kernel, flow_kernel
from saddlepoint.types import UserError

LEAST_SIGNAL = 1e-6
"""alpha_bar below which a noise prediction is refused: the clean picture that follows from it is the network's error
times more than 1,000"""
KINDS = ("epsilon", "v_prediction", "sample")


class Table(Protocol):
    """The steps of a sampler, from noise to picture."""

    @property
    def timesteps(self) -> Tensor:
        """(steps,), as the network is told them."""
        ...

    @property
    def steps(self) -> int: ...

    def to(self, device: torch.device) -> Table:
        """The same on ``device``, levels in float32."""
        ...

    def left(self, k: int) -> float:
        """Standard deviation of the noise where step ``k`` ends."""
        ...

    def kernel(self, output: Tensor, x: Tensor, k: Tensor, eta: Tensor, sde: FlowSDE) -> Gaussian:
        """The Gaussian of the steps ``k`` (batch,) from the latents ``x`` (batch, ...) and the network's output;
        ``eta`` (batch,) is 0 for the ODE."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents at the levels where steps ``k`` start, and what the network should answer there."""
        ...


def _rows(values: Tensor, k: Tensor, x: Tensor) -> Tensor:
    return values[k].view(-1, *[1] * (x.ndim - 1))


class DenoisingTable(NamedTuple):
    """The steps of DDIM. All tensors (steps,)."""

    timesteps: Tensor  # int64
    alpha_bar: Tensor  # float64, where a step starts
    alpha_bar_prev: Tensor  # float64, where it ends
    prediction: PredictionType

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> DenoisingTable:
        start, end = (level.to(device, torch.float32) for level in (self.alpha_bar, self.alpha_bar_prev))
        return DenoisingTable(self.timesteps.to(device), start, end, self.prediction)

    def left(self, k: int) -> float:
        return (1 - float(self.alpha_bar_prev[k])) ** 0.5

    def kernel(self, output: Tensor, x: Tensor, k: Tensor, eta: Tensor, sde: FlowSDE) -> Gaussian:
        noise: Any = eta.view(-1, *[1] * (x.ndim - 1))  # the kernel is annotated for one number, and broadcasts
        return ddim_kernel(output, x, self.alpha_bar[k], self.alpha_bar_prev[k], noise, self.prediction)

    def noised(self, clean: Tensor, noise: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        a = _rows(self.alpha_bar, k, clean)
        x = a.sqrt() * clean + (1 - a).sqrt() * noise
        velocity = a.sqrt() * noise - (1 - a).sqrt() * clean
        return x, {"epsilon": noise, "sample": clean, "v_prediction": velocity}[self.prediction]


class FlowTable(NamedTuple):
    """The steps of a flow-matching sampler. All tensors (steps,)."""

    timesteps: Tensor  # float32, 1000 sigma
    sigma: Tensor  # float32, where a step starts
    sigma_next: Tensor  # float32, where it ends; 0 in the last

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> FlowTable:
        return FlowTable(*(values.to(device, torch.float32) for values in self))

    def left(self, k: int) -> float:
        return float(self.sigma_next[k])

    def kernel(self, output: Tensor, x: Tensor, k: Tensor, eta: Tensor, sde: FlowSDE) -> Gaussian:
        """The last step has no noise in either form: what ``flow`` adds there would stay in the picture."""
        quiet = torch.where(self.sigma_next[k] == 0, 0.0, eta)
        return flow_kernel(output, x, self.sigma[k], self.sigma_next[k], quiet, sde)

    def noised(self, clean: Tensor, noise: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        s = _rows(self.sigma, k, clean)
        return (1 - s) * clean + s * noise, noise - clean


def require_betas(settings: dict[str, Any], source: str) -> None:
    """Raises ``UserError`` for a scheduler whose steps are not those of a variance-preserving chain made of betas, or
    are not linear in the network's answer.

    ``settings`` is a scheduler's config. All settings that change what a time or a noise level means are looked at;
    those that move steps are harmless.
    """
    from diffusers.schedulers import KarrasDiffusionSchedulers

    name, kind = settings.get("_class_name", "its scheduler"), settings.get("prediction_type", "epsilon")
    where = f"{source} samples with {name}"
    made_of_betas = "beta_start" in settings or settings.get("trained_betas") is not None
    if (
        not made_of_betas
        or kind not in KINDS
        or settings.get("use_flow_sigmas")
        or settings.get("timestep_type", "discrete") != "discrete"
    ):
        raise UserError(
            f"{where} (prediction_type {kind}), whose steps have no log-probabilities:"
            " use a pipeline with a DDIM, DDPM, PNDM or another scheduler that is made of betas."
        )
    if "_class_name" in settings and name not in KarrasDiffusionSchedulers.__members__:
        raise UserError(
            f"{where}, whose steps are not those of DDIM: use a pipeline with a DDIM, DDPM, PNDM, Euler or DPM-Solver"
            " scheduler."
        )
    if settings.get("thresholding"):
        raise UserError(
            f"{where} with thresholding, which clips what the network says: set thresholding to false in its"
            " scheduler_config.json."
        )
    if settings.get("variance_type") in ("learned", "learned_range"):
        raise UserError(f"{where} with a learned variance, which DDIM has no use for: use a pipeline with a fixed one.")


def scheduler_remarks(settings: dict[str, Any]) -> list[str]:
    """Sentences on settings that are used but are rarely meant."""
    if not settings.get("rescale_betas_zero_snr"):
        return []
    found = [
        "the scheduler has zero terminal SNR: strong guidance overexposes its pictures, and guidance_rescale is not"
        " offered here, so take a lower --guidance"
    ]
    if settings.get("timestep_spacing", "leading") == "leading":
        found.append(
            "the scheduler has zero terminal SNR and timestep_spacing leading, which never starts from its last level:"
            " trailing is usually meant"
        )
    return found


def noise_schedule(settings: dict[str, Any]) -> Tensor:
    """alpha_bar of every training step, (num_train_timesteps,), from a scheduler's settings."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(settings).alphas_cumprod


def denoising_table(settings: dict[str, Any], steps: int) -> DenoisingTable:
    """DDIM's time steps and the alpha_bar at both ends of each, from a scheduler's settings.

    Raises ``UserError`` when the scheduler cannot make so many steps, or one that is learnt from has no noise at eta 1.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(settings)
    total = scheduler.config["num_train_timesteps"]
    if not 2 <= steps <= total:
        raise UserError(f"--steps {steps}: this pipeline's scheduler has from 2 to {total} steps.")
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise UserError(
            f"--steps {steps} is no number of steps of this pipeline's scheduler ({error}): choose another."
        ) from error
    if int(scheduler.timesteps.max()) >= total or int(scheduler.timesteps.min()) < 0:
        raise UserError(
            f"--steps {steps} makes time steps beyond the {total} of this pipeline's scheduler (its steps_offset):"
            " choose another number."
        )
    alpha_bar = scheduler.alphas_cumprod.double()
    if len(alpha_bar) != total or not all(bool(((of >= 0) & (of <= 1)).all()) for of in (alpha_bar, scheduler.betas)):
        raise ValueError(f"its betas make no signal between 0 and 1 of each of {total} steps")
    # What DDIM as published calls the step before t: t minus the stride; before the first one lies the final alpha_bar.
    before = scheduler.timesteps - total // steps
    ends = torch.where(before >= 0, alpha_bar[before.clamp(min=0)], scheduler.final_alpha_cumprod.double())
    table = DenoisingTable(
        scheduler.timesteps, alpha_bar[scheduler.timesteps], ends, settings.get("prediction_type", "epsilon")
    )
    if bool((table.alpha_bar[:-1] >= table.alpha_bar_prev[:-1]).any()) or bool((table.alpha_bar_prev[:-1] >= 1).any()):
        raise UserError(
            f"--steps {steps} makes steps without noise with this pipeline's scheduler: choose another number."
        )
    if table.prediction == "epsilon" and bool((table.alpha_bar < LEAST_SIGNAL).any()):
        raise UserError(
            "this pipeline's scheduler starts from a signal of almost 0, where a noise prediction says nothing: it"
            " needs v_prediction."
        )
    return table


FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def require_flow(settings: dict[str, Any], source: str) -> None:
    """Raises ``UserError`` for a scheduler that does not make Euler steps along straight paths."""
    name = settings.get("_class_name", "its scheduler")
    if name != FLOW_SCHEDULER:
        raise UserError(
            f"{source} samples with {name}: flow-matching pipelines are trained with a {FLOW_SCHEDULER}; give one in"
            " its place."
        )
    for option in ("invert_sigmas", "stochastic_sampling"):
        if settings.get(option):
            raise UserError(
                f"{source} has a scheduler with {option}, whose steps are others than Euler's: set it to false in its"
                " scheduler_config.json."
            )


def shift_of(settings: dict[str, Any], tokens: int, most: float) -> float:
    """mu of a resolution-dependent shift: linear in the number of picture tokens. ``most`` is the default of max_shift,
    which differs by family."""
    least_tokens, most_tokens = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
    least, most = settings.get("base_shift", 0.5), settings.get("max_shift", most)
    return least + (most - least) * (tokens - least_tokens) / (most_tokens - least_tokens)


def flow_table(settings: dict[str, Any], steps: int, mu: float | None, sigmas: list[float] | None = None) -> FlowTable:
    """The levels that the scheduler itself sets, with its shift. Raises ``UserError`` when they do not fall from at
    most 1 to 0."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
    total = scheduler.config["num_train_timesteps"]
    if not 2 <= steps <= total:
        raise UserError(f"--steps {steps}: this pipeline's scheduler has from 2 to {total} steps.")
    scheduler.set_timesteps(steps, mu=mu, sigmas=sigmas)
    levels = scheduler.sigmas
    if not bool((levels[1:] < levels[:-1]).all()) or float(levels[0]) > 1 or float(levels[-1]) != 0:
        raise UserError(
            f"--steps {steps} makes levels that do not fall from 1 to 0 with this pipeline's scheduler: choose another"
            " number."
        )
    return FlowTable(scheduler.timesteps, levels[:-1], levels[1:])
