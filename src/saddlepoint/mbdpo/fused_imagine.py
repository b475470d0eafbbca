"""``imagine.roll`` in C++ (imagine.cpp): whole plans in one call, where it makes a dozen of small ones a step.

An action of the ``small`` preset took 62 ms with these and takes 40 without (`python benchmarks/mbdpo.py --threads 1 --rounds 7 --only small --compiled`).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from saddlepoint.mbdpo.imagine import Rolled
from saddlepoint.mbdpo.imagine import roll as plain_roll
from saddlepoint.mbdpo.world_model import ENERGY_STD_MIN, WorldModel
from saddlepoint.nn import native
from saddlepoint.nn.fused_normed import NORMED
from saddlepoint.nn.native import floats, pointer, require


class _Imagined(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("states", "proposals", "horizon", "action", "bins")] + [
        (name, ctypes.c_void_p) for name in ("nets", "packed", "places", "factors", "cost_factors")
    ] + [(name, ctypes.c_float) for name in ("weight", "mean", "inverse", "clip")]  # fmt: skip


def library() -> ctypes.CDLL | None:
    """The imagined steps (imagine.cpp), built at the first call; None, with a warning, where that cannot be."""
    return native.library(Path(__file__).with_name("imagine.cpp"), *native.TILES, NORMED, imagine_plans="pippppp")


def roll(model: WorldModel, z: Tensor, actions: Tensor, task: Tensor | None, episodic: bool, costly: bool) -> Rolled:
    """See ``imagine.roll``, which serves several tasks, ends, gradients and what has no C++ passes."""
    c = model.config
    heads = [model.dynamics, model.reward_head, model.energy_head if c.energy_weight else None, model.cost_head if costly else None]
    nets = [None if head is None else head.fused for head in heads]
    whole = all(head is None or net is not None for head, net in zip(heads, nets))
    plain = task is not None or episodic or torch.is_grad_enabled() or z.dtype != torch.float32 or actions.ndim != 4 or z.shape[:-1] != (len(actions), 1)
    dynamics, cost_net = nets[0], nets[3]
    if plain or not whole or dynamics is None or (built := library()) is None or not actions.numel():
        return plain_roll(model, z, actions, task, episodic, costly)
    states, proposals, horizon, size = actions.shape
    latent = dynamics.widths[-1]
    z, actions = require(z.contiguous(), (states, 1, latent)), require(actions.contiguous(), (states, proposals, horizon, size))
    gamma, places = float(model.discount(None)), torch.linspace(-c.bin_limit, c.bin_limit, c.bins)
    at = [None if net is None else net.here for net in nets]
    kind = dynamics.layouts.kind(states * proposals)
    layouts = [None if net is None else net.layouts.at(kind, False) for net in nets]
    held = (
        (ctypes.c_void_p * len(at))(*at), (ctypes.c_void_p * len(at))(*(layout and ctypes.addressof(layout) for layout in layouts)),
        floats([gamma**h for h in range(horizon)]), floats([c.cost_gamma**h for h in range(horizon)]),
    )  # fmt: skip
    addresses = [ctypes.addressof(each) for each in held]
    energy = c.energy_weight, float(model.energy_mean), 1 / max(float(model.energy_std), ENERGY_STD_MIN), c.energy_clip
    imagined = _Imagined(states, proposals, horizon, size, c.bins, *addresses[:2], pointer(places), *addresses[2:], *energy)
    gain, after = torch.empty(states, proposals), torch.empty(states, proposals, latent)
    cost = None if cost_net is None else torch.empty(cost_net.members, states, proposals)
    native.call(built, "imagine_plans", ctypes.addressof(imagined), kind, pointer(z), pointer(actions), pointer(gain), pointer(cost), pointer(after))
    return Rolled(gain, cost, None, after)
