"""The training of a text-to-image model, epoch by epoch: sample groups, score them, learn, measure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from saddlepoint.constrained.lagrangian import effective_multiplier
from saddlepoint.safediffusion.config import RunConfig, SafeDiffusionConfig
from saddlepoint.safediffusion.grpo import (
    combined_rewards,
    common_deviation,
    equal_groups,
    group_advantages,
    lagrangian_rewards,
)
from saddlepoint.safediffusion.held_out import HeldOut
from saddlepoint.safediffusion.learner import Learner, Minibatch
from saddlepoint.safediffusion.log import save_grid
from saddlepoint.safediffusion.prompts import PromptSets, epoch_prompts
from saddlepoint.safediffusion.reward import Scores, scored
from saddlepoint.safediffusion.rollout import Noise, Rollout, Studio
from saddlepoint.train import checkpoint
from saddlepoint.train.log import RunLog
from saddlepoint.train.signals import StopRequest
from saddlepoint.train.training import Parts, Salvageable
from saddlepoint.types import ForeignFault

START, STEPS, ORDER, TIMES, RENOISED = range(5)
"""the streams of random numbers that are derived from a run's seed; each is followed by the epoch and the image's place
in it"""
GRID = (4, 8)
"""prompts and images of each in an epoch's sample grid"""


