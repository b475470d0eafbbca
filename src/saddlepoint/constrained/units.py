"""What prices are counted in: the size of what is earned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SHARE = 0.002
"""of a new value in the running size, once there are 500"""


def between_percentiles(values: Tensor) -> float:
    """The range from the 5th to the 95th percentile, interpolated, of (batch,). torch.quantile takes ten times as long."""
    rising = values.sort().values.tolist()
    ends = []
    for share in (0.05, 0.95):
        below, part = divmod(share * (len(rising) - 1), 1)
        at = int(below)
        ends.append(rising[at] + part * (rising[min(at + 1, len(rising) - 1)] - rising[at]))
    return ends[1] - ends[0]


class ValueSize:
    """The running size of the reward critics' values at the policy's actions: mean |Q| over a batch, or the range from its 5th to its 95th percentile where
    that is larger (values about 0). 1 while not ``active``, and until the first batch.
    """

    def __init__(self, active: bool) -> None:
        self.active, self.value, self.count = active, 1.0, 0

    def follow(self, values: Tensor) -> None:
        """Take in min_j Q_j of a batch, (batch,)."""
        if not self.active:
            return
        size = max(float(values.abs().mean()), between_percentiles(values), 1e-3)
        self.count += 1
        self.value += (size - self.value) * (1.0 if self.count == 1 else max(1 / self.count, SHARE))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors in ``state``."""
        return ("value_size",) if self.active else ()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: nothing while not ``active``."""
        return {name: torch.tensor([self.value, self.count], dtype=torch.float64) for name in self.names}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Undo ``state``."""
        for name in self.names:
            self.value, self.count = float(state[name][0]), int(state[name][1])

    def metrics(self) -> dict[str, float]:
        """The size, where it is followed."""
        return dict.fromkeys(self.names, self.value)
