"""The time-conditioned score network, and its backward pass, whose weight gradients a whole chain shares."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.nn.fused import FusedNet, fits
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
        self._fused = False
        self.embedding = nn.Parameter(torch.randn(steps, embedding, generator=generator))
        pairs = list(pairwise((state + action + embedding, *hidden)))
        last = hidden[-1]
        self.weights = nn.ParameterList([fan_in_uniform((o, i), i, generator) for i, o in pairs])
        self.biases = nn.ParameterList([fan_in_uniform((o,), i, generator) for i, o in pairs])
        heads = ("score", "eps") if eps_head else ("score",)
        self.head_weights = nn.ParameterDict({h: fan_in_uniform((action, last), last, generator) for h in heads})
        self.head_biases = nn.ParameterDict({h: fan_in_uniform((action,), last, generator) for h in heads})

    def fuse(self) -> None:
        """Have the C++ passes from now on, where ``fits`` says that they can."""
        self._fused = fits(self.weights[0], [len(w) for w in self.weights])

    def condition(self, state: Tensor, live: bool = False, backward: bool = True) -> Conditioned:
        """The network at given states (batch, state), for any number of evaluations; autograd sees the parameters only where they are ``live``.

        For evaluations alone, without their backward passes, unless ``backward``.
        """
        keep = (lambda p: p) if live else torch.Tensor.detach
        first, split = keep(self.weights[0]), self.state + self.action
        weights, biases = [keep(w) for w in self.weights], [keep(b) for b in self.biases]
        shared = (F.linear if live else affine)(state, first[:, : self.state], biases[0])
        times = F.linear(keep(self.embedding), first[:, split:])
        return Conditioned(
            shared=shared,
            columns=first[:, self.state : split],
            times=times,
            firsts=(shared + times.unsqueeze(1)).unbind(),
            weights=weights[1:],
            biases=biases[1:],
            heads={name: (keep(w), keep(self.head_biases[name])) for name, w in self.head_weights.items()},
            live=live,
            nets=self._nets(first[:, self.state : split], backward) if self._fused and not live else {},
        )

    def _nets(self, columns: Tensor, backward: bool) -> dict[str, FusedNet]:
        """What follows on the first layer's sums, with each head, for C++."""
        firsts, hidden = columns.mT.contiguous().unsqueeze(0), [w.detach().unsqueeze(0) for w in self.weights[1:]]
        return {
            head: FusedNet(
                [firsts, *hidden, w.detach().unsqueeze(0)], [*self.biases, self.head_biases[head]], 0, silu=False, flipped=True, dtype=w.dtype, backward=backward
            )
            for head, w in self.head_weights.items()
        }  # fmt: skip

    def forward(self, at: Conditioned, u: Tensor, k: int | Tensor, head: str = "score") -> Tensor:
        """``at`` from ``condition()``, ``u`` (batch, action), ``k`` a step or (batch,) of them -> (batch, action)."""
        return at.evaluate(u, k, head).output


