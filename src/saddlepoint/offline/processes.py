"""The processes of a pretraining run: one, or those that ``accelerate launch`` started. They are the learner's
``Peers`` too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from saddlepoint.train.processes import join_processes
from saddlepoint.types import Metrics, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """``count`` processes, of which this is number ``rank``; all of them must call the same methods in the same order.

    A process alone needs no ``accelerate``. Raises ``UserError`` where several were started and it is missing.
    """

    def __init__(self, device: Literal["auto", "cpu", "cuda"]) -> None:
        cpu = device == "cpu" or not torch.cuda.is_available()
        self._accelerator: Accelerator | None = None
        self.rank, self.count, self.device = 0, 1, torch.device("cpu" if cpu else "cuda")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if find_spec("accelerate") is None:
                raise UserError("pretraining in several processes needs accelerate: pip install saddlepoint[pretrain]")
            self._accelerator = join_processes(device)
            self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def any(self, mine: bool) -> bool:
        """Whether it holds in one of them."""
        if self._accelerator is None:
            return mine
        flag = torch.tensor([float(mine)], device=self.device)
        return bool(self._accelerator.reduce(flag, reduction="sum") > 0)

    def gather(self, mine: Any) -> list[Any]:
        """What each of them has, by rank; any small object."""
        if self._accelerator is None:
            return [mine]
        from accelerate.utils import gather_object

        return gather_object([mine])

    def mean(self, metrics: Metrics) -> dict[str, float]:
        """Each metric's mean over the processes."""
        if not metrics:
            return {}
        values = torch.tensor([float(value) for value in metrics.values()], dtype=torch.float64)
        if self._accelerator is not None:
            values = self._accelerator.reduce(values.to(self.device, torch.float32), reduction="mean")
        return dict(zip(metrics, values.tolist()))

    # ------------------------------------------------------------------------------------------------ the learner's
    # Peers

    def pool(self, x: Tensor) -> Tensor:
        """(..., rows) of this process -> (..., rows of all). No gradient passes."""
        if self._accelerator is None:
            return x
        return self._accelerator.gather(x.detach().movedim(-1, 0).contiguous()).movedim(0, -1)

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        if self._accelerator is None:
            return
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        mean = self._accelerator.reduce(flat, reduction="mean")
        for grad, part in zip(grads, mean.split([grad.numel() for grad in grads])):
            grad.copy_(part.view_as(grad))
