"""The time-conditioned score network, and its backward pass, whose weight gradients a whole chain shares."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.nn.fused import FusedNet, fits, works
from saddlepoint.nn.layers import fan_in_uniform
from saddlepoint.nn.native import version_of
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
        self._fused: dict[str, FusedNet] = {}
        self._learning: dict[str, FusedNet] = {}  # the same for updates, in their precision
        self._seen: dict[FusedNet, int | None] = {}  # which version of the first layer's weights each has a copy of a part of
        self.embedding = nn.Parameter(torch.randn(steps, embedding, generator=generator))
        pairs = list(pairwise((state + action + embedding, *hidden)))
        last = hidden[-1]
        self.weights = nn.ParameterList([fan_in_uniform((o, i), i, generator) for i, o in pairs])
        self.biases = nn.ParameterList([fan_in_uniform((o,), i, generator) for i, o in pairs])
        heads = ("score", "eps") if eps_head else ("score",)
        self.head_weights = nn.ParameterDict({h: fan_in_uniform((action, last), last, generator) for h in heads})
        self.head_biases = nn.ParameterDict({h: fan_in_uniform((action,), last, generator) for h in heads})

    def fuse(self, learning: torch.dtype = torch.float32) -> None:
        """Have the C++ passes from now on, where ``fits`` says that they can, with products in ``learning`` where ``condition`` is told so. The parameters
        must stay where they are."""
        if not fits(self.weights[0], [len(w) for w in self.weights]):
            return

        def nets(dtype: torch.dtype) -> dict[str, FusedNet]:
            columns = torch.empty(1, self.action, len(self.weights[0]))
            hidden = [_of_one_member(w) for w in self.weights[1:]]
            found = {}
            for head, weight in self.head_weights.items():  # each with what follows on the first layer's sums, which ``condition`` makes
                weights, biases = [columns, *hidden, _of_one_member(weight)], [*self.biases, self.head_biases[head]]
                found[head] = FusedNet(weights, biases, 0, silu=False, flipped=True, dtype=dtype)
            return found

        self._fused = nets(torch.float32)
        self._learning = nets(learning) if learning != torch.float32 and works(learning) else self._fused

    def condition(self, state: Tensor, live: bool = False, learning: bool = False) -> Conditioned:
        """The network at given states (batch, state), for any number of evaluations; autograd sees the parameters only where they are ``live``.

        ``learning``: for an update, in its precision.
        """
        keep = (lambda p: p) if live else torch.Tensor.detach
        first, split = keep(self.weights[0]), self.state + self.action
        shared = (F.linear if live else affine)(state, first[:, : self.state], keep(self.biases[0]))
        times, columns = F.linear(keep(self.embedding), first[:, split:]), first[:, self.state : split]
        if self._fused and not live:
            return Conditioned(shared, columns, times, [], [], {}, live, self._with_columns(self._learning if learning else self._fused))
        heads = {name: (keep(w), keep(self.head_biases[name])) for name, w in self.head_weights.items()}
        return Conditioned(shared, columns, times, [keep(w) for w in self.weights[1:]], [keep(b) for b in self.biases[1:]], heads, live, {})

    def _with_columns(self, nets: dict[str, FusedNet]) -> dict[str, FusedNet]:
        """``nets`` once their first layers, the columns of u, are as this network's."""
        first = self.weights[0].detach()
        for net in nets.values():
            if (version := version_of(first)) is None or self._seen.get(net) != version:
                net.kept[0][0].copy_(first[:, self.state : self.state + self.action].mT.unsqueeze(0))
                self._seen[net] = version
        return nets

    def forward(self, at: Conditioned, u: Tensor, k: int | Tensor, head: str = "score") -> Tensor:
        """``at`` from ``condition()``, ``u`` (batch, action), ``k`` a step or (batch,) of them -> (batch, action)."""
        return at.evaluate(u, k, head).output


class Conditioned(NamedTuple):
    """A score network's parameters with all that depends on the state or the step alone computed once."""

    shared: Tensor  # (batch, hidden): the state's part of the first layer, and its bias
    columns: Tensor  # (hidden, action): the weights of u
    times: Tensor  # (steps, hidden): the embedding's part
    weights: list[Tensor]  # of the later layers; these and the next two are empty where C++ has them
    biases: list[Tensor]
    heads: dict[str, tuple[Tensor, Tensor]]
    live: bool
    nets: dict[str, FusedNet]  # by the head; empty where PyTorch does it

    def evaluate(self, u: Tensor, k: int | Tensor, head: str, room: list[Tensor] | None = None) -> Evaluation:
        """At ``u`` (batch, action) and the step k, one or (batch,) of them. ``room`` (1, batch, hidden) each: where C++ leaves the hidden layers' outputs."""
        first = self.shared + (self.times[k] if isinstance(k, int) else self.times.index_select(0, k))
        if self.nets:
            net = self.nets[head]
            room = room or net.hidden(len(u))
            output = net.forward(None, u.unsqueeze(0), room, base=first)
            return Evaluation(u, k, head, [h[0] for h in room], output[0, 0])
        hidden = [F.relu_(torch.addmm(first, u, self.columns.mT))]
        for weight, bias in zip(self.weights, self.biases):
            h = hidden[-1]
            hidden.append(F.relu(F.linear(h, weight, bias)) if self.live else affine(h, weight, bias, relu=True))
        weight, bias = self.heads[head]
        return Evaluation(u, k, head, hidden, F.linear(hidden[-1], weight, bias))

    def rows(self, start: int) -> Conditioned:
        """At the states from ``start`` on."""
        return self._replace(shared=self.shared[start:])

    def backward(self, evaluation: Evaluation, upstream: Tensor, room: list[Tensor] | None = None) -> Pulled:
        """Back from a gradient at the output, (batch, action). ``room`` as of ``evaluate``."""
        hidden = evaluation.hidden
        if self.nets:
            net, room = self.nets[evaluation.head], room or self.nets[evaluation.head].hidden(len(upstream))
            net.backward([h.unsqueeze(0) for h in hidden], upstream.unsqueeze(0), room)
            return Pulled(evaluation, [h[0] for h in room], upstream)
        below = upstream @ self.heads[evaluation.head][0]
        grads = [torch.ops.aten.threshold_backward(below, hidden[-1], 0)]
        for weight, h in zip(self.weights[::-1], hidden[-2::-1]):
            grads.append(torch.ops.aten.threshold_backward(affine(grads[-1], weight.mT, None), h, 0))
        return Pulled(evaluation, grads[::-1], upstream)

    def below(self, pulled: Pulled) -> Tensor:
        """The gradient at ``u``, (batch, action)."""
        return pulled.grads[0].to(self.columns) @ self.columns


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


