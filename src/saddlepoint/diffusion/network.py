"""The time-conditioned score network, and the backward pass that a whole chain of it shares."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.nn.layers import fan_in_uniform
from saddlepoint.nn.products import affine


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
        pairs = list(pairwise((state + action + embedding, *hidden)))
        last = hidden[-1]
        self.weights = nn.ParameterList([fan_in_uniform((o, i), i, generator) for i, o in pairs])
        self.biases = nn.ParameterList([fan_in_uniform((o,), i, generator) for i, o in pairs])
        heads = ("score", "eps") if eps_head else ("score",)
        self.head_weights = nn.ParameterDict({h: fan_in_uniform((action, last), last, generator) for h in heads})
        self.head_biases = nn.ParameterDict({h: fan_in_uniform((action,), last, generator) for h in heads})

    def condition(self, state: Tensor, live: bool = False) -> Conditioned:
        """The network at given states (batch, state), for any number of evaluations.

        ``live`` parameters are seen by autograd; otherwise no gradient reaches them but through a ``Tape``.
        """
        keep = (lambda p: p) if live else torch.Tensor.detach
        first, split = keep(self.weights[0]), self.state + self.action
        weights, biases = [keep(w) for w in self.weights], [keep(b) for b in self.biases]
        return Conditioned(
            shared=(F.linear if live else affine)(state, first[:, : self.state], biases[0]),
            columns=first[:, self.state : split],
            times=F.linear(keep(self.embedding), first[:, split:]),
            weights=weights[1:],
            biases=biases[1:],
            heads={name: (keep(w), keep(self.head_biases[name])) for name, w in self.head_weights.items()},
            live=live,
        )

    def forward(
        self, at: Conditioned, u: Tensor, k: int | Tensor, head: str = "score", tape: Tape | None = None
    ) -> Tensor:
        """``at`` from ``condition()``, ``u`` (batch, action), ``k`` a step or (batch,) of them -> (batch, action).

        With a ``tape`` the output's gradient reaches ``u`` and those of the parameters are left on the tape.
        """
        if tape is None:
            return at.evaluate(u, k, head)[-1]
        return _Recorded.apply(u, tape.anchor, at, k, head, tape)


class Conditioned(NamedTuple):
    """A score network's parameters, detached, with all that depends on the state or the step alone computed once."""

    shared: Tensor  # (batch, hidden): the state's part of the first layer, and its bias
    columns: Tensor  # (hidden, action): the weights of u
    times: Tensor  # (steps, hidden): the embedding's part
    weights: list[Tensor]
    biases: list[Tensor]
    heads: dict[str, tuple[Tensor, Tensor]]
    live: bool

    def evaluate(self, u: Tensor, k: int | Tensor, head: str) -> list[Tensor]:
        """The activations of the hidden layers and, last, the output."""
        layers = [F.relu_(torch.addmm(self.shared + self.times[k], u, self.columns.mT))]
        for weight, bias in zip(self.weights, self.biases):
            h = layers[-1]
            layers.append(F.relu(F.linear(h, weight, bias)) if self.live else affine(h, weight, bias, relu=True))
        layers.append(F.linear(layers[-1], *self.heads[head]))
        return layers


class _Recorded(torch.autograd.Function):
    """One evaluation whose backward pass goes to ``u`` and leaves the layers' gradients on the tape."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, anchor: Tensor, at: Conditioned, k: int | Tensor, head: str, tape: Tape
    ) -> Tensor:  # fmt: skip
        *hidden, output = at.evaluate(u, k, head)
        ctx.u, ctx.hidden, ctx.at, ctx.k, ctx.head, ctx.tape = u.detach(), hidden, at, k, head, tape
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        at: Conditioned = ctx.at
        grad = torch.ops.aten.threshold_backward(upstream @ at.heads[ctx.head][0], ctx.hidden[-1], 0)
        grads = [grad]
        for weight, h in zip(at.weights[::-1], ctx.hidden[-2::-1]):
            grad = torch.ops.aten.threshold_backward(affine(grad, weight.mT, None), h, 0)
            grads.append(grad)
        ctx.tape.entries.append((ctx.u, ctx.k, ctx.head, ctx.hidden, grads[::-1], upstream))
        return (grad @ at.columns if ctx.needs_input_grad[0] else None, *[None] * 5)


class Tape:
    """Collects the evaluations of one backward pass, so that each layer's weight gradient is one product over all of them.

    A chain of K steps and the score's own evaluation would otherwise make K + 1 small products a layer and as many additions.
    """

    def __init__(self) -> None:
        self.anchor = torch.empty(0, requires_grad=True)  # makes an evaluation part of the graph where ``u`` is not
        self.entries: list[tuple[Tensor, int | Tensor, str, list[Tensor], list[Tensor], Tensor]] = []

    def set_gradients(self, network: ScoreNetwork, state: Tensor) -> None:
        """Write the ``grad`` of every parameter of ``network``. ``state`` (batch, state) is what all evaluations were conditioned on.

        Parameters that no evaluation used keep no gradient.
        """
        entries = self.entries
        for index in range(1, len(network.weights)):
            below = torch.cat([hidden[index - 1] for _, _, _, hidden, _, _ in entries])
            grad = torch.cat([grads[index] for _, _, _, _, grads, _ in entries])
            network.weights[index].grad = affine(grad.mT, below.mT, None)
            network.biases[index].grad = grad.sum(0)
        for head in network.head_weights:
            used = [(hidden[-1], upstream) for _, _, name, hidden, _, upstream in entries if name == head]
            network.head_weights[head].grad = network.head_biases[head].grad = None
            if used:
                grad = torch.cat([upstream for _, upstream in used])
                network.head_weights[head].grad = affine(grad.mT, torch.cat([h for h, _ in used]).mT, None)
                network.head_biases[head].grad = grad.sum(0)
        self._first_layer(network, state)

    def _first_layer(self, network: ScoreNetwork, state: Tensor) -> None:
        embedding, weight = network.embedding.detach(), network.weights[0].detach()
        time = weight[:, network.state + network.action :]
        firsts = [grads[0] for _, _, _, _, grads, _ in self.entries]
        total = torch.stack(firsts).sum(0)
        of_u = affine(torch.cat(firsts).mT, torch.cat([u for u, *_ in self.entries]).mT, None)
        per_step = torch.zeros(len(embedding), len(weight), dtype=weight.dtype, device=weight.device)
        for (_, k, *_), grad in zip(self.entries, firsts):
            if isinstance(k, int):
                per_step[k] += grad.sum(0)
            else:
                per_step.index_add_(0, k, grad)
        network.weights[0].grad = torch.cat([affine(total.mT, state.mT, None), of_u, per_step.mT @ embedding], dim=1)
        network.biases[0].grad = total.sum(0)
        network.embedding.grad = per_step @ time
