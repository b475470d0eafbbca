"""Whether an evaluation is within the budget, and in words what it cost: each constraint by itself, of the policies
that the budget binds."""

from __future__ import annotations

from typing import Literal, TypeAlias

from saddlepoint.constrained.budget import CostBudget, discounted_budget

Binds: TypeAlias = Literal["sampled", "noise-free", "both"]
"""the policy that a budget binds: a sample of it, its noise-free action, or each of the two"""
PREFIXES: dict[Binds, tuple[str, ...]] = {
    "sampled": ("eval/stochastic",),
    "noise-free": ("eval",),
    "both": ("eval", "eval/stochastic"),
}
TITLES = {"eval": "noise-free", "eval/stochastic": "sampled"}


def mean_costs(metrics: dict[str, float], budgets: tuple[CostBudget, ...], prefix: str) -> list[tuple[float, float]]:
    """(mean cost, limit) of each constraint, as its budget was stated: of the discounted sum, or of an episode's plain
    sum."""
    pairs = []
    for i, budget in enumerate(budgets):
        name = "discounted_cost" if budget.discounted else "cost"
        suffix = f"_{i}" if len(budgets) > 1 else ""
        pairs.append((metrics[f"{prefix}/{name}{suffix}_mean"], budget.critic if budget.discounted else budget.episode))
    return pairs


def within_budget(metrics: dict[str, float], budgets: tuple[CostBudget, ...], binds: Binds) -> bool | None:
    """Whether the mean cost of every constraint is within its budget, for the policies that it ``binds``. None without
    budgets."""
    if not budgets:
        return None
    return all(
        cost <= limit * (1 + 1e-9) for prefix in PREFIXES[binds] for cost, limit in mean_costs(metrics, budgets, prefix)
    )


def surcharge(metrics: dict[str, float], budgets: tuple[CostBudget, ...], binds: Binds) -> list[float]:
    """By how much the mean episode of the policy that the budget ``binds`` cost more than a sampled one, in the units of each h: one number a constraint.

    Where it binds both, the dearer of the two counts, so that no number is below 0.
    """
    noise_free, sampled = (mean_costs(metrics, budgets, prefix) for prefix in ("eval", "eval/stochastic"))
    more = [
        own - acted if budget.discounted else discounted_budget(own - acted, budget.gamma, budget.steps)
        for budget, (own, _), (acted, _) in zip(budgets, noise_free, sampled, strict=True)
    ]
    return {"sampled": [0.0] * len(more), "noise-free": more, "both": [max(one, 0.0) for one in more]}[binds]


def ranked_return(metrics: dict[str, float], binds: Binds) -> float:
    """The mean return by which ``best/`` is chosen: of the policy that the budget binds; of the noise-free one where it
    binds both."""
    return metrics[f"{PREFIXES[binds][0]}/return_mean"]


def costs_in_words(metrics: dict[str, float], budgets: tuple[CostBudget, ...], prefix: str) -> str:
    """``cost 1.20 of 2``, one part for each constraint; empty without budgets."""
    parts = [f"{'discounted cost' if budget.discounted else 'cost'} {cost_in_words(cost, limit)}"
             for budget, (cost, limit) in zip(budgets, mean_costs(metrics, budgets, prefix), strict=True)]  # fmt: skip
    return " and ".join(parts)


def bound_costs_in_words(metrics: dict[str, float], budgets: tuple[CostBudget, ...], binds: Binds) -> str:
    """``noise-free cost 1.20 of 2, sampled cost 1.40 of 2``: of the policies that the budget ``binds``."""
    return ", ".join(f"{TITLES[prefix]} {costs_in_words(metrics, budgets, prefix)}" for prefix in PREFIXES[binds])


def evaluation_in_words(metrics: dict[str, float], budgets: tuple[CostBudget, ...], binds: Binds) -> str:
    """Return and cost of both policies, and the verdict for those that the budget binds."""
    parts = []
    for prefix, title in TITLES.items():
        if f"{prefix}/return_mean" not in metrics:
            continue
        cost = costs_in_words(metrics, budgets, prefix)
        parts.append(f"{title} return {metrics[f'{prefix}/return_mean']:.1f}{f', {cost}' if cost else ''}")
    if budgets:
        parts.append(verdict_in_words(metrics, budgets, binds))
    return "; ".join(parts)


def verdict_in_words(metrics: dict[str, float], budgets: tuple[CostBudget, ...], binds: Binds) -> str:
    """Whether the policies that the budget binds are within it, by their mean costs, and how many of their episodes are
    not."""
    what = "both policies" if binds == "both" else f"the {TITLES[PREFIXES[binds][0]]} policy"
    over = max(metrics[f"{prefix}/violation_rate"] for prefix in PREFIXES[binds])
    return f"{'within' if within_budget(metrics, budgets, binds) else 'OVER'} budget ({what}; {100 * over:.0f}% of episodes over)"


def cost_in_words(cost: float, limit: float) -> str:
    """``1.20 of 2``"""
    return f"{cost:.2f} of {limit:.4g}" if abs(cost) < 100 else f"{cost:.0f} of {limit:.4g}"
