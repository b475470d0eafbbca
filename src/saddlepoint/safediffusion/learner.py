"""What learns: the UNet or its low-rank adapters, AdamW, averaged weights and the multiplier; their update and their whole state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saddlepoint.constrained.lagrangian import MultiplierUpdate
from saddlepoint.diffusion.kernel import Gaussian
from saddlepoint.safediffusion.config import SafeDiffusionConfig
from saddlepoint.safediffusion.grpo import approximate_kl, clipped_share, grpo_loss, step_kl, step_log_prob
from saddlepoint.safediffusion.rollout import DenoisingPolicy
from saddlepoint.types import NonFiniteError, UserError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""the layers that get adapters"""


class Minibatch(NamedTuple):
    """Denoising steps of some images, one a row, to be learnt from."""

    latents: Tensor  # (batch, channels, height, width) where the step starts, as stored
    next_latents: Tensor  # (batch, channels, height, width) where it ended, as stored
    k: Tensor  # (batch,) int64, which step
    log_probs: Tensor  # (batch,) float32, at sampling time
    advantages: Tensor  # (batch,) float32
    text: Tensor  # (batch, tokens, width)


def prepare_unet(unet: Any, config: SafeDiffusionConfig, seed: int) -> None:
    """Make the UNet's learning parameters require gradients: fresh adapters (which change nothing yet), or all of it."""
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.tune == "unet":
        unet.requires_grad_(True)
        return
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):  # peft draws the adapters' first factor from the global stream
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=list(ATTENTION)))


class Learner:
    """The learning state of a run; ``update`` is one optimiser step."""

    def __init__(self, config: SafeDiffusionConfig, policy: DenoisingPolicy) -> None:
        """``policy`` holds a UNet that ``prepare_unet`` has prepared, on its device."""
        self.config, self.policy = config, policy
        self.parameters = {name: p for name, p in policy.unet.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if config.ema else {}
        self.multiplier_update = MultiplierUpdate(config.multiplier_rule, config.multiplier_rate, config.rho, interval=1)
        self.multiplier_state = self.multiplier_update.start(config.multiplier, 1)
        frozen = config.kl > 0 and config.tune == "unet"
        self._start = copy.deepcopy(policy.unet).requires_grad_(False) if frozen else None

    @property
    def multiplier(self) -> Tensor:
        """lambda, 0-d float64."""
        return self.multiplier_update.value(self.multiplier_state)[0]

    def move_multiplier(self, violation: Tensor) -> None:
        """One step of lambda from the mean violation of an epoch, 0-d."""
        most, budget = self.config.largest_violation, self.config.unsafe_budget
        ceiling = most * budget if most is not None and budget else math.inf
        self.multiplier_state = self.multiplier_update.step(self.multiplier_state, violation.reshape(1).cpu().clamp(max=ceiling))

    def accumulate(self, batch: Minibatch, empty: Tensor, weight: float) -> dict[str, Tensor]:
        """Add ``weight`` times the loss's gradient, and return the loss and what describes it, each 0-d and detached."""
        cfg = self.config
        start = self._start_step(batch, empty) if cfg.kl else None
        step = self.policy.step(batch.latents, batch.k, batch.text, empty)
        log_probs = step_log_prob(step, batch.next_latents.float(), cfg.log_prob)
        loss = grpo_loss(log_probs, batch.log_probs, batch.advantages, cfg.resolved_clip_range)
        metrics = {
            "policy_loss": loss.detach(),
            "approximate_kl": approximate_kl(log_probs.detach(), batch.log_probs),
            "clipped_share": clipped_share(log_probs.detach(), batch.log_probs, cfg.resolved_clip_range),
        }
        if start is not None:
            divergence = step_kl(step, start, cfg.log_prob).mean()
            metrics["kl_to_start"] = divergence.detach()
            loss = loss + cfg.kl * divergence
        if not bool(loss.isfinite()):
            raise NonFiniteError("the policy's loss is not finite: lower --learning-rate or --guidance.")
        (weight * loss).backward()
        return metrics

    @torch.no_grad()
    def log_probs(self, batch: Minibatch, empty: Tensor) -> Tensor:
        """Of the batch's next latents under the network as it is, (batch,) float32; its own are not looked at."""
        step = self.policy.step(batch.latents, batch.k, batch.text, empty)
        return step_log_prob(step, batch.next_latents.float(), self.config.log_prob)

    def update(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """One step of AdamW with the accumulated gradients, which ``reduce`` sums over processes. Returns their norm, 0-d."""
        for name, parameter in self.parameters.items():
            # A process all of whose groups were skipped has no gradient, and must take part in the sum all the same.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(gradient)
            if not bool(parameter.grad.isfinite().all()):
                raise NonFiniteError(f"the gradient of {name} is not finite: lower --learning-rate or --guidance.")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, average in self.average.items():
                taken = int(self.optimiser.state[self.parameters[name]]["step"])
                average.lerp_(self.parameters[name], 1 - min(self.config.ema, (1 + taken) / (10 + taken)))
        return norm.detach()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the learning ones, if there are any."""
        with torch.no_grad():
            kept = {name: self.parameters[name].clone() for name in self.average}
            self._put(self.average)
        try:
            yield
        finally:
            self._put(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights ``unet.*``, averages ``average.*``, AdamW's moments ``adam.*`` and the multiplier's state."""
        state = {f"unet.{name}": p.detach() for name, p in self.parameters.items()}
        state |= {f"average.{name}": average for name, average in self.average.items()}
        for name, parameter in self.parameters.items():
            state |= {f"adam.{part}.{name}": torch.as_tensor(value) for part, value in self.optimiser.state.get(parameter, {}).items()}
        return state | {f"multiplier.{name}": value for name, value in self.multiplier_state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict`` to the bit. Raises ``UserError`` when names or shapes do not fit."""
        load_weights(self.parameters, state, "unet.")
        load_weights(self.average, state, "average.")
        for name, parameter in self.parameters.items():
            moments = {part: state[f"adam.{part}.{name}"] for part in ("step", "exp_avg", "exp_avg_sq") if f"adam.{part}.{name}" in state}
            if moments:  # none before the first step
                # AdamW keeps its step count on the CPU and its moments beside the parameter.
                self.optimiser.state[parameter] = {k: v.clone() if k == "step" else v.to(parameter.device, copy=True) for k, v in moments.items()}
        self.multiplier_state = {name: state[f"multiplier.{name}"].clone() for name in self.multiplier_state}

    @torch.no_grad()
    def _start_step(self, batch: Minibatch, empty: Tensor) -> Gaussian:
        """The step of the UNet that the run started from."""
        learning = self.policy.unet
        if self._start is None:
            learning.disable_adapters()
        else:
            self.policy.unet = self._start
        try:
            return self.policy.step(batch.latents, batch.k, batch.text, empty)
        finally:
            self.policy.unet = learning
            if self._start is None:
                learning.enable_adapters()

    def _put(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].copy_(value)


def load_weights(into: dict[str, Any], state: dict[str, Tensor], prefix: str) -> None:
    """Copy ``state[prefix + name]`` into each tensor. Raises ``UserError`` when the names or shapes differ."""
    held = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if held.keys() != into.keys() or any(held[name].shape != into[name].shape for name in into):
        raise UserError("the checkpoint was made with another UNet or other adapters than this run's: restore the pipeline it started from.")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(held[name])
