"""What the operations take: weights by name, with the packed forms of their owner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saddlepoint.nn.ops.packed import Packed
from saddlepoint.nn.products import linear

Activation = Literal["relu", "silu"]


class EnsembleWeights(NamedTuple):
    """An ensemble of MLPs on concat(state, action), each with one value, perhaps with LayerNorm before each activation."""

    weights: list[Tensor]
    """(members, in, out) a layer; the last has one column"""
    biases: list[Tensor]
    """(members, 1, out) a layer"""
    activation: Activation
    packed: Packed | None = None
    """the owner's packed forms; None: the PyTorch reference"""
    dtype: torch.dtype | None = None
    """type of the hidden layers' products, float32 or bfloat16; None: that of the inputs"""
    gains: Sequence[Tensor] = ()
    """(members, 1, out) of every hidden layer; empty: no LayerNorm"""
    shifts: Sequence[Tensor] = ()
    """(members, 1, out) of every hidden layer"""

    @property
    def groups(self) -> tuple[Sequence[Tensor], ...]:
        """All parameters, in four lists."""
        return self.weights, self.biases, self.gains, self.shifts

    def parameters(self) -> list[Tensor]:
        return [p for group in self.groups for p in group]

    def with_groups(self, groups: Sequence[list[Tensor]]) -> EnsembleWeights:
        """The same network with four other lists of parameters."""
        weights, biases, gains, shifts = groups
        return self._replace(weights=weights, biases=biases, gains=gains, shifts=shifts)

    def members(self) -> list[tuple[list[Tensor], ...]]:
        """(weights, biases, gains, shifts) of each member: (in, out) and (out,) a layer."""
        groups = [[p.unbind(0) for p in self.weights]]
        groups += [[p.squeeze(1).unbind(0) for p in group] for group in self.groups[1:]]
        return [tuple([p[m] for p in group] for group in groups) for m in range(len(self.weights[0]))]


class ChainWeights(NamedTuple):
    """A score network at given states, as a reverse chain evaluates it.

    Its first layer's sums are common + times_k + x @ columns^T.
    """

    common: Tensor
    """(batch, hidden): the state's part of the first layer, bias included"""
    times: Tensor
    """(steps, hidden): the part of each step's embedding"""
    columns: Tensor
    """(hidden, action): the weights of the latent"""
    weights: list[Tensor]
    """(out, in) of the later hidden layers"""
    biases: list[Tensor]
    """(out,) of the same"""
    head_weight: Tensor
    """(action, last)"""
    head_bias: Tensor
    """(action,)"""
    packed: Packed | None = None
    dtype: torch.dtype | None = None

    def output(self, x: Tensor, k: int | Tensor) -> Tensor:
        """The output at the latent x (batch, action) and the step k, a number or (batch,) of them: (batch, action)."""
        hidden = F.relu(self.common + self.times[k] + linear(x, self.columns))
        for weight, bias in zip(self.weights, self.biases):
            hidden = F.relu(linear(hidden, weight, bias))
        return linear(hidden, self.head_weight, self.head_bias)


class ReverseTable(NamedTuple):
    """Coefficients of a reverse chain, one for each step.

    x_k = keep_k x_{k+1} + drift_k output(x_{k+1}, k) + std_k noise_k.
    """

    keep: tuple[float, ...]
    drift: tuple[float, ...]
    std: tuple[float, ...]


class NormedWeights(NamedTuple):
    """An MLP of Linear, LayerNorm and Mish whose input comes in parts, or an ensemble with a leading ``members`` axis."""

    first: list[Tensor]
    """(hidden, width) of each part of the input"""
    weights: list[Tensor]
    """(out, in) of the later layers"""
    biases: list[Tensor]
    """(out,) of every layer"""
    gains: list[Tensor]
    """(out,) of every normed layer"""
    shifts: list[Tensor]
    """(out,) of every normed layer"""
    members: int = 0
    """0: a single network, without that axis"""
    simplex: int = 0
    """group size of the softmax after a last layer that is normed; 0: the last layer is plain"""
    packed: Packed | None = None
    dtype: torch.dtype | None = None

    @property
    def groups(self) -> tuple[list[Tensor], ...]:
        """All parameters, in five lists."""
        return self.first, self.weights, self.biases, self.gains, self.shifts

    def with_groups(self, groups: Any) -> NormedWeights:
        """The same network with five other lists of parameters."""
        first, weights, biases, gains, shifts = groups
        return self._replace(first=first, weights=weights, biases=biases, gains=gains, shifts=shifts)

    def frozen(self) -> NormedWeights:
        """The same network with constant parameters."""
        return self.with_groups([[p.detach() for p in group] for group in self.groups])

    def single(self) -> list[NormedWeights]:
        """Each member by itself, without packed forms.

        Parameters are unbound, so that the gradient of an ensemble's parameter is written once and not member by member.
        """
        whole = self._replace(members=0, packed=None)
        if not self.members:
            return [whole]
        members = [list(zip(*(p.unbind(0) for p in group))) or [()] * self.members for group in self.groups]
        return [whole.with_groups([list(group[m]) for group in members]) for m in range(self.members)]


class ChainTable(NamedTuple):
    """Coefficients of a denoising process from its first step on: x <- keep_i x + drift_i output."""

    keep: tuple[float, ...]
    drift: tuple[float, ...]


class Imagination(NamedTuple):
    """A world model's networks and numbers, as imagined steps need them.

    Networks see z, the task's embedding where there are tasks, and the action.
    """

    dynamics: NormedWeights
    reward: NormedWeights
    """logits of the two-hot code"""
    energy: NormedWeights | None
    """one output; None: rewards are not shaped"""
    cost: NormedWeights | None
    """logits of each constraint; None: no costs are imagined"""
    end: NormedWeights | None
    """logit of the task's end, which sees no action; None: tasks go on"""
    bins: int
    limit: float
    """two-hot places are -limit .. limit, in symlog units"""
    gamma: Tensor
    """(states,) discount of rewards"""
    cost_gamma: float
    energy_weight: float
    energy_mean: Tensor
    energy_std: Tensor
    energy_clip: float


class Imagined(NamedTuple):
    """What imagined steps lead to."""

    gain: Tensor
    """(states, proposals): discounted, shaped reward"""
    cost: Tensor | None
    """(constraints, states, proposals): discounted cost"""
    alive: Tensor | None
    """(states, proposals): 1 where the task goes on after the last step; None where it always does"""
    z: Tensor
    """(states, proposals, latent): where the steps lead"""
