"""Several processes at one update: each has its rows of the batch and of the noise, and all of them make the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from saddlepoint.mbdpo.losses import UpdateNoise


class Peers(Protocol):
    """The processes that share an update. All call the same methods in the same order."""

    def pool(self, x: Tensor) -> Tensor:
        """(..., rows) of this process -> (..., rows of all of them), for statistics of the whole batch. No gradient passes."""
        ...

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        ...


class Alone:
    """One process, which has the whole batch."""

    def pool(self, x: Tensor) -> Tensor:
        return x

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """The gradients are those of the whole batch already."""


def share_noise(noise: UpdateNoise, rank: int, processes: int) -> UpdateNoise:
    """The draws of the batch's rows ``rank``, ``rank + processes``, ...

    The score is trained at the batch's first states, so taking every n-th row gives each process its share of them. Batch and states must be multiples of
    ``processes``.
    """
    if processes == 1:
        return noise
    horizon = len(noise.target)
    score, drop, shift = noise.score, noise.drop, noise.shift
    if score is not None:
        ours = {name: getattr(score, name)[rank::processes] for name in ("level", "point", "begin", "proposals", "terminal")}
        score = score._replace(**ours, rollouts=score.rollouts[:, rank::processes])
    if drop is not None:  # its rows count time first, then the batch
        drop = drop.unflatten(1, (horizon, -1))[:, :, rank::processes].flatten(1, 2)
    if shift is not None:
        shift = shift[:, rank::processes]
    plan = noise.plan
    if plan is not None:  # its rows count time first as well

        def ours_of(x: Tensor, axis: int) -> Tensor:
            rows = x.unflatten(axis, (horizon, -1)).movedim(axis + 1, 0)[rank::processes]
            return rows.movedim(0, axis + 1).flatten(axis, axis + 1)

        plan = plan._replace(
            proposals=ours_of(plan.proposals, 1), rollouts=ours_of(plan.rollouts, 2), terminal=ours_of(plan.terminal, 1), action=ours_of(plan.action, 0),
            choice=ours_of(plan.choice, 0),
        )  # fmt: skip
    rows = ("target", "negative_policy", "negative_noise", "negative_uniform", "policy")
    return noise._replace(**{name: getattr(noise, name)[:, rank::processes] for name in rows}, score=score, drop=drop, shift=shift, plan=plan)
