"""Options that act only beside others, and beside which."""

from __future__ import annotations

from saddlepoint.options import Effect

GRPO = (lambda c: c.method == "grpo", "--method grpo")
EFFECTIVE_WITH: dict[str, Effect] = {
    "clip": (lambda c: c.uses_clip, "a --reward, --cost or --utility that uses CLIP"),
    "anchors": (lambda c: c.uses_anchors, "--reward steered or a --cost that uses CLIP"),
    "alpha": (lambda c: c.resolved_reward == "steered", "--reward steered"),
    "steering": (lambda c: c.resolved_reward == "steered", "--reward steered"),
    "steer": (lambda c: c.resolved_reward == "steered", "--reward steered"),
    "multiplier_rule": (lambda c: c.unsafe_budget is not None, "--unsafe-budget"),
    "multiplier": (lambda c: c.unsafe_budget is not None, "--unsafe-budget"),
    "multiplier_rate": (
        lambda c: c.unsafe_budget is not None and c.multiplier_rule != "augmented",
        "--unsafe-budget and a --multiplier-rule other than augmented",
    ),
    "proportional": (
        lambda c: c.unsafe_budget is not None and c.multiplier_rule in ("exponential", "pid"),
        "--unsafe-budget and --multiplier-rule exponential or pid",
    ),
    "multiplier_most": (
        lambda c: c.unsafe_budget is not None and c.multiplier_rule == "exponential",
        "--unsafe-budget and --multiplier-rule exponential",
    ),
    "rho": (
        lambda c: c.unsafe_budget is not None and c.multiplier_rule != "exponential",
        "--unsafe-budget and a --multiplier-rule other than exponential",
    ),
    "largest_violation": (lambda c: bool(c.unsafe_budget), "an --unsafe-budget above 0"),
    "rank": (lambda c: c.tune == "lora", "--tune lora"),
    "second_weight": (lambda c: c.second_reward != "none", "--second-reward"),
    "nft_beta": (lambda c: c.method == "nft", "--method nft"),
    "log_prob": GRPO,
    "clip_range": GRPO,
    "ratio_center": GRPO,
    "noisy_steps": GRPO,
    "sde": (lambda c: c.method == "grpo" or bool(c.eta), "--method grpo, or an --eta above 0"),
}
"""options that act only beside others: when, and in words"""
