"""MLPs of Linear, LayerNorm and Mish, single or as an ensemble, with their inputs taken in parts (TD-MPC2, arXiv
2310.16828)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from saddlepoint.nn import ops
from saddlepoint.nn.layers import listed, truncated_normal

INITIAL_STD = 0.02


class NormedMLP(nn.Module):
    """Linear, LayerNorm, Mish layers, then a plain linear layer, or with ``simplex`` Linear, LayerNorm, SimNorm.

    ``inputs`` are the widths of the parts of the input. With ``members`` it is an ensemble whose parameters and outputs
    have a leading ``members`` axis.
    Weights are truncated-normal (std 0.02) and biases zero; ``zero_last`` makes a head that begins at 0. ``dropout``
    acts after the first linear layer.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        generator: torch.Generator,
        members: int = 0,
        simplex: int = 0,
        zero_last: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.members, self.simplex, self.dropout = members, simplex, dropout
        self.dtype: torch.dtype | None = None  # of the products
        self.packed: ops.Packed | None = None
        lead = (members,) if members else ()
        widths = (*hidden, outputs)

        def weight(out: int, fan_in: int, zero: bool) -> nn.Parameter:
            shape = (*lead, out, fan_in)
            return nn.Parameter(torch.zeros(shape) if zero else truncated_normal(shape, INITIAL_STD, generator))

        self.first = nn.ParameterList([weight(widths[0], width, zero_last and not hidden) for width in inputs])
        last = len(hidden) - 1
        self.weights = nn.ParameterList(
            [weight(o, i, zero_last and n == last) for n, (i, o) in enumerate(pairwise(widths))]
        )
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(*lead, width)) for width in widths])
        normed = widths if simplex else hidden
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(*lead, width)) for width in normed])
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(*lead, width)) for width in normed])
        self.register_load_state_dict_post_hook(lambda module, _: module.changed())

    def accelerate(self) -> None:
        """Use native operations from now on where they fit. Whoever changes the weights says so by ``changed``."""
        self.packed = ops.Packed()

    def changed(self) -> None:
        """Mark packed weights stale: an optimiser step, a copy or a Polyak step has changed the weights. Loading a
        state does so by itself."""
        if self.packed is not None:
            self.packed.invalidate()

    def whole(self, frozen: bool = False) -> ops.NormedWeights:
        """The network for the operations of ``nn/ops``; ``frozen`` parameters are constants."""
        net = ops.NormedWeights(
            listed(self.first),
            listed(self.weights),
            listed(self.biases),
            listed(self.gains),
            listed(self.shifts),
            self.members,
            self.simplex,
            self.packed,
            self.dtype,
        )
        return net.frozen() if frozen else net

    def forward(
        self, *parts: Tensor, chosen: Sequence[int] | None = None, frozen: bool = False, drop: Tensor | None = None
    ) -> Tensor:
        """Parts (..., width), one for each of ``inputs``, whose leading axes broadcast -> (..., outputs).

        Of an ensemble: (members, ..., outputs), or (chosen, ..., outputs) from the members ``chosen`` alone. ``frozen``
        parameters are constants,
        ``drop`` is ``drop_mask``'s, (members, rows, hidden), for parts of (rows, width).
        """
        return ops.normed_mlp(self.whole(frozen), parts, chosen, drop)

    def drop_mask(self, rows: int, generator: torch.Generator) -> Tensor | None:
        """What the first pre-activations of all members are multiplied by, (members, rows, hidden): 0, or 1/(1-p); None
        without dropout.

        round(p * n) places are drawn, with replacement, instead of n coins: the same share to within p^2/2, at a
        hundredth of the random numbers.
        """
        if not self.dropout:
            return None
        bias = self.biases[0]
        mask = torch.full(
            (max(self.members, 1), rows, bias.shape[-1]), 1 / (1 - self.dropout), dtype=bias.dtype, device=bias.device
        )
        places = torch.randint(
            mask.numel(), (round(self.dropout * mask.numel()),), generator=generator, device=bias.device
        )
        mask.view(-1)[places] = 0
        return mask if self.members else mask[0]
