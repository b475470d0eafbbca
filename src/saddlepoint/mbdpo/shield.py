"""The shield: a check of plans against the budget that is left in the episode, by the costs that the world model imagines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget, cost_units


class Left(NamedTuple):
    """What may still be spent, (constraints, envs) each, as a sum discounted from now on."""

    limit: Tensor
    """bound on the cost from now to the end of the episode"""
    tail: Tensor
    """share of the cost critics' sum after a plan that falls into the episode: they know of no time limit"""
    unit: Tensor
    """(constraints, 1): what excesses of several constraints are added up in"""


def budget_left(budgets: Sequence[CostBudget], spent: Tensor, age: Tensor, horizon: int) -> Left:
    """What is left after ``age`` (envs,) steps of an episode in which ``spent`` (envs, constraints) was paid, for plans of ``horizon`` steps.

    With n = T - age steps to go and s_n = (1 - gamma^n)/(1 - gamma):
    a plain sum B leaves (B - spent) s_n / n, what is left spread evenly over the steps to go (``discounted_budget``);
    a sum discounted from the episode's start leaves (h - spent)/gamma^age, and never more than h, for late in an episode that is no bound at all.
    ``spent`` is what ``pay`` counts. With the tail 1 - gamma^(n - H), a plan of H steps and what follows it are s_n for a cost of 1 a step.
    """
    limits, tails = [], []
    for budget, paid in zip(budgets, spent.unbind(-1), strict=True):
        gamma, togo = budget.gamma, (budget.steps - age).clamp(min=1)
        after = (togo - horizon).clamp(min=0)
        if budget.discounted:
            limits.append(((budget.critic - paid) / gamma**age).clamp(max=budget.critic))
        else:
            limits.append((budget.episode - paid) * (1.0 if gamma == 1 else (1 - gamma**togo) / (1 - gamma) / togo))
        tails.append((after > 0).to(paid) if gamma == 1 else 1 - gamma**after)
    unit = cost_units(tuple(budgets), "budget").to(spent)[:, None]
    return Left(torch.stack(limits), torch.stack(tails), unit)


def pay(budgets: Sequence[CostBudget], spent: Tensor, age: Tensor, cost: Tensor) -> Tensor:
    """``spent`` (envs, constraints) with the ``cost`` (envs, constraints) of step number ``age`` (envs,): discounted from the episode's start where the budget
    is."""
    weights = [budget.gamma**age if budget.discounted else torch.ones_like(age) for budget in budgets]
    return spent + cost.to(spent) * torch.stack(weights, -1)


class Imagined(NamedTuple):
    """Plans with what the world model says of them; leading axes (batch, plans)."""

    plans: Tensor  # (batch, plans, horizon, action)
    gain: Tensor  # (batch, plans): the return
    risk: Tensor  # (constraints, batch, plans): discounted cost to the end of the episode

    @classmethod
    def join(cls, parts: Sequence[Imagined]) -> Imagined:
        return cls(*(torch.cat([getattr(part, name) for part in parts], dim) for name, dim in (("plans", 1), ("gain", 1), ("risk", 2))))


def checked(found: Imagined, others: Sequence[Imagined], left: Left) -> tuple[Tensor, Tensor]:
    """The plan ``found`` (one a state) where it keeps within what is ``left``; else the best by return of the ``others`` that do; else the least costly of all.

    Returns plans (batch, horizon, action), and where they are others than ``found``, (batch,) bool. A plan without finite numbers is never taken.
    """
    every = Imagined.join([found, *others])
    excess = ((every.risk - left.limit.unsqueeze(-1)).clamp(min=0) / left.unit.unsqueeze(-1)).sum(0)
    least = torch.where(excess.isfinite(), excess, torch.inf).argmin(-1)
    fits = (excess == 0) & every.gain.isfinite()
    best = torch.where(fits, every.gain, -torch.inf).argmax(-1)
    chosen = torch.where(fits[:, 0], 0, torch.where(fits.any(-1), best, least))
    rows = torch.arange(len(chosen), device=chosen.device)
    return every.plans[rows, chosen], chosen != 0