class Conditioned(NamedTuple):
    """A score network's parameters with all that depends on the state or the step alone computed once."""

    shared: Tensor  # (batch, hidden): the state's part of the first layer, and its bias
    columns: Tensor  # (hidden, action): the weights of u
    times: Tensor  # (steps, hidden): the embedding's part
    firsts: tuple[Tensor, ...]  # for each step (batch, hidden): the sum of both
    weights: list[Tensor]
    biases: list[Tensor]
    heads: dict[str, tuple[Tensor, Tensor]]
    live: bool
    nets: dict[str, FusedNet]  # by the head; empty where PyTorch does it

    def evaluate(self, u: Tensor, k: int | Tensor, head: str) -> Evaluation:
        first = self.firsts[k] if isinstance(k, int) else self.shared + self.times[k]
        if self.nets:
            net = self.nets[head]
            kept = net.hidden(len(u))
            output = net.forward(None, u.unsqueeze(0), kept, base=first)
            return Evaluation(u, k, head, [h[0] for h in kept], output[0, 0])
        hidden = [F.relu_(torch.addmm(first, u, self.columns.mT))]
        for weight, bias in zip(self.weights, self.biases):
            h = hidden[-1]
            hidden.append(F.relu(F.linear(h, weight, bias)) if self.live else affine(h, weight, bias, relu=True))
        weight, bias = self.heads[head]
        return Evaluation(u, k, head, hidden, F.linear(hidden[-1], weight, bias))

    def rows(self, start: int) -> Conditioned:
        """At the states from ``start`` on."""
        return self._replace(shared=self.shared[start:], firsts=tuple(first[start:] for first in self.firsts))

    def backward(self, evaluation: Evaluation, upstream: Tensor) -> tuple[Tensor, Pulled]:
        """The gradient at ``u`` for one at the output, (batch, action) each, and what ``weight_gradients`` needs."""
        hidden = evaluation.hidden
        if self.nets:
            net, below = self.nets[evaluation.head], torch.empty_like(evaluation.u)
            kept = net.hidden(len(below))
            net.backward([h.unsqueeze(0) for h in hidden], upstream.unsqueeze(0), kept, below)
            return below, Pulled(evaluation, [h[0] for h in kept], upstream)
        below = upstream @ self.heads[evaluation.head][0]
        grads = [torch.ops.aten.threshold_backward(below, hidden[-1], 0)]
        for weight, h in zip(self.weights[::-1], hidden[-2::-1]):
            grads.append(torch.ops.aten.threshold_backward(affine(grads[-1], weight.mT, None), h, 0))
        return grads[-1] @ self.columns, Pulled(evaluation, grads[::-1], upstream)


class Evaluation(NamedTuple):
    """One evaluation of the network: its inputs, the outputs of its hidden layers (batch, hidden) and its own (batch, action)."""

    u: Tensor
    k: int | Tensor
    head: str
    hidden: list[Tensor]
    output: Tensor

    def rows(self, start: int) -> Evaluation:
        """That of the rows from ``start`` on."""
        k = self.k if isinstance(self.k, int) else self.k[start:]
        return Evaluation(self.u[start:], k, self.head, [h[start:] for h in self.hidden], self.output[start:])


class Pulled(NamedTuple):
    """An evaluation after its backward pass: the gradients at its hidden layers' pre-activations and at its output."""

    evaluation: Evaluation
    grads: list[Tensor]
    upstream: Tensor


def weight_gradients(network: ScoreNetwork, state: Tensor, pulled: list[Pulled]) -> dict[str, Tensor]:
    """The gradient of each parameter by its name, one product a layer for all evaluations together; parameters that none used are left out.

    ``state`` (batch, state) is what all evaluations were conditioned on. A chain of K steps and the score's own evaluation would otherwise make K + 1 small
    products a layer and as many additions.
    """
    found: dict[str, Tensor] = {}
    for index in range(1, len(network.weights)):
        below = torch.cat([p.evaluation.hidden[index - 1] for p in pulled])
        grad = torch.cat([p.grads[index] for p in pulled])
        found[f"weights.{index}"] = affine(grad.mT, below.mT, None)
        found[f"biases.{index}"] = grad.sum(0)
    for head in network.head_weights:
        used = [p for p in pulled if p.evaluation.head == head]
        if used:
            grad = torch.cat([p.upstream for p in used])
            found[f"head_weights.{head}"] = affine(grad.mT, torch.cat([p.evaluation.hidden[-1] for p in used]).mT, None)
            found[f"head_biases.{head}"] = grad.sum(0)
    return found | _first_layer(network, state, pulled)


def _first_layer(network: ScoreNetwork, state: Tensor, pulled: list[Pulled]) -> dict[str, Tensor]:
    embedding, weight = network.embedding.detach(), network.weights[0].detach()
    firsts = [p.grads[0] for p in pulled]
    total = torch.stack(firsts).sum(0)
    of_u = affine(torch.cat(firsts).mT, torch.cat([p.evaluation.u for p in pulled]).mT, None)
    per_step = weight.new_zeros(len(embedding), len(weight))
    for p in pulled:
        k = p.evaluation.k
        if isinstance(k, Tensor):
            per_step += F.one_hot(k, len(embedding)).to(weight).mT @ p.grads[0]
        else:
            per_step[k] += p.grads[0].sum(0)
    return {
        "weights.0": torch.cat([affine(total.mT, state.mT, None), of_u, per_step.mT @ embedding], dim=1), "biases.0": total.sum(0),
        "embedding": per_step @ weight[:, network.state + network.action :],
    }  # fmt: skip
