"""MBDPO's options that act only beside others, or where there are costs; and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saddlepoint.options import Effect

if TYPE_CHECKING:
    from saddlepoint.mbdpo.config import MBDPOConfig

COST_OPTIONS = frozenset({
    "penalty", "cost_unit", "price_unit", "budget_share", "shield", "rho", "risk_std", "cost_members", "cost_gamma", "cost_polyak", "cost_weight",
    "multiplier_rule", "multiplier_actions", "recent_steps", "multiplier", "multiplier_rate", "proportional", "derivative", "smoothing",
    "multiplier_interval", "largest_violation",
})  # fmt: skip
"""options that act where there are costs only"""


def imagines(c: MBDPOConfig) -> bool:
    """Whether the planner rolls plans out in the model."""
    return c.planner in ("denoise", "mppi")


def _diffuses(c: MBDPOConfig) -> bool:
    return c.planner == "denoise" or c.trains_score or c.td_action == "plan"


def _weighs(c: MBDPOConfig) -> bool:
    """Whether plans are averaged by their values at all."""
    return imagines(c) or (c.trains_score and c.score_training == "planner") or c.td_action == "plan"


PID = (lambda c: c.multiplier_rule == "pid", "--multiplier-rule pid")
SCORE_USED = "--planner score, or --td-action search or stored"
EFFECTIVE_WITH: dict[str, Effect] = {
    **dict.fromkeys(("proposals", "elites", "policy_rollouts", "temperature"), (_weighs, "a planner that imagines, or a score network that learns from one")),
    "rollouts": (lambda c: c.planner == "denoise" and c.policy_rollouts > 0, "--planner denoise and --policy-rollouts"),
    "steps": (_diffuses, "--planner denoise, or a score network"),
    "levels": (_diffuses, "--planner denoise, or a score network"),
    **dict.fromkeys(("beta_first", "beta_last"), (lambda c: _diffuses(c) and c.levels == "betas", "--levels betas, and --planner denoise or a score network")),
    **dict.fromkeys(
        ("spread_first", "spread_last"), (lambda c: _diffuses(c) and c.levels == "geometric", "--levels geometric, and --planner denoise or a score network")
    ),
    "action_noise": (lambda c: c.planner in ("denoise", "score") or c.td_action != "prior", "--planner denoise or score, or a --td-action other than prior"),
    "reverse_start": (lambda c: c.planner in ("denoise", "score"), "--planner denoise or score"),
    "mppi_iterations": (lambda c: c.planner == "mppi", "--planner mppi"),
    "mppi_min_std": (lambda c: c.planner == "mppi", "--planner mppi"),
    "mppi_max_std": (lambda c: c.planner == "mppi", "--planner mppi"),
    "precision": (
        lambda c: c.learning_precision == "auto" or (imagines(c) and c.learning_precision == "float32"),
        "--learning-precision auto, or float32 and --planner denoise or mppi",
    ),
    **dict.fromkeys(
        ("energy_clip", "energy_momentum", "energy_pairs", "negative_noise", "contrastive_weight"),
        (lambda c: c.energy_weight > 0, "an --energy-weight above 0"),
    ),
    "td_levels": (lambda c: c.td_action != "prior", "a --td-action other than prior"),
    "score_training": (lambda c: c.trains_score, SCORE_USED),
    "score_states": (lambda c: c.trains_score and c.score_training == "planner", SCORE_USED),
    "score_proposals": (lambda c: c.trains_score or c.td_action == "plan", f"{SCORE_USED} or plan"),
    "score_weight": (lambda c: c.trains_score, SCORE_USED),
    "time_embedding": (lambda c: c.trains_score, SCORE_USED),
    "multiplier_rate": (lambda c: c.multiplier_rule != "augmented", "a --multiplier-rule other than augmented"),
    "proportional": (lambda c: c.multiplier_rule in ("pid", "exponential"), "--multiplier-rule exponential or pid"),
    **dict.fromkeys(("derivative", "smoothing"), PID),
    "multiplier_interval": (lambda c: c.multiplier_rule == "augmented", "--multiplier-rule augmented"),
    "recent_steps": (lambda c: c.multiplier_actions == "recent", "--multiplier-actions recent"),
    "risk_std": (lambda c: c.cost_members > 1, "more than one of --cost-members"),
    "average_acts": (lambda c: c.acting_average > 0, "an --acting-average above 0"),
    "termination_weight": (lambda c: c.episodic != "off", "--episodic auto or on"),
    "leak_task_gradient": (lambda c: False, "several tasks, which are given in Python"),
    "task_embedding": (lambda c: False, "several tasks, which are given in Python"),
}
"""options that act only beside others: when, and in words"""
