"""``Formulas`` in C++ (formulas.cpp), for float32 on a CPU."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saddlepoint.algd.config import ALGDConfig
from saddlepoint.algd.energy import Lagrangian, Penalty
from saddlepoint.algd.formulas import Formulas, Means, Proposals
from saddlepoint.algd.policy import ChainNoise, DiffusionPolicy, Level
from saddlepoint.nn import native
from saddlepoint.nn.native import floats, pointer, require, structure
from saddlepoint.types import Batch

ARGUMENTS = {
    "bellman": "iiiiii" "pppppp" "pp", "lagrangian": "pii" "pppppp", "means": "iiii" "pppp",
    "propose": "pii" "ppppp" "ppp", "weigh": "iif" "ppipip" "p", "target": "piif" "ppppp", "match": "iifif" "pppppp" "pp", "upstream": "piifppf" "ppppp" "pp",
}  # fmt: skip
KINDS = {"none": 0, "plain": 1, "augmented": 2}
BOOTSTRAPS = {"own": 0, "pair": 1, "largest": 2}

_Box = structure("size", "scale bias")


class _Prices(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("constraints", "members", "kind")] + [
        (name, ctypes.c_void_p) for name in ("multiplier", "budget", "unit")
    ] + [(name, ctypes.c_float) for name in ("rho", "risk_std")]  # fmt: skip


def library() -> ctypes.CDLL | None:
    """The formulas (formulas.cpp), built at the first call; None, with a warning, where that cannot be."""
    return native.library(Path(__file__).with_name("formulas.cpp"), **ARGUMENTS)


def formulas(config: ALGDConfig, policy: DiffusionPolicy, constraints: int, fused: bool) -> Formulas:
    """Those in C++ if ``fused``, where they can be built and are for this configuration."""
    plain = config.score_space == "latent" and config.prediction != "guided" and config.score_form == "gradient"
    built = library() if fused and plain else None
    return Formulas(config, policy, constraints) if built is None else FusedFormulas(config, policy, constraints, built)


class FusedFormulas(Formulas):
    """See ``Formulas``; for scores of the latent in gradient form."""

    def __init__(self, config: ALGDConfig, policy: DiffusionPolicy, constraints: int, built: ctypes.CDLL):
        super().__init__(config, policy, constraints)
        self.built, box = built, policy.box
        self.bounds = [require(each.contiguous(), (len(box.scale),)) for each in box]
        self.box = _Box(len(box.scale), *map(pointer, self.bounds))
        self.discounts = floats((config.gamma, config.cost_gamma))
        self.ratio = self.added = None
        self.constant = 0.0
        if config.entropy != "none":
            self.ratio, self.added = policy.ratio.flatten(), policy.added.flatten()
            self.constant = len(box.scale) * (policy.log_ratio + math.log(policy.process.start) + 0.5 * math.log(2 * math.pi))

    def _call(self, name: str, *arguments: Any) -> None:
        native.call(self.built, name, *(pointer(each) if isinstance(each, Tensor) else each for each in arguments))

    def bellman(self, batch: Batch, reward: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        cfg, rows, members = self.config, len(batch.reward), self.config.cost_members
        given = require(batch.reward, (rows,)), require(batch.cost, (rows, self.constraints)), require(batch.terminated, (rows,))
        reward, cost = require(reward.contiguous(), (2, rows)), require(cost.contiguous(), (self.constraints * members, rows))
        of_reward, of_cost = torch.empty_like(batch.reward), torch.empty_like(cost)
        bootstrap = BOOTSTRAPS[cfg.cost_bootstrap]
        self._call("bellman", rows, self.constraints, members, bootstrap, cfg.nonnegative_costs, cfg.cost_through_termination, self.discounts, *given,
                   reward, cost, of_reward, of_cost)  # fmt: skip
        return of_reward, of_cost

    def lagrangian(self, reward: Tensor, cost: Tensor, penalty: Penalty) -> Lagrangian:
        heads, *lead = reward.shape
        count, rows = self.constraints * self.config.cost_members, math.prod(lead)
        reward, cost = require(reward.contiguous(), (heads, *lead)), require(cost.contiguous(), (count, *lead))
        held = [require(each.contiguous(), (self.constraints,)) for each in (penalty.multiplier, penalty.budget, penalty.unit)]
        prices = _Prices(self.constraints, self.config.cost_members, KINDS[penalty.kind], *map(pointer, held), penalty.rho, penalty.risk_std)
        found = Lagrangian(torch.empty(lead), torch.empty_like(reward), torch.empty_like(cost), torch.empty(self.constraints, *lead))
        self._call("lagrangian", ctypes.addressof(prices), heads, rows, reward, cost, *found)
        return found

    def means(self, energy: Lagrangian) -> Means:
        (count, rows), members = energy.value.shape, len(energy.cost_slope)
        given = require(energy.value, (count, rows)), require(energy.cost_slope, (members, count, rows)), require(energy.risk, (self.constraints, count, rows))
        found = torch.empty(1 + 2 * self.constraints)
        self._call("means", self.constraints, self.config.cost_members, count * rows, rows, *given, found)
        return Means(*found.split([1, self.constraints, self.constraints]))

    def propose(self, point: Tensor, action: Tensor, level: Level, noise: Tensor) -> Proposals:
        (rows, size), count = point.shape, len(noise)
        point, action = require(point.contiguous(), (rows, size)), require(action.contiguous(), (rows, size))
        alpha, sigma = require(level.alpha.contiguous(), (rows,)), require(level.sigma.contiguous(), (rows,))
        noise = require(noise.contiguous(), (count, rows, size))
        found = Proposals(point, torch.empty_like(noise), torch.empty(1 + count, rows, size), torch.empty(count, rows), alpha, sigma)
        self._call("propose", ctypes.addressof(self.box), count, rows, point, alpha, sigma, noise, action, found.candidates, found.actions, found.log_jacobian)
        return found

    def weigh(self, energy: Lagrangian, proposals: Proposals, beta: Tensor) -> tuple[Tensor, Lagrangian]:
        count, rows, _ = proposals.candidates.shape
        jacobian, slopes = proposals.log_jacobian, (energy.reward_slope, energy.cost_slope)
        for tensor in (energy.value, *slopes):
            require(tensor, (*tensor.shape[:-2], 1 + count, rows))
        weights = torch.empty(count, rows)
        self._call("weigh", count, rows, float(beta), energy.value, jacobian, len(slopes[0]), slopes[0], len(slopes[1]), slopes[1], weights)
        return weights, energy  # whose slopes were written into

    def target(self, proposals: Proposals, weights: Tensor, of_action: Tensor, beta: Tensor) -> Tensor:
        count, rows, size = proposals.candidates.shape
        of_action = require(of_action.contiguous(), (1 + count, rows, size))
        found = torch.empty(rows, size)
        weights = require(weights, (count, rows))
        self._call("target", ctypes.addressof(self.box), count, rows, float(beta), proposals.alpha, weights, proposals.actions, of_action, found)
        return found

    def match(self, output: Tensor, point: Tensor, level: Level, target: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        (rows, size), scaled = output.shape, self.config.score_loss_scale == "energy"
        given = [require(each.contiguous(), (rows,)) for each in (level.sigma, level.gain, level.shift)]
        given += [require(each.contiguous(), (rows, size)) for each in (output, point, target)]
        loss, of_score = torch.empty(()), torch.empty(rows, size)
        self._call("match", rows, size, float(beta), scaled, self.config.score_weight, *given, loss, of_score)
        return loss, of_score

    def upstream(self, latents: Tensor, noise: ChainNoise, action: Tensor, of_action: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        (rows, size), steps = action.shape, len(latents) - 1
        given = [require(each.contiguous(), (count, rows, size)) for each, count in ((latents, steps + 1), (noise.steps, steps))]
        given += [require(each.contiguous(), (rows, size)) for each in (noise.start, action, of_action)]
        entropy, found = torch.empty(()), torch.empty(steps + 1, rows, size)
        self._call("upstream", ctypes.addressof(self.box), steps, rows, float(beta), self.ratio, self.added, self.constant, *given, entropy, found)
        return entropy, found
