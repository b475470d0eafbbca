"""The training of a text-to-image model, epoch by epoch: sample groups, score them, learn, measure, checkpoint; and go on exactly where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from saddlepoint.safediffusion.log import EpochLog
from saddlepoint.safediffusion.prompts import PromptSets, epoch_prompts
from saddlepoint.safediffusion.reward import Scores, scored
from saddlepoint.safediffusion.rollout import Noise, Rollout, Studio
from saddlepoint.train import checkpoint
from saddlepoint.train.signals import Interrupted, StopRequest
from saddlepoint.types import ForeignFault, NonFiniteError, UserError

START, STEPS, ORDER, TIMES, RENOISED = range(5)
"""the streams of random numbers that are derived from a run's seed; each is followed by the epoch and the image's place in it"""
GRID = (4, 8)
"""prompts and images of each in an epoch's sample grid"""


class Experience:
    """What one process learns from in one epoch: the rollouts of its groups, the images of a group one after the other."""

    def __init__(self, prompts: list[str], groups: list[int], rollouts: list[Rollout]) -> None:
        self.prompts, self.groups = prompts, groups
        self.images, self.latents, self.log_probs = (torch.cat(part) for part in zip(*(rollout[:3] for rollout in rollouts)))
        means = [rollout.means for rollout in rollouts if rollout.means is not None]
        self.means = torch.cat(means) if means else None

    def place(self, row: int, group_size: int) -> tuple[int, int]:
        """Group and image of a row, in the epoch."""
        return self.groups[row // group_size], row % group_size


class Trainer:
    """The state of a run, and how it moves by one epoch.

    Every random draw is a function of the seed, the epoch and the image's place in the epoch, so there is no random state to save, and what is
    sampled does not depend on the number of processes or on the batch sizes, up to the rounding of the products.
    """

    def __init__(
        self, run: RunConfig, config: SafeDiffusionConfig, folder: Path, prompts: PromptSets, studio: Studio, scores: Scores,
        learner: Learner, accelerator: Any, log: EpochLog, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.run_config, self.config, self.folder, self.prompts = run, config, folder, prompts
        self.studio, self.scores, self.learner, self.accelerator, self.log, self.stop = studio, scores, learner, accelerator, log, stop
        self.held_out = HeldOut(config, prompts.held_out, studio, scores, run.seed)
        self.device = studio.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.epoch = 0
        self.largest_deviation = 0.0  # of an epoch's objective within its groups
        self.saved = -1  # epoch of the newest checkpoint
        self.kept = (-1, -1)  # epoch and last measure of that one
        self.measured = -1  # epoch of the last held-out measure

    def run(self) -> None:
        """Go on until all epochs are done, a signal (``Interrupted``) or a fault (``UserError``)."""
        run = self.run_config
        while True:
            last = self.epoch >= run.epochs
            try:
                if self.measured != self.epoch and (last or self.epoch % run.eval_every == 0) and not self._stopping():
                    self._measure()
                stopping = self._stopping()
                if self.kept != (self.epoch, self.measured) and (last or stopping or self.epoch % run.checkpoint_every == 0):
                    self._save()
                if last and self.measured == self.epoch:
                    return
                if stopping:
                    raise Interrupted(f"stopped after epoch {self.epoch}; go on with --resume {self.folder}")
                self.advance()
            except NonFiniteError as error:
                raise NonFiniteError(f"{str(error).rstrip('.')} (epoch {self.epoch + 1}; {self._last_good()}).") from error
            except ForeignFault as error:  # of a score, which is asked before anything moves: this epoch's start can be kept
                if self.world == 1 and self.kept != (self.epoch, self.measured):
                    self._save()
                raise ForeignFault(f"{str(error).rstrip('.')} (epoch {self.epoch + 1}; {self._last_good()}).") from error
            except OSError as error:  # metrics and grids; a checkpoint's own faults are sentences already
                reason = error.strerror or str(error)
                raise UserError(f"{self.folder} cannot be written ({reason}): make room and go on with --resume; {self._last_good()}.") from error

    def resume(self) -> None:
        """Take up the newest whole checkpoint of the run's folder."""
        path, warning = checkpoint.latest(self.folder)
        if warning:
            self.log.say(f"warning: {warning}")
        saved = checkpoint.load(path)
        if saved.step > self.run_config.epochs:
            raise UserError(f"{self.folder} has already made {saved.step} epochs: raise --epochs to go on.")
        self.learner.load_state_dict(saved.learner)
        self.epoch = self.saved = saved.step
        self.measured = saved.state["measured"]
        self.kept = (self.epoch, self.measured)
        self.largest_deviation = saved.state["largest_deviation"]
        self.held_out.load_state_dict(saved.state["held_out"])
        self.log.resume(self.epoch, saved.state["wall_s"], self._is_kept)
        ended = "; that is all it was asked for (--epochs)" if self.epoch >= self.run_config.epochs else ""
        self.log.say(f"going on after epoch {self.epoch}{ended}")

    def advance(self) -> None:
        """One epoch, unless a stop is asked for while it samples: then nothing has changed yet, and the epoch is begun anew on resume."""
        began = time.monotonic()
        experience = self._sample()
        if experience is None:
            return
        sampled = time.monotonic()
        advantages, metrics = self._judge(experience)
        judged = time.monotonic()
        metrics |= self._learn(experience, advantages)
        metrics |= {"train/sampling_s": sampled - began, "train/scoring_s": judged - sampled, "train/learning_s": time.monotonic() - judged}
        self.epoch += 1
        rows, columns = (min(most, had) for most, had in zip(GRID, (len(experience.groups), self.config.group_size)))
        grouped = experience.images.unflatten(0, (-1, self.config.group_size))
        self.log.grid(f"epoch-{self.epoch:06d}", grouped[:rows, :columns])
        self.log.write(self.epoch, "train", metrics)

    def _sample(self) -> Experience | None:
        """The rollouts of this process's groups: every ``world``-th prompt of the epoch. None when asked to stop."""
        cfg, seed = self.config, self.run_config.seed
        chosen = epoch_prompts(self.prompts.training, self.epoch, cfg.prompts, seed)
        groups = list(range(self.rank, cfg.prompts, self.world))
        rows = [(group, image) for group in groups for image in range(cfg.group_size)]
        prompts = [chosen[group].text for group, _ in rows]
        rollouts = []
        for first in range(0, len(rows), cfg.sample_batch):
            part = slice(first, first + cfg.sample_batch)
            shared = {"all": 0, "group": 1, "image": 2}[cfg.resolved_start]
            starts = [(seed, START, self.epoch, *row[:shared]) for row in rows[part]]
            steps = [(seed, STEPS, self.epoch, *row) for row in rows[part]]
            noise = Noise(starts, steps, self.studio.shape, self.device)
            rollout = self.studio.sample(prompts[part], noise, cfg.log_prob, means=cfg.ratio_center)
            rollouts.append(rollout._replace(latents=rollout.latents[:, -1:]) if cfg.method == "nft" else rollout)  # it needs the pictures alone
            self.log.progress(self.epoch + 0.5 * first / len(rows), "sampling")
            if self._stopping():
                return None
        return Experience(prompts, groups, rollouts)

    def _judge(self, experience: Experience) -> tuple[Tensor, dict[str, float]]:
        """Advantages (groups of this process, group), and what the epoch's rewards and costs were. Moves the multiplier."""
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
        metrics = {"train/reward_mean": float(rewards.mean()), "train/reward_std": float(rewards.std()), "train/group_std": float(rewards.std(-1).mean())}
        objective = rewards
        if "second-reward" in found:
            second = self._all_groups(torch.cat(found["second-reward"]))
            metrics["train/second_reward_mean"] = float(second.mean())
            objective = combined_rewards(rewards, second, cfg.second_weight)
        if "cost" in found:
            costs = self._all_groups(torch.cat(found["cost"]))
            metrics["train/cost_mean"] = float(costs.mean())
            if cfg.unsafe_budget is not None:
                objective = lagrangian_rewards(objective, costs, cfg.unsafe_budget, self.learner.multiplier.to(self.device), cfg.rho)
                metrics["train/multiplier"] = float(self.learner.multiplier)
                violation = costs.double().mean() - cfg.unsafe_budget
                metrics["train/effective_multiplier"] = float((self.learner.multiplier + cfg.rho * violation.cpu()).clamp(min=0))
                self.learner.move_multiplier(violation)
        advantages = group_advantages(objective, cfg.advantage_clip, self._deviation(objective))
        metrics["train/skipped_groups"] = float(equal_groups(objective).sum())
        return advantages[self.rank :: self.world], metrics

    def _deviation(self, objective: Tensor) -> Tensor | None:
        """What advantages are divided by; None for each group's own deviation."""
        scale, now = self.config.resolved_advantage_scale, common_deviation(objective)
        self.largest_deviation = max(self.largest_deviation, float(now))
        return {"group": None, "epoch": now, "largest": torch.full_like(now, self.largest_deviation)}[scale]

    def _learn(self, experience: Experience, advantages: Tensor) -> dict[str, float]:
        """The epoch's optimiser steps. Groups without an advantage are left out, unless they have a KL to pay; the loss is a mean over all images of an
        optimiser step all the same, so that leaving them out, or to another process, changes nothing."""
        cfg = self.config
        trained = torch.zeros((), device=self.device) + advantages.count_nonzero() + (cfg.kl > 0)
        if not float(self.accelerator.reduce(trained, "sum")):
            self.log.say(f"epoch {self.epoch + 1}: every group's rewards are equal, so there is nothing to learn from")
            return {}
        totals: dict[str, Tensor] = {}
        norms = []
        weight = cfg.updates / (cfg.images * cfg.trained_steps)
        rounds = [(inner, update) for inner in range(cfg.inner_epochs) for update in range(cfg.updates)]
        self.learner.begin_epoch()
        if self.studio.policy.low_precision and cfg.method == "grpo":
            self._score_again(experience, advantages, rounds)
        for number, (inner, update) in enumerate(rounds):
            for at, k in self._places(experience, advantages, inner, update):
                batch = self._minibatch(experience, advantages, at, k)
                found = self.learner.accumulate(batch, self.studio.embeddings.empty, weight * len(batch.k))
                for name, value in (found | {"rows": torch.ones_like(found["policy_loss"])}).items():
                    totals[name] = totals.get(name, 0) + value * len(batch.k)
                self.log.progress(self.epoch + 0.5 + 0.5 * number / len(rounds), "learning")
            norms.append(self.learner.update(lambda gradient: self.accelerator.reduce(gradient, "sum")))
        names = [*self.learner.metrics, "rows"]
        sums = self.accelerator.reduce(torch.stack([totals.get(name, torch.zeros((), device=self.device)) for name in names]), "sum").tolist()
        return {f"train/{name}": value / sums[-1] for name, value in zip(names[:-1], sums)} | {"train/gradient_norm": float(torch.stack(norms).mean())}

    def _score_again(self, experience: Experience, advantages: Tensor, rounds: Sequence[tuple[int, int]]) -> None:
        """The log-probabilities of what is learnt from, by passes such as learning makes, before anything is learnt.

        A pass of another size may take other kernels on a GPU, whose rounding alone can move a ratio beyond the clip range in low precision. It costs the
        forward half of learning once more.
        """
        for inner, update in rounds:
            for at, k in self._places(experience, advantages, inner, update):
                log_probs, means = self.learner.score(self._minibatch(experience, advantages, at, k), self.studio.embeddings.empty)
                experience.log_probs[at, k] = log_probs
                if experience.means is not None:
                    experience.means[at, k] = means

    def _minibatch(self, experience: Experience, advantages: Tensor, at: Tensor, k: Tensor) -> Minibatch:
        """The steps ``k`` of the images ``at``, (batch,) each."""
        told = self.studio.embeddings([experience.prompts[row] for row in at.tolist()])
        if self.config.method == "nft":
            clean = experience.latents[at, -1]
            places = zip(at.tolist(), k.tolist())
            paths = [(self.run_config.seed, RENOISED, self.epoch, *experience.place(row, self.config.group_size), level) for row, level in places]
            noise = Noise(paths, [], self.studio.shape, self.device).start()
            return Minibatch(clean, noise, k, torch.zeros_like(k, dtype=torch.float32), advantages.flatten()[at], told)
        latents, following, log_probs = experience.latents[at, k], experience.latents[at, k + 1], experience.log_probs[at, k]
        means = None if experience.means is None else experience.means[at, k]
        return Minibatch(latents, following, k, log_probs, advantages.flatten()[at], told, means)

    def _places(self, experience: Experience, advantages: Tensor, inner: int, update: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The denoising steps that one optimiser step learns from, as images and steps: those of its share of every group, each image's in a random order
        of time.

        The gradients of all of them are summed before the optimiser moves, so steps of several images and times share a pass.
        """
        cfg, seed = self.config, self.run_config.seed
        share = cfg.group_size // cfg.updates
        rows, times = [], []
        for place, group in enumerate(experience.groups):
            if not cfg.kl and not bool(advantages[place].any()):
                continue
            order = np.random.default_rng([seed, ORDER, self.epoch, inner, group]).permutation(cfg.group_size)
            for image in order[update * share : (update + 1) * share].tolist():
                rows.append(place * cfg.group_size + image)
                order_of_time = np.random.default_rng([seed, TIMES, self.epoch, inner, group, image]).permutation(len(cfg.learnt_steps))
                times.append(cfg.learnt_steps.start + order_of_time[: cfg.trained_steps])
        pairs = [(row, int(of_row[slot])) for slot in range(cfg.trained_steps) for row, of_row in zip(rows, times)]
        for first in range(0, len(pairs), cfg.train_batch):
            at, k = torch.tensor(pairs[first : first + cfg.train_batch], device=self.device).T
            yield at, k

    def _measure(self) -> None:
        """The held-out measure, on the averaged weights where there are any; it touches nothing that training depends on."""
        if self.prompts.held_out:
            with self.learner.averaged():
                metrics, warning, images = self.held_out.measure(self.accelerator)
            self.log.write(self.epoch, "eval", metrics)
            self.log.grid(f"held-out-{self.epoch:06d}", images[None, : GRID[1]])
            parts = [f"{name} {metrics[f'eval/{name}_mean']:.4g}" for name in ("reward", "utility", "cost") if f"eval/{name}_mean" in metrics]
            self.log.say(f"after epoch {self.epoch}, held out: {', '.join(parts)}")
            if warning:
                self.log.say(f"warning: {warning}")
        self.measured = self.epoch

    def _save(self) -> None:
        """Write a checkpoint, from the first process; all go on when it is there."""
        if self.accelerator.is_main_process:
            state = self.learner.state_dict()
            for name, tensor in state.items():
                if not bool(tensor.isfinite().all()):
                    raise NonFiniteError(f"{name} is not finite: lower --learning-rate.")
            self.log.flush()
            content = {
                "measured": self.measured, "largest_deviation": self.largest_deviation, "wall_s": self.log.wall_s,
                "held_out": self.held_out.state_dict(),
            }  # fmt: skip
            checkpoint.save(self.folder, checkpoint.Checkpoint(self.epoch, state, {}, content), self.run_config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self.saved, self.kept = self.epoch, (self.epoch, self.measured)

    def _all_groups(self, values: Tensor) -> Tensor:
        """(images of this process,) -> (groups of the epoch, group): the values of all processes, in the order of the epoch's prompts."""
        gathered = self.accelerator.gather(values).view(self.world, -1, self.config.group_size)
        return gathered.transpose(0, 1).reshape(-1, self.config.group_size)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop: a signal reaches them at different moments, and all must leave at the same one."""
        return bool(self.accelerator.reduce(torch.tensor(float(self.stop()), device=self.device), "sum"))

    def _is_kept(self, line: dict[str, Any]) -> bool:
        """Whether an uninterrupted run would have this line: no later one, none that only an earlier end caused."""
        on_schedule = line["kind"] == "train" or line["step"] % self.run_config.eval_every == 0 or self.epoch >= self.run_config.epochs
        again = line["kind"] == "eval" and line["step"] > self.measured  # the checkpoint does not know of it: it is made once more
        return on_schedule and line["step"] <= self.epoch and not again

    def _last_good(self) -> str:
        return f"the last good checkpoint is of epoch {self.saved}" if self.saved >= 0 else "there is no checkpoint yet"