class Experience:
    """What one process learns from in one epoch: the rollouts of its groups, the images of a group one after the
    other."""

    def __init__(self, prompts: list[str], groups: list[int], rollouts: list[Rollout]) -> None:
        self.prompts, self.groups = prompts, groups
        self.images, self.latents, self.log_probs = (
            torch.cat(part) for part in zip(*(rollout[:3] for rollout in rollouts))
        )
        means = [rollout.means for rollout in rollouts if rollout.means is not None]
        self.means = torch.cat(means) if means else None

    def place(self, row: int, group_size: int) -> tuple[int, int]:
        """Group and image of a row, in the epoch."""
        return self.groups[row // group_size], row % group_size


class Trainer:
    """The training that ``train.driver`` drives epoch by epoch: its state, and how it moves by one. ``samples``: where
    grids of pictures go, None for nowhere.

    Every random draw is a function of the seed, the epoch and the image's place in the epoch, so there is no random
    state to save, and what is sampled does not depend on the number of processes or on the batch sizes, up to the
    rounding of the products.
    """

    unit: ClassVar[str] = "epoch"
    total_flag: ClassVar[str] = "--epochs"

    def __init__(
        self,
        run: RunConfig,
        config: SafeDiffusionConfig,
        samples: Path | None,
        prompts: PromptSets,
        studio: Studio,
        scores: Scores,
        learner: Learner,
        accelerator: Any,
        log: RunLog,
        stop: StopRequest,
    ) -> None:
        self.run_config, self.config, self.samples, self.prompts = run, config, samples, prompts
        self.studio, self.scores, self.agent, self.accelerator, self.log, self.stop = (
            studio,
            scores,
            learner,
            accelerator,
            log,
            stop,
        )
        self.learnt = range(config.steps) if config.method == "nft" else studio.policy.learnt
        """denoising steps that may be learnt from; nft needs no noise"""
        self.trained_steps = max(1, round(config.step_share * len(self.learnt)))
        """of each image"""
        self.held_out = HeldOut(config, prompts.held_out, studio, scores, run.seed)
        self.device = studio.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.step = 0
        self.metrics: dict[str, float] = {}  # of the last epoch
        self.warning: str | None = None  # of the last held-out measure
        self.largest_deviation = 0.0  # of an epoch's objective within its groups
        self.peers = AcceleratedPeers(accelerator, self.device)

    @property
    def updates(self) -> int:
        return self.step

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Take up a checkpoint."""
        self.agent.load_state_dict(saved.learner)
        self.step = saved.step
        self.largest_deviation = float(saved.state["largest_deviation"])
        self.held_out.load_state_dict(saved.state["held_out"])

    def learn(self) -> bool:
        """Nothing is owed between two epochs."""
        return True

    def advance(self) -> None:
        """One epoch, unless a stop is asked for while it samples: then nothing has changed yet, and the epoch is begun
        anew on resume."""
        began = time.monotonic()
        experience = self._sample()
        if experience is None:
            return
        sampled = time.monotonic()
        try:
            advantages, metrics = self._judge(experience)
        except ForeignFault as error:  # of a score, which is asked before anything moves
            raise Salvageable from error
        judged = time.monotonic()
        metrics |= self._learn(experience, advantages)
        metrics |= {
            "train/sampling_s": sampled - began,
            "train/scoring_s": judged - sampled,
            "train/learning_s": time.monotonic() - judged,
        }
        self.step += 1
        rows, columns = (min(most, had) for most, had in zip(GRID, (len(experience.groups), self.config.group_size)))
        grouped = experience.images.unflatten(0, (-1, self.config.group_size))
        self._grid(f"epoch-{self.step:06d}", grouped[:rows, :columns])
        self.metrics = metrics

    def training_metrics(self, regular: bool) -> dict[str, float]:
        return self.metrics

    def _grid(self, name: str, images: Tensor) -> None:
        if self.samples is not None:
            self.samples.mkdir(exist_ok=True)
            save_grid(self.samples / f"{name}.png", images)

    def _sample(self) -> Experience | None:
        """The rollouts of this process's groups: every ``world``-th prompt of the epoch. None when asked to stop."""
        cfg, seed = self.config, self.run_config.seed
        chosen = epoch_prompts(self.prompts.training, self.step, cfg.prompts, seed)
        groups = list(range(self.rank, cfg.prompts, self.world))
        rows = [(group, image) for group in groups for image in range(cfg.group_size)]
        prompts = [chosen[group].text for group, _ in rows]
        rollouts = []
        for first in range(0, len(rows), cfg.sample_batch):
            part = slice(first, first + cfg.sample_batch)
            shared = {"all": 0, "group": 1, "image": 2}[cfg.resolved_start]
            starts = [(seed, START, self.step, *row[:shared]) for row in rows[part]]
            steps = [(seed, STEPS, self.step, *row) for row in rows[part]]
            noise = Noise(starts, steps, self.studio.shape, self.device)
            rollout = self.studio.sample(prompts[part], noise, cfg.log_prob, means=cfg.ratio_center)
            # it needs the pictures alone
            rollouts.append(rollout._replace(latents=rollout.latents[:, -1:]) if cfg.method == "nft" else rollout)
            self.log.progress(self.step + 0.5 * first / len(rows), doing="sampling")
            if self._stopping():
                return None
        return Experience(prompts, groups, rollouts)

    def _judge(self, experience: Experience) -> tuple[Tensor, dict[str, float]]:
        """Advantages (groups of this process, group), and what the epoch's rewards and costs were. Moves the
        multiplier."""
        cfg = self.config
        others = {"second-reward": self.scores.second, "cost": self.scores.cost}
        asked = {"reward": self.scores.reward} | {name: score for name, score in others.items() if score}
        found: dict[str, list[Tensor]] = {name: [] for name in asked}
        for first in range(0, len(experience.images), cfg.sample_batch):
            part = slice(first, first + cfg.sample_batch)
            images, prompts = experience.images[part], experience.prompts[part]
            for name, values in found.items():
                values.append(scored(asked[name], f"--{name}", images, prompts))
        rewards = self._all_groups(torch.cat(found["reward"]))
        metrics = {
            "train/reward_mean": float(rewards.mean()),
            "train/reward_std": float(rewards.std()),
            "train/group_std": float(rewards.std(-1).mean()),
        }
        objective = rewards
        if "second-reward" in found:
            second = self._all_groups(torch.cat(found["second-reward"]))
            metrics["train/second_reward_mean"] = float(second.mean())
            objective = combined_rewards(rewards, second, cfg.second_weight)
        if "cost" in found:
            costs = self._all_groups(torch.cat(found["cost"]))
            metrics["train/cost_mean"] = float(costs.mean())
            if cfg.unsafe_budget is not None:
                objective = lagrangian_rewards(
                    objective, costs, cfg.unsafe_budget, self.agent.multiplier.to(self.device), cfg.resolved_rho
                )
                metrics["train/multiplier"] = float(self.agent.multiplier)
                violation = costs.double().mean() - cfg.unsafe_budget
                slope = effective_multiplier(violation.cpu(), self.agent.multiplier, cfg.resolved_rho)
                metrics["train/effective_multiplier"] = float(slope)
                self.agent.move_multiplier(violation)
        deviation = self._deviation(objective)
        if deviation is not None:
            metrics["train/advantage_scale"] = float(deviation)
        advantages = group_advantages(objective, cfg.advantage_clip, deviation)
        metrics["train/skipped_groups"] = float(equal_groups(objective).sum())
        return advantages[self.rank :: self.world], metrics

    def _deviation(self, objective: Tensor) -> Tensor | None:
        """What advantages are divided by; None for each group's own deviation."""
        scale, now = self.config.resolved_advantage_scale, common_deviation(objective)
        self.largest_deviation = max(self.largest_deviation, float(now))
        return {"group": None, "epoch": now, "largest": torch.full_like(now, self.largest_deviation)}[scale]

    def _learn(self, experience: Experience, advantages: Tensor) -> dict[str, float]:
        """The epoch's optimiser steps. Groups without an advantage are left out, unless they have a KL to pay; the loss
        is a mean over all images of an optimiser step all the same, so that leaving them out, or to another process,
        changes nothing."""
        cfg = self.config
        trained = torch.zeros((), device=self.device) + advantages.count_nonzero() + (cfg.kl > 0)
        if not float(self.accelerator.reduce(trained, "sum")):
            self.log.say(f"epoch {self.step + 1}: every group's rewards are equal, so there is nothing to learn from")
            return {}
        totals: dict[str, Tensor] = {}
        norms = []
        weight = cfg.updates / (cfg.images * self.trained_steps)
        rounds = [(inner, update) for inner in range(cfg.inner_epochs) for update in range(cfg.updates)]
        self.agent.begin_epoch()
        if self.studio.policy.low_precision and cfg.method == "grpo":
            self._score_again(experience, advantages, rounds)
        for number, (inner, update) in enumerate(rounds):
            for at, k in self._places(experience, advantages, inner, update):
                batch = self._minibatch(experience, advantages, at, k)
                found = self.agent.accumulate(batch, self.studio.embeddings.empty, weight * len(batch.k))
                for name, value in (found | {"rows": torch.ones_like(found["policy_loss"])}).items():
                    totals[name] = totals.get(name, 0) + value * len(batch.k)
                self.log.progress(self.step + 0.5 + 0.5 * number / len(rounds), doing="learning")
            norms.append(self.agent.update(lambda gradient: self.accelerator.reduce(gradient, "sum")))
        names = [*self.agent.metrics, "rows"]
        sums = self.accelerator.reduce(
            torch.stack([totals.get(name, torch.zeros((), device=self.device)) for name in names]), "sum"
        ).tolist()
        return {f"train/{name}": value / sums[-1] for name, value in zip(names[:-1], sums)} | {
            "train/gradient_norm": float(torch.stack(norms).mean())
        }

    def _score_again(self, experience: Experience, advantages: Tensor, rounds: Sequence[tuple[int, int]]) -> None:
        """The log-probabilities of what is learnt from, by passes such as learning makes, before anything is learnt.

        A pass of another size may take other kernels on a GPU, whose rounding alone can move a ratio beyond the clip
        range in low precision. It costs the forward half of learning once more.
        """
        for inner, update in rounds:
            for at, k in self._places(experience, advantages, inner, update):
                log_probs, means = self.agent.score(
                    self._minibatch(experience, advantages, at, k), self.studio.embeddings.empty
                )
                experience.log_probs[at, k] = log_probs
                if experience.means is not None:
                    experience.means[at, k] = means

    def _minibatch(self, experience: Experience, advantages: Tensor, at: Tensor, k: Tensor) -> Minibatch:
        """The steps ``k`` of the images ``at``, (batch,) each."""
        told = self.studio.embeddings([experience.prompts[row] for row in at.tolist()])
        if self.config.method == "nft":
            clean = experience.latents[at, -1]
            places = zip(at.tolist(), k.tolist())
            paths = [
                (self.run_config.seed, RENOISED, self.step, *experience.place(row, self.config.group_size), level)
                for row, level in places
            ]
            noise = Noise(paths, [], self.studio.shape, self.device).start()
            return Minibatch(clean, noise, k, torch.zeros_like(k, dtype=torch.float32), advantages.flatten()[at], told)
        latents, following, log_probs = (
            experience.latents[at, k],
            experience.latents[at, k + 1],
            experience.log_probs[at, k],
        )
        means = None if experience.means is None else experience.means[at, k]
        return Minibatch(latents, following, k, log_probs, advantages.flatten()[at], told, means)

    def _places(
        self, experience: Experience, advantages: Tensor, inner: int, update: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The denoising steps that one optimiser step learns from, as images and steps: those of its share of every
        group, each image's in a random order of time.

        The gradients of all of them are summed before the optimiser moves, so steps of several images and times share a
        pass.
        """
        cfg, seed = self.config, self.run_config.seed
        share = cfg.group_size // cfg.updates
        rows, times = [], []
        for place, group in enumerate(experience.groups):
            if not cfg.kl and not bool(advantages[place].any()):
                continue
            order = np.random.default_rng([seed, ORDER, self.step, inner, group]).permutation(cfg.group_size)
            for image in order[update * share : (update + 1) * share].tolist():
                rows.append(place * cfg.group_size + image)
                order_of_time = np.random.default_rng([seed, TIMES, self.step, inner, group, image]).permutation(
                    len(self.learnt)
                )
                times.append([self.learnt[place] for place in order_of_time[: self.trained_steps]])
        pairs = [(row, of_row[slot]) for slot in range(self.trained_steps) for row, of_row in zip(rows, times)]
        for first in range(0, len(pairs), cfg.train_batch):
            at, k = torch.tensor(pairs[first : first + cfg.train_batch], device=self.device).T
            yield at, k

    def evaluate(self) -> dict[str, float] | None:
        """The held-out measure, on the averaged weights where there are any; it touches nothing that training depends
        on."""
        if not self.prompts.held_out:
            return {}
        with self.agent.averaged():
            metrics, self.warning, images = self.held_out.measure(self.accelerator)
        self._grid(f"held-out-{self.step:06d}", images[None, : GRID[1]])
        return metrics

    def evaluation_words(self, metrics: dict[str, float]) -> str:
        parts = [
            f"{name} {metrics[f'eval/{name}_mean']:.4g}"
            for name in ("reward", "utility", "cost")
            if f"eval/{name}_mean" in metrics
        ]
        return f"held out: {', '.join(parts)}" + (f"\nwarning: {self.warning}" if self.warning else "")

    def merit(self, metrics: dict[str, float]) -> float | None:
        """No best/ is kept: a second copy of a whole UNet is large, and which of reward and utility counts is the
        user's to say."""
        return None

    def state(self) -> Parts:
        """What the next epoch depends on."""
        return Parts(
            self.agent.state_dict(),
            {},
            {"largest_deviation": self.largest_deviation, "held_out": self.held_out.state_dict()},
        )

    def _all_groups(self, values: Tensor) -> Tensor:
        """(images of this process,) -> (groups of the epoch, group): the values of all processes, in the order of the
        epoch's prompts."""
        gathered = self.accelerator.gather(values).view(self.world, -1, self.config.group_size)
        return gathered.transpose(0, 1).reshape(-1, self.config.group_size)

    def _stopping(self) -> bool:
        return self.peers.any(self.stop())


class AcceleratedPeers:
    """The processes of an accelerator, for the driver: a signal reaches them at different moments, and all must leave
    at the same one."""

    def __init__(self, accelerator: Any, device: torch.device) -> None:
        self._accelerator, self._device = accelerator, device
        self.main, self.count = bool(accelerator.is_main_process), int(accelerator.num_processes)

    def any(self, mine: bool) -> bool:
        """Whether it holds in one of them."""
        return bool(self._accelerator.reduce(torch.tensor(float(mine), device=self._device), "sum"))

    def wait(self) -> None:
        """Until all are here."""
        self._accelerator.wait_for_everyone()
