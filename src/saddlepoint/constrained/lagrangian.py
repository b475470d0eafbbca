"""Penalties for a constraint R <= h and the ways to move its multiplier. Violation means R - h throughout.

Several constraints at once: violations and multipliers end in a ``constraints`` axis, or are summed by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MultiplierRule = Literal["exponential", "log_adam", "dual_ascent", "augmented", "pid"]


def plain_penalty(violation: Tensor, multiplier: Tensor) -> Tensor:
    """multiplier * violation, elementwise: the ordinary Lagrangian's term."""
    return multiplier * violation


def augmented_penalty(violation: Tensor, multiplier: Tensor | float, rho: Tensor | float) -> Tensor:
    """([multiplier + rho*violation]_+^2 - multiplier^2) / (2 rho), elementwise.  ALGD, Eq. for L_A; violation = R - h."""
    multiplier = torch.as_tensor(multiplier, dtype=violation.dtype, device=violation.device)
    return penalty_of_slope(effective_multiplier(violation, multiplier, rho), multiplier, rho)


def penalty_of_slope(slope: Tensor, multiplier: Tensor, rho: Tensor | float) -> Tensor:
    """``augmented_penalty`` where its slope, ``effective_multiplier``, is at hand."""
    return (slope.square() - multiplier.square()) / (2 * rho)


def effective_multiplier(violation: Tensor, multiplier: Tensor | float, rho: Tensor | float) -> Tensor:
    """[multiplier + rho*violation]_+: the slope of ``augmented_penalty`` in the risk, elementwise."""
    return (multiplier + rho * violation).clamp(min=0)


@dataclass(frozen=True)
class MultiplierUpdate:
    """How the multiplier follows the mean violation v = mean(R) - h. State goes in and comes out as a dict of float64 tensors (constraints,).

    =========== ===================================================================================================================
    exponential lambda = m exp(Kp v),  m <- m exp(rate * v) within [lambda at the start, most]: proportional-integral control of log lambda.
                It moves by a share of itself, so one rate serves prices of 0.01 and of 1; v below 0 winds nothing up
    log_adam    released ALGD: one Adam step on log lambda for the loss  -lambda * v.  A sign-like step; lambda never reaches 0
    dual_ascent lambda <- [lambda + rate * v]_+  (projected gradient ascent on the dual)
    augmented   lambda <- [lambda + rho * v]_+   (the augmented-Lagrangian method's own step, Hestenes 1969 and Powell 1969), every ``interval`` calls
    pid         lambda = [Kp v + Ki sum v + Kd (v - v_last)_+]_+ on a smoothed v  (Stooke, Achiam, Abbeel 2020)
    =========== ===================================================================================================================
    """

    rule: MultiplierRule = "dual_ascent"
    rate: float = 3e-4
    """step of exponential, log_adam and dual_ascent, and the integral gain Ki of pid"""
    rho: float = 1.0
    """penalty weight, the step of ``augmented``"""
    interval: int = 1000
    """calls between two steps of ``augmented``: the inner problem must be nearly solved in between"""
    proportional: float = 0.05
    derivative: float = 0.05
    smoothing: float = 0.99
    """share of the old violation in pid's moving average"""
    most: float = float("inf")
    """of exponential's m: a violation that no price mends would raise it without end"""

    def start(self, multiplier: float, constraints: int) -> dict[str, Tensor]:
        """State that holds ``multiplier`` for every constraint."""
        value = torch.full((constraints,), float(multiplier), dtype=torch.float64)
        zero = torch.zeros_like(value)
        calls = torch.zeros((), dtype=torch.float64)
        if self.rule == "log_adam":
            return {"calls": calls, "log": value.log(), "first": zero, "second": zero.clone()}
        if self.rule == "exponential":
            return {"calls": calls, "value": value, "memory": value.clone(), "least": value.clone()}
        if self.rule == "pid":
            return {"calls": calls, "value": value, "integral": value.clone(), "smooth": zero, "last": zero.clone()}
        return {"calls": calls, "value": value}

    def value(self, state: dict[str, Tensor]) -> Tensor:
        """The multiplier itself, (constraints,) float64, >= 0."""
        return state["log"].exp() if self.rule == "log_adam" else state["value"]

    def step(self, state: dict[str, Tensor], violation: Tensor) -> dict[str, Tensor]:
        """One update from the mean violation (constraints,)."""
        violation = violation.to(torch.float64)
        calls = state["calls"] + 1
        if self.rule == "exponential":
            memory = (state["memory"] * (self.rate * violation).exp()).clamp(max=self.most).maximum(state["least"])
            return {"calls": calls, "value": memory * (self.proportional * violation).exp(), "memory": memory, "least": state["least"]}
        if self.rule == "log_adam":
            gradient = -state["log"].exp() * violation
            first = 0.9 * state["first"] + 0.1 * gradient
            second = 0.999 * state["second"] + 0.001 * gradient.square()
            size = self.rate / (1 - 0.9**calls)
            log = state["log"] - size * first / (second.sqrt() / (1 - 0.999**calls).sqrt() + 1e-8)
            return {"calls": calls, "log": log, "first": first, "second": second}
        if self.rule == "dual_ascent":
            return {"calls": calls, "value": (state["value"] + self.rate * violation).clamp(min=0)}
        if self.rule == "augmented":
            due = float(int(calls) % self.interval == 0)
            return {"calls": calls, "value": (state["value"] + due * self.rho * violation).clamp(min=0)}
        smooth = self.smoothing * state["smooth"] + (1 - self.smoothing) * violation
        integral = (state["integral"] + self.rate * smooth).clamp(min=0)
        rise = (smooth - state["last"]).clamp(min=0)
        value = (self.proportional * smooth + integral + self.derivative * rise).clamp(min=0)
        return {"calls": calls, "value": value, "integral": integral, "smooth": smooth, "last": smooth}
