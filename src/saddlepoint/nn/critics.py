"""Critics: ensembles of networks Q_m(s, a), exchangeable by name (``CRITICS``) or for a class of one's own.

State (batch, state) and actions (proposals, batch, action) go in, values (members, proposals, batch) come out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.nn import ops
from saddlepoint.nn.choice import choose, made, require_answer
from saddlepoint.nn.layers import listed, truncated_normal, xavier_uniform
from saddlepoint.nn.twohot import two_hot_inverse, two_hot_loss
from saddlepoint.types import UserError

Activation = Literal["relu", "silu"]
CriticValues = Literal["scalar", "two_hot"]
BINS = 101
"""of a two-hot critic, over symlog values from -10 to 10"""


class Critic(nn.Module, ABC):
    """Q_m(s, a) of ``members`` members. A critic of one's own defines ``forward``, and ``loss`` unless it is squared error."""

    members: int
    dtype: torch.dtype | None = None
    """type of the hidden layers' products; None: that of the parameters"""

    @abstractmethod
    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(batch, state), (proposals, batch, action) -> (members, proposals, batch)."""

    def loss(self, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
        """scale * sum over members and batch of (Q_m(s, a) - target_m)^2, 0-d.

        (batch, state), (batch, action); ``target`` (members, batch), or (batch,) for all members.
        """
        return scale * (self(state, action[None])[:, 0] - target).square().sum()

    def accelerate(self) -> None:
        """Use native kernels from now on, where there are any."""


class MLPCritic(Critic):
    """MLPs of one shape, with LayerNorm before each activation where ``norm``; without it the released ALGD's critics.

    ReLU weights are Xavier-uniform, SiLU weights truncated normal; biases are 0.
    """

    def __init__(
        self, members: int, state: int, action: int, hidden: Sequence[int], activation: Activation, generator: torch.Generator,
        norm: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.members, self.activation = members, activation
        pairs, normed = list(pairwise((state + action, *hidden, 1))), hidden if norm else ()
        self.weights = nn.ParameterList([initial_weight(members, i, o, activation, generator) for i, o in pairs])
        self.biases = nn.ParameterList([torch.zeros(members, 1, o) for _, o in pairs])
        self.gains = nn.ParameterList([torch.ones(members, 1, o) for o in normed])
        self.shifts = nn.ParameterList([torch.zeros(members, 1, o) for o in normed])
        self.packed: ops.Packed | None = None
        self.register_load_state_dict_post_hook(_loaded)

    def accelerate(self) -> None:
        self.packed = ops.Packed()

    def whole(self) -> ops.EnsembleWeights:
        weights, biases, gains, shifts = (listed(group) for group in (self.weights, self.biases, self.gains, self.shifts))
        return ops.EnsembleWeights(weights, biases, self.activation, self.packed, self.dtype, gains, shifts)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return ops.ensemble_mlp(self.whole(), state, action)

    def loss(self, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
        return ops.ensemble_mse(self.whole(), state, action, target, scale)


def _loaded(module: MLPCritic, keys: object) -> None:
    if module.packed is not None:
        module.packed.invalidate()


class DeepCritic(Critic):
    """MLPs with LayerNorm after each hidden layer, or ``residual`` blocks as in SimBa (arXiv 2410.09754), with scalar or two-hot values.

    A residual network embeds its input into ``hidden[0]`` units; each further entry adds a block  x + W2 relu(W1 LayerNorm(x)), four times as wide inside.
    Two-hot values are the mean bin of a categorical over symlog values, fitted by cross-entropy (``nn/twohot.py``).
    """

    def __init__(
        self, members: int, state: int, action: int, hidden: Sequence[int], activation: Activation, generator: torch.Generator,
        *, norm: bool = True, residual: bool = False, values: CriticValues = "scalar",
    ):  # fmt: skip
        super().__init__()
        self.members, self.activation, self.norm, self.residual, self.values = members, activation, norm, residual, values
        outputs = BINS if values == "two_hot" else 1
        width, blocks = hidden[0], len(hidden) - 1
        if residual:
            inner = [pair for _ in range(blocks) for pair in ((width, 4 * width), (4 * width, width))]
            pairs, normed = [(state + action, width), *inner, (width, outputs)], [width] * (blocks + 1)
        else:
            pairs, normed = list(pairwise((state + action, *hidden, outputs))), list(hidden) if norm else []
        weights = [initial_weight(members, i, o, activation, generator) for i, o in pairs[:-1]]
        last = initial_weight(members, *pairs[-1], activation, generator)
        self.weights = nn.ParameterList([*weights, torch.zeros_like(last) if values == "two_hot" else last])
        self.biases = nn.ParameterList([torch.zeros(members, 1, o) for _, o in pairs])
        self.gains = nn.ParameterList([torch.ones(members, 1, o) for o in normed])
        self.shifts = nn.ParameterList([torch.zeros(members, 1, o) for o in normed])

    def outputs(self, state: Tensor, action: Tensor) -> Tensor:
        """(members, proposals, batch, 1 or bins)."""
        rows = torch.cat([state.expand(len(action), -1, -1), action], -1).to(self.dtype or state.dtype)
        x = rows.flatten(0, 1).expand(self.members, -1, -1)
        x = self._residual(x) if self.residual else self._plain(x)
        return x.unflatten(1, action.shape[:2])

    def _linear(self, x: Tensor, layer: int) -> Tensor:
        if layer == len(self.weights) - 1:  # values keep the parameters' own type
            return torch.baddbmm(self.biases[layer], x.to(self.biases[layer].dtype), self.weights[layer])
        return torch.baddbmm(self.biases[layer].to(x.dtype), x, self.weights[layer].to(x.dtype))

    def _normed(self, x: Tensor, layer: int) -> Tensor:
        return torch.addcmul(self.shifts[layer].to(x.dtype), F.layer_norm(x, x.shape[-1:]), self.gains[layer].to(x.dtype))

    def _plain(self, x: Tensor) -> Tensor:
        activate = F.relu if self.activation == "relu" else F.silu
        for layer in range(len(self.weights) - 1):
            x = self._linear(x, layer)
            x = activate(self._normed(x, layer) if self.norm else x)
        return self._linear(x, len(self.weights) - 1)

    def _residual(self, x: Tensor) -> Tensor:
        x = self._linear(x, 0)
        for block in range(len(self.gains) - 1):
            inner = F.relu(self._linear(self._normed(x, block), 1 + 2 * block))
            x = x + self._linear(inner, 2 + 2 * block)
        return self._linear(self._normed(x, -1), len(self.weights) - 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        found = self.outputs(state, action)
        return (two_hot_inverse(found) if self.values == "two_hot" else found).squeeze(-1)

    def loss(self, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
        if self.values == "scalar":
            return super().loss(state, action, target, scale)
        logits = self.outputs(state, action[None])[:, 0]
        return scale * two_hot_loss(logits, target.expand(logits.shape[:-1])).sum()


CRITICS = {"mlp": {"norm": False}, "layer_norm": {"norm": True}, "residual": {"residual": True}}
"""choices of ``--critic-network``, and the options of ``MLPCritic`` or ``DeepCritic`` that they stand for"""


def require_critic(network: str, values: CriticValues) -> None:
    """Raises ``UserError`` unless there is such a critic."""
    found = choose(network, CRITICS, "--critic-network")
    if not isinstance(found, dict) and values != "scalar":
        raise UserError(f"--critic-values {values} is for {', '.join(CRITICS)}: --critic-network {network} has values of its own.")


def make_critic(
    network: str, values: CriticValues, members: int, state: int, action: int, hidden: Sequence[int], activation: Activation,
    generator: torch.Generator,
) -> Critic:  # fmt: skip
    """The critic that a config names: an entry of ``CRITICS``, or ``module:name`` of a ``Critic`` that is made from
    (members, state, action, hidden, activation, generator). Raises ``UserError`` for an unknown one."""
    sizes = (members, state, action, hidden, activation, generator)
    found = choose(network, CRITICS, "--critic-network")
    if isinstance(found, dict) and "norm" in found and values == "scalar":
        return MLPCritic(*sizes, **found)
    if isinstance(found, dict):
        return DeepCritic(*sizes, **found, values=values)
    what = f"--critic-network {network}"
    critic = made(what, found, Critic, *sizes)
    rows, actions = torch.zeros(5, state), torch.zeros(3, 5, action)
    require_answer(f"forward of {what}", (members, 3, 5), critic, rows, actions)
    require_answer(f"loss of {what}", (), critic.loss, rows, actions[0], torch.zeros(members, 5), 1.0)
    return critic


def initial_weight(members: int, fan_in: int, fan_out: int, activation: Activation, generator: torch.Generator) -> Tensor:
    """(members, fan_in, fan_out): Xavier-uniform before ReLU, N(0, 1 / (4 fan_in)) truncated at two deviations before SiLU."""
    shape = (members, fan_in, fan_out)
    if activation == "relu":
        return xavier_uniform(shape, fan_in, fan_out, generator)
    return truncated_normal(shape, 0.5 / fan_in**0.5, generator)
