"""What a post-training's settings must satisfy to work at all, each fault in one sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from saddlepoint.options import flag, require_at_least, require_finite, require_positive
from saddlepoint.types import UserError

if TYPE_CHECKING:
    from saddlepoint.safediffusion.config import SafeDiffusionConfig

COST_MOST = {"probability": 1.0, "coordinate": 2.0}
"""the largest value of each cost of our own"""


def require_workable(config: SafeDiffusionConfig) -> None:
    """Raise ``UserError`` for values or combinations that cannot work."""
    ones = ("sample_batch", "updates", "inner_epochs", "train_batch", "rank", "held_out_images")
    require_at_least(
        config,
        dict.fromkeys(ones, 1)
        | {
            "group_size": 2,
            "images": 2,
            "steps": 2,
            "kl": 0,
            "guidance": 0,
            "proportional": 0,
            "resolved_multiplier": 0,
            "weight_decay": 0,
            "height": 0,
            "width": 0,
        },
    )
    require_finite(config)
    positive = (
        "nft_beta", "multiplier_most", "second_weight", "learning_rate", "max_grad_norm", "advantage_clip", "multiplier_rate", "rho",
        "largest_violation", "resolved_clip_range",
    )  # fmt: skip
    require_positive(config, positive)
    if config.eta is not None and (config.eta < 0 or (config.eta == 0 and config.method == "grpo")):
        raise UserError(
            f"--eta must be greater than 0, not {config.eta}: --method grpo learns from the noise of the steps."
        )
    if config.eta is not None and config.eta > 1 and config.sde == "ddim":
        raise UserError(f"--eta {config.eta} is above 1, the noise of the forward process: choose one in (0, 1].")
    if config.start in ("group", "all") and not config.resolved_eta(flow=False):
        raise UserError(
            f"--start {config.start} with steps without noise draws the same picture for a whole group: leave it"
            " out, or give --eta."
        )
    if config.noisy_steps:
        if len(config.noisy_steps) != 2 or not 0 <= config.noisy_steps[0] < config.noisy_steps[1] <= config.steps:
            raise UserError(
                f"--noisy-steps takes two numbers, such as 0 3, within the {config.steps} steps, not"
                f" {' '.join(map(str, config.noisy_steps))}."
            )
        if config.noisy_steps[0] >= config.steps - 1:
            raise UserError("--noisy-steps holds the last step alone, which is not learnt from: begin earlier.")
    if config.text_tokens is not None and config.text_tokens < 0:
        raise UserError(f"--text-tokens must not be negative, but it is {config.text_tokens}.")
    if config.images % config.group_size:
        raise UserError(
            f"--group-size {config.group_size} does not divide --images {config.images}: every prompt needs a whole"
            " group."
        )
    if config.group_size % config.updates:
        raise UserError(
            f"--updates {config.updates} does not divide --group-size {config.group_size}: each takes the same share"
            " of every group."
        )
    if not 0 <= config.ema < 1 or not 0 <= config.held_out < 1:
        raise UserError("--ema and --held-out must lie in [0, 1).")
    if not 0 < config.step_share <= 1:
        raise UserError(f"--step-share must lie in (0, 1], not {config.step_share}.")
    if config.unsafe_budget is not None and config.unsafe_budget < 0:
        raise UserError(f"--unsafe-budget must not be negative, but it is {config.unsafe_budget}.")
    if config.unsafe_budget is not None and config.cost == "none":
        raise UserError("--unsafe-budget bounds a cost, and --cost none has none: choose a cost.")
    most = COST_MOST.get(config.cost, math.inf)
    if config.unsafe_budget is not None and config.unsafe_budget >= most:
        raise UserError(
            f"--unsafe-budget {config.unsafe_budget:g} bounds nothing: a {config.cost} is never above {most:g}. Give"
            " less."
        )
    if config.multiplier_rule in ("exponential", "log_adam") and config.multiplier == 0:
        raise UserError(
            f"--multiplier-rule {config.multiplier_rule} moves log lambda and cannot start from --multiplier 0: give"
            " a positive one."
        )
    for name, known in (
        ("reward", ("auto", "steered", "alignment")),
        ("second_reward", ("alignment", "none")),
        ("cost", ("probability", "coordinate", "none")),
        ("utility", ("alignment",)),
    ):
        value = getattr(config, name)
        if value not in known and ":" not in value:
            raise UserError(f"{flag(name)} must be {', '.join(known)} or the module:name of your own, not {value!r}.")
