"""The time-conditioned score network, and the backward pass that a whole chain of it shares."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

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

    def condition(self, state: Tensor) -> Tensor:
        """The part of the first layer that depends on the state alone. (batch, state) -> (batch, hidden); carries no gradient."""
        return affine(state, self.weights[0].detach()[:, : self.state], self.biases[0].detach())

    def forward(
        self, condition: Tensor, u: Tensor, k: int | Tensor, head: str = "score", tape: Tape | None = None
    ) -> Tensor:
        """``condition`` (batch, hidden) from ``condition()``, ``u`` (batch, action), ``k`` a step or (batch,) of them -> (batch, action).

        The output's gradient reaches ``u``; that of the parameters is collected by ``tape``, and there is none without it.
        """
        if tape is None or not torch.is_grad_enabled():
            return self.evaluate(condition, u, k, head)[-1]
        return _Recorded.apply(u, tape.anchor, condition, k, head, self, tape)

    def evaluate(self, condition: Tensor, u: Tensor, k: int | Tensor, head: str) -> list[Tensor]:
        """The activations of the hidden layers and, last, the output."""
        first = self.weights[0].detach()
        split = self.state + self.action
        time = F.linear(self.embedding.detach()[k], first[:, split:])
        layers = [F.relu(condition + F.linear(u, first[:, self.state : split]) + time)]
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:]):
            layers.append(affine(layers[-1], weight.detach(), bias.detach(), relu=True))
        layers.append(affine(layers[-1], self.head_weights[head].detach(), self.head_biases[head].detach()))
        return layers


class _Recorded(torch.autograd.Function):
    """One evaluation whose backward pass goes to ``u`` and leaves the layers' gradients on the tape."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, u: Tensor, anchor: Tensor, condition: Tensor, k: Any, head: str, network: ScoreNetwork, tape: Tape
    ) -> Tensor:  # fmt: skip
        *hidden, output = network.evaluate(condition, u, k, head)
        ctx.u, ctx.hidden, ctx.k, ctx.head, ctx.network, ctx.tape = u.detach(), hidden, k, head, network, tape
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        network: ScoreNetwork = ctx.network
        grad = affine(upstream, network.head_weights[ctx.head].detach().mT, None)
        grads = []
        for weight, h in zip([None, *list(network.weights)[1:]][::-1], ctx.hidden[::-1]):
            grad = torch.ops.aten.threshold_backward(grad, h, 0)
            grads.append(grad)
            if weight is not None:
                grad = affine(grad, weight.detach().mT, None)
        ctx.tape.entries.append((ctx.u, ctx.k, ctx.head, ctx.hidden, grads[::-1], upstream))
        columns = network.weights[0].detach()[:, network.state : network.state + network.action]
        return (F.linear(grads[-1], columns.mT) if ctx.needs_input_grad[0] else None, *[None] * 6)


class Tape:
    """Collects the evaluations of one backward pass, so that each layer's weight gradient is one product over all of them.

    A chain of K steps and the score's own evaluation would otherwise make K + 1 small products a layer and as many additions: measured with K = 5,
    batch 256 and two threads, 5.0 ms for the chain forward and backward without it and 3.4 with it.
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
