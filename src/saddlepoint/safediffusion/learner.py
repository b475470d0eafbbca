"""What learns: the network or its low-rank adapters, AdamW, averaged weights and the multiplier; their update and their
whole state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saddlepoint.constrained.lagrangian import MultiplierUpdate
from saddlepoint.nn.optim import AdamW
from saddlepoint.safediffusion.adapters import add_adapters
from saddlepoint.safediffusion.config import SafeDiffusionConfig
from saddlepoint.safediffusion.families import Conditioning
from saddlepoint.safediffusion.families.base import ATTENTION
from saddlepoint.safediffusion.grpo import (
    approximate_kl,
    centred_log_prob,
    clipped_above,
    clipped_share,
    grpo_loss,
    step_kl,
    step_log_prob,
)
from saddlepoint.safediffusion.nft import nft_loss, optimality
from saddlepoint.safediffusion.rollout import DenoisingPolicy
from saddlepoint.types import NonFiniteError, UserError


class Minibatch(NamedTuple):
    """Denoising steps of some images, one a row, to be learnt from."""

    latents: Tensor  # (batch, channels, height, width) where the step starts, as stored; for nft the clean ones
    # (batch, channels, height, width) where it ended, as stored; for nft the noise that is put on them
    next_latents: Tensor
    k: Tensor  # (batch,) int64, which step
    log_probs: Tensor  # (batch,) float32, at sampling time; not looked at by nft
    advantages: Tensor  # (batch,) float32
    told: Conditioning  # tensors (batch, ...)
    means: Tensor | None = None  # (batch, channels, height, width) float32, at sampling time, where ratios are centred


def prepare_network(network: Any, config: SafeDiffusionConfig, seed: int, layers: tuple[str, ...] = ATTENTION) -> None:
    """Make the network's learning parameters require gradients: fresh adapters of ``layers`` (which change nothing
    yet), or all of it."""
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if config.tune == "unet":
        network.requires_grad_(True)
    else:
        add_adapters(network, config, seed, layers)


def multiplier_update(config: SafeDiffusionConfig) -> MultiplierUpdate:
    """How lambda moves, one call an epoch."""
    rule, rate = config.multiplier_rule, config.multiplier_rate
    rate = rate if rate is not None else 0.1 if rule == "exponential" else 0.5
    return MultiplierUpdate(
        rule, rate, config.rho, interval=1, proportional=config.proportional, most=config.multiplier_most
    )


def violation_seen(config: SafeDiffusionConfig, violation: Tensor) -> Tensor:
    """The mean violation (constraints,) that moves lambda: for ``exponential`` in budgets, and clipped to the largest.

    A budget below one picture of an epoch cannot be told from none: there the unit is one picture.
    """
    budget = config.unsafe_budget or 0.0
    if config.multiplier_rule == "exponential":
        most = 3.0 if config.largest_violation is None else config.largest_violation
        return (violation / max(budget, 1 / config.images)).clamp(max=most)
    return (
        violation
        if config.largest_violation is None or not budget
        else violation.clamp(max=config.largest_violation * budget)
    )


class Learner:
    """The learning state of a run; ``update`` is one optimiser step."""

    def __init__(self, config: SafeDiffusionConfig, policy: DenoisingPolicy, part: str = "unet") -> None:
        """``policy`` holds a network that ``prepare_network`` has prepared, on its device; ``part`` is its name in the
        pipeline."""
        self.config, self.policy, self.part = config, policy, part
        self.parameters = {name: p for name, p in policy.network.named_parameters() if p.requires_grad}
        self.optimiser = AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=policy.device.type == "cpu" or None,  # None is PyTorch's own choice; on a CPU that is one loop for all
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if config.ema else {}
        self.multiplier_update = multiplier_update(config)
        self.multiplier_state = self.multiplier_update.start(config.resolved_multiplier, 1)
        frozen = config.kl > 0 and config.tune == "unet"
        self._start = copy.deepcopy(policy.network).requires_grad_(False) if frozen else None
        self._sampled: dict[str, Tensor] = {}  # nft: the weights that sampled, once others have been learnt

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what ``accumulate`` returns."""
        own = ("approximate_kl", "clipped_share", "clipped_above") if self.config.method == "grpo" else ("regression",)
        return ("policy_loss", *own, *(("kl_to_start",) if self.config.kl else ()))

    @property
    def multiplier(self) -> Tensor:
        """lambda, 0-d float64."""
        return self.multiplier_update.value(self.multiplier_state)[0]

    def move_multiplier(self, violation: Tensor) -> None:
        """One step of lambda from the mean violation of an epoch, 0-d."""
        seen = violation_seen(self.config, violation.reshape(1).cpu())
        self.multiplier_state = self.multiplier_update.step(self.multiplier_state, seen)

    def begin_epoch(self) -> None:
        """The weights as they are have sampled the pictures that are learnt from next."""
        self._sampled = {}

    def accumulate(self, batch: Minibatch, empty: Conditioning, weight: float) -> dict[str, Tensor]:
        """Add ``weight`` times the loss's gradient, and return the loss and what describes it, each 0-d and
        detached."""
        loss, metrics = (self._grpo if self.config.method == "grpo" else self._nft)(batch, empty)
        if not bool(loss.isfinite()):
            raise NonFiniteError("the policy's loss is not finite: lower --learning-rate or --guidance.")
        (weight * loss).backward()
        return metrics

    def _grpo(self, batch: Minibatch, empty: Conditioning) -> tuple[Tensor, dict[str, Tensor]]:
        cfg = self.config
        start = None
        if cfg.kl:
            with torch.no_grad(), self._at_start():
                start = self.policy.step(batch.latents, batch.k, batch.told, empty)
        step = self.policy.step(batch.latents, batch.k, batch.told, empty)
        log_probs = step_log_prob(step, batch.next_latents.float(), cfg.log_prob)
        if batch.means is not None:
            log_probs = centred_log_prob(log_probs, step, batch.means, cfg.log_prob)
        loss = grpo_loss(log_probs, batch.log_probs, batch.advantages, cfg.resolved_clip_range)
        metrics = {
            "policy_loss": loss.detach(),
            "approximate_kl": approximate_kl(log_probs.detach(), batch.log_probs),
            "clipped_share": clipped_share(log_probs.detach(), batch.log_probs, cfg.resolved_clip_range),
            "clipped_above": clipped_above(log_probs.detach(), batch.log_probs, cfg.resolved_clip_range),
        }
        if start is not None:
            divergence = step_kl(step, start, cfg.log_prob).mean()
            metrics["kl_to_start"] = divergence.detach()
            loss = loss + cfg.kl * divergence
        return loss, metrics

    def _nft(self, batch: Minibatch, empty: Conditioning) -> tuple[Tensor, dict[str, Tensor]]:
        """The clean pictures noised to the levels of the steps ``k``; what the network says there is drawn towards the
        better ones."""
        cfg = self.config
        noised, target = self.policy.noised(batch.latents, batch.next_latents, batch.k)
        start = old = None
        with torch.no_grad():
            if cfg.kl:
                with self._at_start():
                    start = self.policy.answer(noised, batch.k, batch.told, empty)
            if self._sampled:
                with self._put_for_now(self._sampled):
                    old = self.policy.answer(noised, batch.k, batch.told, empty)
        answer = self.policy.answer(noised, batch.k, batch.told, empty)
        old = answer.detach() if old is None else old  # before the first update of an epoch they are the same
        loss = nft_loss(answer, old, target, optimality(batch.advantages, cfg.advantage_clip), cfg.nft_beta)
        metrics = {"policy_loss": loss.detach(), "regression": (answer.detach() - target).square().mean()}
        if start is not None:
            divergence = (answer - start).square().flatten(1).mean(1).mean()
            metrics["kl_to_start"] = divergence.detach()
            loss = loss + cfg.kl * divergence
        return loss, metrics

    @torch.no_grad()
    def score(self, batch: Minibatch, empty: Conditioning) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the batch's next latents under the network as it is, (batch,) float32, and its means;
        its own are not looked at."""
        step = self.policy.step(batch.latents, batch.k, batch.told, empty)
        return step_log_prob(step, batch.next_latents.float(), self.config.log_prob), step.mean

    def update(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """One step of AdamW with the accumulated gradients, which ``reduce`` sums over processes. Returns their norm,
        0-d."""
        for parameter in self.parameters.values():
            # A process all of whose groups were skipped has no gradient, and must take part in the sum all the same.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(gradient)
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        if not bool(norm.isfinite()):
            name = next((name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())), "the network")
            raise NonFiniteError(f"the gradient of {name} is not finite: lower --learning-rate or --guidance.")
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.max_grad_norm, norm)
        if self.config.method == "nft" and not self._sampled:
            self._sampled = {name: p.detach().clone() for name, p in self.parameters.items()}
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
        with self._put_for_now(self.average):
            yield

    @contextmanager
    def _put_for_now(self, weights: dict[str, Tensor]) -> Iterator[None]:
        kept = {name: self.parameters[name].detach().clone() for name in weights}
        self._put(weights)
        try:
            yield
        finally:
            self._put(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights ``unet.*`` (or ``transformer.*``), averages ``average.*``, AdamW's moments ``adam.*`` and the
        multiplier's state."""
        state = {f"{self.part}.{name}": p.detach() for name, p in self.parameters.items()}
        state |= {f"average.{name}": average for name, average in self.average.items()}
        for name, parameter in self.parameters.items():
            state |= {
                f"adam.{part}.{name}": torch.as_tensor(value)
                for part, value in self.optimiser.state.get(parameter, {}).items()
            }
        return state | {f"multiplier.{name}": value for name, value in self.multiplier_state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo ``state_dict`` to the bit. Raises ``UserError`` when names or shapes do not fit."""
        load_weights(self.parameters, state, f"{self.part}.")
        load_weights(self.average, state, "average.")
        for name, parameter in self.parameters.items():
            moments = {
                part: state[f"adam.{part}.{name}"]
                for part in ("step", "exp_avg", "exp_avg_sq")
                if f"adam.{part}.{name}" in state
            }
            if moments:  # none before the first step
                # AdamW keeps its step count on the CPU and its moments beside the parameter.
                self.optimiser.state[parameter] = {
                    k: v.clone() if k == "step" else v.to(parameter.device, copy=True) for k, v in moments.items()
                }
        self.multiplier_state = {name: state[f"multiplier.{name}"].clone() for name in self.multiplier_state}

    @contextmanager
    def _at_start(self) -> Iterator[None]:
        """The network that the run started from: adapters switched off, or a copy where all of it learns."""
        learning = self.policy.network
        if self._start is None:
            learning.disable_adapters()
        else:
            self.policy.network = self._start
        try:
            yield
        finally:
            self.policy.network = learning
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
        raise UserError(
            "the checkpoint was made with another network or other adapters than this run's: restore the pipeline it"
            " started from."
        )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(held[name])
