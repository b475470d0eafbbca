"""The held-out measure beside the reward: the same prompts from the same noise, compared picture by picture with the
start of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saddlepoint.safediffusion.config import SafeDiffusionConfig
from saddlepoint.safediffusion.prompts import Prompt
from saddlepoint.safediffusion.reward import Scores, scored
from saddlepoint.safediffusion.rollout import Noise, Studio

NOISE = 100
"""the stream of its noise, apart from those of training"""
CHOICE = 103
"""the stream that chooses its prompts"""
SURE = 2.0
"""standard errors from which a change counts"""


class HeldOut:
    """Reward, cost and utility of held-out prompts. The utility is that of prompts not labelled unsafe: there a safe
    model should not do as it is told.

    Of more prompts than ``held_out_images`` it takes a random choice, which depends on ``seed`` alone, in the file's
    order.
    """

    def __init__(
        self, config: SafeDiffusionConfig, prompts: Sequence[Prompt], studio: Studio, scores: Scores, seed: int
    ) -> None:
        # Not the first ones: a file may be sorted by its labels.
        order = np.random.default_rng([seed, CHOICE]).permutation(len(prompts))
        self.prompts = [prompts[i] for i in sorted(order[: config.held_out_images].tolist())]
        self.studio, self.scores, self.seed, self.batch = studio, scores, seed, config.sample_batch
        useful = np.array([not prompt.unsafe for prompt in self.prompts], bool)
        self.useful = useful if useful.any() else np.ones(len(self.prompts), bool)
        self.first: dict[str, np.ndarray] = {}  # reward and utility of each prompt at the start of the run

    def measure(self, accelerator: Any) -> tuple[dict[str, float], str | None, Tensor]:
        """Metrics, one sentence when the reward has risen and the utility has fallen since the first measure, and this
        process's pictures."""
        mine = list(range(accelerator.process_index, len(self.prompts), accelerator.num_processes))
        asked = {"reward": self.scores.reward, "utility": self.scores.utility} | (
            {"cost": self.scores.cost} if self.scores.cost else {}
        )
        found = torch.zeros(len(asked), len(self.prompts), device=self.studio.device)
        pictures = []
        for first in range(0, len(mine), self.batch):
            part = mine[first : first + self.batch]
            prompts = [self.prompts[i].text for i in part]
            paths = [(self.seed, NOISE, i) for i in part]
            images = self.studio.render(prompts, Noise(paths, paths, self.studio.shape, self.studio.device))
            for row, (name, score) in enumerate(asked.items()):
                found[row, part] = scored(score, f"--{name}", images, prompts)
            pictures.append(images)
        values = dict(zip(asked, accelerator.reduce(found, "sum").cpu().double().numpy()))
        values["utility"] = values["utility"][self.useful]
        metrics = {f"eval/{name}_mean": float(value.mean()) for name, value in values.items()}
        if not self.first:
            self.first = {name: values[name] for name in ("reward", "utility")}
        changes = {name: _change(values[name] - first) for name, first in self.first.items()}
        metrics |= {f"eval/{name}_change": change for name, (change, _) in changes.items()}
        hacked = (
            changes["reward"][0] > SURE * changes["reward"][1] and changes["utility"][0] < -SURE * changes["utility"][1]
        )
        metrics["eval/reward_hacking"] = float(hacked)
        warning = None
        if hacked:
            warning = (
                f"on held-out prompts the reward has risen by {changes['reward'][0]:.3g} and the utility has fallen by"
                f" {-changes['utility'][0]:.3g}"
                " since the start: the model may be learning to please the reward alone (raise --kl, or stop at an"
                " earlier checkpoint)."
            )
        empty = torch.zeros(0, 3, 1, 1)
        return metrics, warning, torch.cat(pictures) if pictures else empty

    def state_dict(self) -> dict[str, np.ndarray]:
        return self.first

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self.first = state


def _change(difference: np.ndarray) -> tuple[float, float]:
    """Mean of paired differences and its standard error (infinite for one pair: then nothing is certain)."""
    if len(difference) < 2:
        return float(difference.mean()), float("inf")
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)
