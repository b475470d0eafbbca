"""The time-conditioned score network."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.nn.layers import fan_in_uniform
from saddlepoint.nn.products import linear


class ScoreNetwork(nn.Module):
    """phi(s, u, k): an MLP on concat(state, u, learned embedding of k) with two linear heads, ``score`` and ``eps``.

    ALGD: 3 hidden layers of 128, ReLU, 16-dim embedding. The first layer is applied in parts: the state's part is the same at every step of
    a chain and is computed once (``condition``).
    """

    def __init__(
        self,
        state: int,
        action: int,
        steps: int,
        hidden: tuple[int, ...],
        embedding: int,
        eps_head: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        self.state, self.action = state, action
        self.embedding = nn.Parameter(torch.randn(steps, embedding, generator=generator))
        sizes = (state + action + embedding, *hidden)
        self.weights = nn.ParameterList([fan_in_uniform((o, i), i, generator) for i, o in itertools.pairwise(sizes)])
        self.biases = nn.ParameterList([fan_in_uniform((o,), i, generator) for i, o in itertools.pairwise(sizes)])
        heads = ("score", "eps") if eps_head else ("score",)
        self.head_weights = nn.ParameterDict(
            {h: fan_in_uniform((action, sizes[-1]), sizes[-1], generator) for h in heads}
        )
        self.head_biases = nn.ParameterDict({h: fan_in_uniform((action,), sizes[-1], generator) for h in heads})

    def condition(self, state: Tensor) -> Tensor:
        """The part of the first layer that depends on the state alone. (batch, state) -> (batch, hidden)."""
        return linear(state, self.weights[0][:, : self.state], self.biases[0])

    def forward(self, condition: Tensor, u: Tensor, k: int | Tensor, head: str = "score") -> Tensor:
        """``condition`` (batch, hidden) from ``condition()``, ``u`` (batch, action), ``k`` a step index or (batch,) of them -> (batch, action)."""
        first = self.weights[0]
        time = F.linear(self.embedding[k], first[:, self.state + self.action :])
        h = F.relu(condition + F.linear(u, first[:, self.state : self.state + self.action]) + time)
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:]):
            h = linear(h, weight, bias, relu=True)
        return linear(h, self.head_weights[head], self.head_biases[head])