class Stacked(NamedTuple):
    """Several evaluations after their backward passes, all conditioned on the same states, one after another: (evaluations, batch, ...)."""

    k: Tensor  # (evaluations, batch)
    u: Tensor
    hidden: list[Tensor]
    grads: list[Tensor]
    heads: dict[str, tuple[Tensor, Tensor]]  # of the evaluations with each head, their gradients at the output and their last hidden layers


def stack(pulled: list[Pulled]) -> Stacked:
    heads = {}
    for head in {p.evaluation.head for p in pulled}:
        used = [p for p in pulled if p.evaluation.head == head]
        heads[head] = torch.stack([p.upstream for p in used]), torch.stack([p.evaluation.hidden[-1] for p in used])
    layers = range(len(pulled[0].grads))
    hidden = [torch.stack([p.evaluation.hidden[layer] for p in pulled]) for layer in layers[:-1]]
    grads = [torch.stack([p.grads[layer] for p in pulled]) for layer in layers]
    u = torch.stack([p.evaluation.u for p in pulled])
    steps = [p.evaluation.k for p in pulled]
    k = torch.stack([k if isinstance(k, Tensor) else u.new_full(u.shape[1:2], k, dtype=torch.int64) for k in steps])
    return Stacked(k, u, hidden, grads, heads)


def weight_gradients(network: ScoreNetwork, state: Tensor, found: Stacked) -> dict[str, Tensor]:
    """The gradient of each parameter by its name, one product a layer for all evaluations together; parameters that none used are left out.

    ``state`` (batch, state) is what all evaluations were conditioned on. A chain of K steps and the score's own evaluation would otherwise make K + 1 small
    products a layer and as many additions.
    """

    def product(grad: Tensor, below: Tensor) -> Tensor:
        return affine(grad.flatten(0, 1).mT, below.flatten(0, 1).mT, None)

    gradients: dict[str, Tensor] = {}
    for index in range(1, len(network.weights)):
        gradients[f"weights.{index}"] = product(found.grads[index], found.hidden[index - 1])
    gradients |= {f"biases.{index}": grad.sum((0, 1)) for index, grad in enumerate(found.grads)}
    for head, (upstream, last) in found.heads.items():
        gradients[f"head_weights.{head}"] = product(upstream, last)
        gradients[f"head_biases.{head}"] = upstream.sum((0, 1))

    embedding, weight, first = network.embedding.detach(), network.weights[0].detach(), found.grads[0].to(found.u)
    at_step = found.k.flatten() == torch.arange(len(embedding), device=weight.device).unsqueeze(-1)
    of_u, of_step = (torch.cat([found.u.flatten(0, 1).mT, at_step]) @ first.flatten(0, 1)).split([network.action, len(embedding)])
    columns = [affine(first.sum(0).mT, state.mT, None), of_u.mT, of_step.mT @ embedding]
    return gradients | {"weights.0": torch.cat(columns, dim=1), "embedding": of_step @ weight[:, network.state + network.action :]}


def chain_weight_gradients(
    network: ScoreNetwork, net: FusedNet, state: Tensor, latents: Tensor, matched: Evaluation, kept: list[Tensor], grads: list[Tensor], of_output: Tensor
) -> dict[str, Tensor]:
    """The same in C++, of the evaluations of a chain at its ``latents`` (K, batch, action) and then the ``matched`` one, from what they left: outputs of the
    hidden layers and gradients at their pre-activations, (K + 1, batch, width), and those at the outputs (K + 1, batch, action)."""
    first, embedding = network.weights[0], network.embedding
    of_first, of_embedding = (p.new_empty(p.shape) if p.grad is None else p.grad for p in (first, embedding))
    net.conditioned_gradients(state, latents, matched.u, torch.as_tensor(matched.k), grads[0], embedding.detach(), first.detach(), (of_first, of_embedding))
    weights, biases = net.later_weight_gradients(kept, grads, of_output)
    gradients = {"weights.0": of_first, "embedding": of_embedding}
    gradients |= {f"weights.{index}": weight[0] for index, weight in enumerate(weights[1:-1], 1)}
    gradients |= {f"biases.{index}": bias for index, bias in enumerate(biases[:-1])}
    return gradients | {f"head_weights.{matched.head}": weights[-1][0], f"head_biases.{matched.head}": biases[-1]}


def _of_one_member(weight: Tensor) -> Tensor:
    """The weight (out, in) as (1, out, in), with the same room for its gradient."""
    whole = weight.detach().unsqueeze(0)
    whole.grad = None if weight.grad is None else weight.grad.unsqueeze(0)
    return whole
