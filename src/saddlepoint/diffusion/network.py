"""The time-conditioned score network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from saddlepoint.nn import ops
from saddlepoint.nn.choice import choose, made, require_answer
from saddlepoint.nn.layers import fan_in_uniform, listed
from saddlepoint.nn.products import linear


class ScoreNetwork(nn.Module, ABC):
    """phi(s, x, k): the output that a reverse chain is driven by. A network of one's own defines ``forward``."""

    dtype: torch.dtype | None = None
    """type of the products that are differentiated; None: that of the parameters"""

    @abstractmethod
    def forward(self, state: Tensor, x: Tensor, k: int | Tensor, head: str = "score") -> Tensor:
        """(batch, state), (batch, action), a step or (batch,) of them -> (batch, action)."""

    def given(self, state: Tensor, *head: str) -> Callable[[Tensor, int | Tensor], Tensor]:
        """phi(s, ., .) at fixed states, for any number of evaluations."""
        return lambda x, k: self(state, x, k, *head)

    def chain(self, state: Tensor, start: Tensor, noise: Tensor | None, table: ops.ReverseTable) -> Tensor:
        """All latents (steps + 1, batch, action) of the reverse chain from ``start``: see ``ops.denoising_chain``."""
        return ops.reverse_chain(self.given(state), start, noise, table)

    def accelerate(self) -> None:
        """Use native kernels from now on, where there are any."""


class ScoreMLP(ScoreNetwork):
    """An MLP on concat(state, x, learned embedding of k) with two linear heads, ``score`` and ``eps``.

    ALGD: 3 hidden layers of 128, ReLU, 16-dim embedding. The state's part of the first layer is computed once a chain.
    """

    def __init__(
        self, state: int, action: int, steps: int, hidden: tuple[int, ...], embedding: int, eps_head: bool, generator: torch.Generator
    ):  # fmt: skip
        super().__init__()
        self.state, self.action = state, action
        self.embedding = nn.Parameter(torch.randn(steps, embedding, generator=generator))
        pairs = list(pairwise((state + action + embedding, *hidden)))
        last = hidden[-1]
        self.weights = nn.ParameterList([fan_in_uniform((o, i), i, generator) for i, o in pairs])
        self.biases = nn.ParameterList([fan_in_uniform((o,), i, generator) for i, o in pairs])
        heads = ("score", "eps") if eps_head else ("score",)
        self.head_weights = nn.ParameterDict({h: fan_in_uniform((action, last), last, generator) for h in heads})
        self.head_biases = nn.ParameterDict({h: fan_in_uniform((action,), last, generator) for h in heads})
        self.packed: ops.Packed | None = None
        self.register_load_state_dict_post_hook(_loaded)

    def accelerate(self) -> None:
        self.packed = ops.Packed()

    def at(self, state: Tensor, head: str = "score") -> ops.ChainWeights:
        """The network at given states (batch, state), for any number of evaluations."""
        (first, *weights), (bias, *biases), recording = listed(self.weights), listed(self.biases), torch.is_grad_enabled()
        if self.packed is None or recording or torch.compiler.is_compiling():
            of_state, times, columns = self._first(first)
        else:  # what does not change between updates is computed once: acting needs it at every step
            of_state, times, columns = self.packed.kept("first", [first, self.embedding], lambda: _dense(*self._first(first)))
        return ops.ChainWeights(
            linear(state, of_state, bias), times, columns, weights, biases, self.head_weights[head], self.head_biases[head], self.packed,
            self.dtype if recording else None,  # actions are drawn in float32
        )  # fmt: skip

    def _first(self, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of the first layer: weights of the state (hidden, state), what each step adds (steps, hidden), weights of the latent (hidden, action)."""
        split = self.state + self.action
        return first[:, : self.state], linear(self.embedding, first[:, split:]), first[:, self.state : split]

    def given(self, state: Tensor, *head: str) -> Callable[[Tensor, int | Tensor], Tensor]:
        at = self.at(state, *head)
        return lambda x, k: ops.score_output(at, x, k)

    def forward(self, state: Tensor, x: Tensor, k: int | Tensor, head: str = "score") -> Tensor:
        return self.given(state, head)(x, k)

    def chain(self, state: Tensor, start: Tensor, noise: Tensor | None, table: ops.ReverseTable) -> Tensor:
        return ops.denoising_chain(self.at(state), start, noise, table)


def _dense(of_state: Tensor, times: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same parts without gaps, as their products read them."""
    return of_state.contiguous(), times, columns.mT.contiguous().mT


def _loaded(module: ScoreMLP, keys: object) -> None:
    if module.packed is not None:
        module.packed.invalidate()


SCORE_NETWORKS = {"mlp": ScoreMLP}
"""choices of ``--score-network``: classes made from (state, action, steps, hidden, embedding, eps_head, generator)"""


def make_score_network(
    name: str, state: int, action: int, steps: int, hidden: tuple[int, ...], embedding: int, eps_head: bool, generator: torch.Generator
) -> ScoreNetwork:  # fmt: skip
    """The network that a config names: an entry of ``SCORE_NETWORKS``, or ``module:name`` of a ``ScoreNetwork``. Raises ``UserError`` for another."""
    found = choose(name, SCORE_NETWORKS, "--score-network")
    sizes = (state, action, steps, hidden, embedding, eps_head, generator)
    if name in SCORE_NETWORKS:
        return found(*sizes)
    what = f"--score-network {name}"
    network = made(what, found, ScoreNetwork, *sizes)
    rows, x = torch.zeros(3, state), torch.zeros(3, action)
    for k in (steps - 1, torch.arange(3) % steps):
        require_answer(f"forward of {what}", (3, action), network, rows, x, k)
    return network
