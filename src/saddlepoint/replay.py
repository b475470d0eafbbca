"""A ring of transitions in preallocated tensors: batches for off-policy learners, sub-sequences for world models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from saddlepoint.constrained.budget import CostBudget, spent
from saddlepoint.faults import explain
from saddlepoint.files import copy_rows
from saddlepoint.machine import free_memory
from saddlepoint.types import Batch, UserError

Array: TypeAlias = np.ndarray | Tensor

FLOAT_BYTES = 4


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on ``device``, in bytes; None where the system does not say."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


class Ahead(NamedTuple):
    """What followed a transition, up to where a cost critic bootstraps."""

    cost: Tensor
    """(batch, constraints): sum_{k < m} gamma^k c_{t+k}"""
    observation: Tensor
    """(batch, observation), o_{t+m}"""
    discount: Tensor
    """(batch,), gamma^m"""
    terminated: Tensor
    """(batch,) float, 1 where the task ended at step t+m"""

    @classmethod
    def of(cls, batch: Batch, gamma: float) -> Ahead:
        """One step ahead, m = 1."""
        return cls(batch.cost, batch.next_observation, torch.full_like(batch.reward, gamma), batch.terminated)


class Position(NamedTuple):
    """Where a ring stands."""

    rows: int
    num_envs: int
    head: int
    """the row that is written next"""
    filled: int
    """rows that hold data"""


def saved_position(state: Mapping[str, Tensor]) -> Position:
    """The position in a ``Replay.state_dict``. Raises ``UserError`` unless it is one whose other tensors have as
    many rows."""
    if set(state) != {*Batch._fields, "age", "next_age", "position"}:
        raise UserError("this is not a saved replay, or one of another version: its tensors have other names.")
    numbers = state["position"]
    if numbers.shape != (4,) or numbers.dtype != torch.int64:
        raise UserError("the saved replay is damaged: it does not say where it stands.")
    position = Position(*numbers.tolist())
    rows, num_envs, head, filled = position
    if not (
        rows > 0 and num_envs > 0 and 0 <= head < rows and 0 <= filled <= rows and (filled == rows or head == filled)
    ):
        raise UserError(f"the saved replay is damaged: it cannot stand at row {head} of {rows} with {filled} filled.")
    sizes = {name: state[name].shape[0] if state[name].ndim else 0 for name in (*Batch._fields, "age")}
    if any(size != filled * num_envs for size in sizes.values()) or state["next_age"].shape != (num_envs,):
        raise UserError("the saved replay is damaged: its tensors have different numbers of transitions.")
    return position


class Rising:
    """Rising whole numbers, of which the smallest are forgotten: appended to, at the cost of what is new."""

    def __init__(self, device: torch.device) -> None:
        self._numbers = torch.empty(1024, dtype=torch.int64, device=device)
        self._begin = self._end = 0

    def append(self, more: Tensor) -> None:
        """Take in numbers (count,) above all others."""
        if self._end + len(more) > len(self._numbers):
            kept = self._numbers[self._begin : self._end]
            self._numbers = kept.new_empty(2 * (len(kept) + len(more)) + 1024)
            self._numbers[: len(kept)] = kept
            self._begin, self._end = 0, len(kept)
        self._numbers[self._end : self._end + len(more)] = more
        self._end += len(more)

    def since(self, least: int) -> Tensor:
        """Those from ``least`` on, (count,); smaller ones are forgotten."""
        kept = self._numbers[self._begin : self._end]
        self._begin += int(torch.searchsorted(kept, least)) if len(kept) else 0
        return self._numbers[self._begin : self._end]


class Replay:
    """The last ``capacity`` transitions of ``num_envs`` streams on ``device``, float32 but for observations of
    ``dtype``.

    A row holds one step of every environment, so rows are written in one piece and a stream never moves between
    environments; ``capacity`` is rounded down to whole rows. Both ends of a transition are stored: one observation more
    a transition than sharing them would need, and no special case at the end of an episode. Memory is touched only as
    the ring fills. Samples are of the ring's own types: pictures stay bytes until a learner reads them.

    ``age`` counts the steps of the same unbroken episode before a transition. A sub-sequence of ``length`` steps may
    end at a transition exactly when its age is at least ``length - 1`` and its first step has not been overwritten.

    ``cut`` says that its episodes are cut short, so that sums over them say nothing of whole ones (``spent``). ``surcharge`` (constraints,) is what an
    episode of the policy that the budget binds costs more than these, in the units of each h (``train.verdict.surcharge``); a checkpoint of the replay
    does not hold it.

    Raises ``UserError`` when the ring needs more than ``memory_limit`` bytes (default: what the machine has available).
    """

    def __init__(
        self, capacity: int, observation: int, action: int, constraints: int, num_envs: int = 1,
        device: torch.device | str = "cpu", memory_limit: int | None = None, dtype: torch.dtype = torch.float32,
        cut: bool = False,
    ) -> None:  # fmt: skip
        self.device = torch.device(device)
        self.num_envs, self.cut = num_envs, cut
        self.rows = capacity // num_envs
        if self.rows < 1:
            raise UserError(
                f"a replay of {capacity} is less than one step of {num_envs} environments: raise --replay-size."
            )
        needed = self.bytes_needed(capacity, observation, action, constraints, dtype)
        limit = available_bytes(self.device) if memory_limit is None else memory_limit
        if limit is not None and needed > limit:
            raise UserError(
                f"a replay of {capacity} transitions needs {needed / 1e9:.2f} GB and {limit / 1e9:.2f} GB are available"
                f" on {self.device}: lower --replay-size to at most {int(limit * 0.9) // (needed // capacity)}."
            )
        slots = self.rows * num_envs

        def ring(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            try:
                return torch.empty(slots, *shape, dtype=dtype, device=self.device)
            except (RuntimeError, MemoryError) as error:  # a limit that the system does not tell, such as ulimit -v
                if (sentence := explain(error)) is None:
                    raise
                raise UserError(
                    f"a replay of {capacity} transitions needs {needed / 1e9:.2f} GB: {sentence}"
                ) from error

        before, after = (ring(observation, dtype=dtype) for _ in range(2))
        self._fields = Batch(before, ring(action), ring(), ring(constraints), after, ring())
        self._age = ring(dtype=torch.int32)
        self._next_age = torch.zeros(num_envs, dtype=torch.int32, device=self.device)
        self._head = 0  # the row that is written next
        self._filled = 0  # rows that hold data
        self._written = self._looked = 0  # rows ever written, and those of them that ``_paying_steps`` has seen
        self._paying = Rising(self.device)
        self.surcharge = torch.zeros(constraints, dtype=torch.float64)

    @staticmethod
    def bytes_needed(
        capacity: int, observation: int, action: int, constraints: int, dtype: torch.dtype = torch.float32
    ) -> int:
        """Bytes of a full ring: both observations, of ``dtype``, and action, costs, reward, terminated and age, four
        bytes each.
        """
        return capacity * (2 * observation * dtype.itemsize + FLOAT_BYTES * (action + constraints + 3))

    def __len__(self) -> int:
        """Transitions in the ring."""
        return self._filled * self.num_envs

    def add(
        self, observation: Array, action: Array, reward: Array, cost: Array, next_observation: Array,
        terminated: Array, truncated: Array,
    ) -> None:  # fmt: skip
        """Write one step of every environment.

        Shapes: observations (envs, observation), action (envs, action), cost (envs, constraints), the others (envs,).
        ``next_observation`` is the real successor, also at the end of an episode; ``truncated`` only ends the stream
        for sub-sequences.
        """
        start = self._head * self.num_envs
        row = slice(start, start + self.num_envs)
        ended = torch.as_tensor(terminated, device=self.device).bool()
        for ring, value in zip(self._fields, (observation, action, reward, cost, next_observation, ended), strict=True):
            ring[row].copy_(torch.as_tensor(value))
        self._age[row] = self._next_age
        ended = ended | torch.as_tensor(truncated, device=self.device).bool()
        self._next_age = torch.where(ended, 0, self._next_age + 1)
        self._head = (self._head + 1) % self.rows
        self._filled, self._written = min(self._filled + 1, self.rows), self._written + 1

    def break_episodes(self) -> None:
        """The next transitions do not continue the last ones (the environments were started anew)."""
        self._next_age.zero_()

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """``batch_size`` transitions, uniformly with replacement. Raises ``UserError`` when the replay is empty."""
        self._require_filled()
        index = torch.randint(len(self), (batch_size,), generator=generator, device=generator.device).to(self.device)
        return Batch(*(ring.index_select(0, index) for ring in self._fields))

    def sample_ahead(
        self, batch_size: int, steps: int, gamma: float, generator: torch.Generator, costly: float = 0.0
    ) -> tuple[Batch, Ahead]:  # fmt: skip
        """As ``sample``, and the costs that really followed each transition for up to ``steps`` steps of its episode, discounted by ``gamma``.

        They stop at the end of the episode and at the newest step of the ring. The share ``costly`` of the transitions is drawn from those that pay
        something within ``steps`` steps, where the ring holds any.
        """
        self._require_filled()
        index = torch.randint(len(self), (batch_size,), generator=generator, device=generator.device).to(self.device)
        if share := round(costly * batch_size):
            index[:share] = self._before_costs(index[:share], steps, generator)
        batch = Batch(*(ring.index_select(0, index) for ring in self._fields))
        ahead = torch.arange(steps, device=self.device).unsqueeze(1)
        slot = (index + ahead * self.num_envs) % (self.rows * self.num_envs)  # (steps, batch)
        newer = (self._head - 1 - index // self.num_envs) % self.rows  # rows after each; then the ring holds its oldest
        age = self._age.index_select(0, slot.flatten()).view_as(slot)
        going = (ahead <= newer) & (age == age[0] + ahead)  # ages never come back in step once an episode has ended
        cost = self._fields.cost.index_select(0, slot.flatten()).unflatten(0, slot.shape)
        cost = torch.where(going.unsqueeze(-1), cost, 0.0)  # a slot that was never written may hold anything
        taken = going.sum(0)
        last = slot.gather(0, taken.unsqueeze(0) - 1)[0]
        paid = (gamma ** ahead.unsqueeze(-1) * cost).sum(0)
        ends = self._fields.terminated.index_select(0, last)
        return batch, Ahead(paid, self._fields.next_observation.index_select(0, last), gamma**taken, ends)

    def _before_costs(self, otherwise: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Up to ``steps - 1`` steps before a transition that pays, as many as there are of ``otherwise``, which is taken where none pays."""
        paying = self._paying_steps()
        pick, back = torch.rand(2, len(otherwise), generator=generator, device=generator.device).to(self.device)
        if not len(paying):
            return otherwise
        slots = self.rows * self.num_envs
        slot = self._slots(paying[(pick * len(paying)).long()])
        before = torch.minimum((back * steps).long(), self._age.index_select(0, slot).long())
        older = self._filled - 1 - (self._head - 1 - slot // self.num_envs) % self.rows  # rows before it in the ring
        return (slot - torch.minimum(before, older) * self.num_envs) % slots

    def _paying_steps(self) -> Tensor:
        """The transitions that pay, oldest first, counted from the first that was ever written. Only rows that are new since the last call are looked at."""
        if self._looked < self._written:
            row = torch.arange(max(self._looked, self._written - self._filled), self._written, device=self.device)
            number = (row.unsqueeze(1) * self.num_envs + torch.arange(self.num_envs, device=self.device)).flatten()
            pays = (self._fields.cost.index_select(0, self._slots(number)) > 0).any(-1)
            self._paying.append(number[pays])
            self._looked = self._written
        return self._paying.since((self._written - self._filled) * self.num_envs)

    def _slots(self, number: Tensor) -> Tensor:
        """Where transitions lie, by their number since the first that was ever written."""
        return (number + (self._head - self._written) * self.num_envs) % (self.rows * self.num_envs)

    def recent(self, steps: int, horizon: int = 1) -> tuple[Tensor, Tensor]:
        """Costs (rows, envs, constraints) and ages (rows, envs) of the last ``steps`` transitions: what the
        behaviour policy paid in them.

        They are at least ``horizon`` of each environment, and all there are where that is less. Raises ``UserError``
        when the replay is empty.
        """
        self._require_filled()
        rows = min(max(steps // self.num_envs, horizon), self._filled)
        cost, age = (ring.unflatten(0, (self.rows, self.num_envs)) for ring in (self._fields.cost, self._age))
        if rows <= self._head:
            return cost[self._head - rows : self._head], age[self._head - rows : self._head]
        row = torch.arange(self._head - rows, self._head, device=self.device) % self.rows
        return cost.index_select(0, row), age.index_select(0, row)

    def recent_under(self, steps: int, horizon: int) -> tuple[Tensor, Tensor]:
        """Costs (steps,) of the one constraint and budgets (steps,) of the last transitions, as many as ``recent`` takes, where observations end with a
        budget (``--budget-range``)."""
        self._require_filled()
        rows = min(max(steps // self.num_envs, horizon), self._filled)
        row = torch.arange(self._head - rows, self._head, device=self.device) % self.rows
        cost, seen = (ring.unflatten(0, (self.rows, self.num_envs)) for ring in (self._fields.cost, self._fields.observation))
        return cost.index_select(0, row)[..., 0].flatten(), seen[..., -1].index_select(0, row).flatten()

    def spent(self, budgets: tuple[CostBudget, ...], steps: int) -> Tensor:
        """The measured cost of recent episodes and the ``surcharge``, (constraints,) float64 in the units of each h (``budget.spent``), from the last
        ``steps`` or a whole episode of each environment. Raises ``UserError`` when the replay is empty.
        """
        return spent(budgets, *self.recent(steps, max(budget.steps for budget in budgets)), self.cut) + self.surcharge

    def _require_filled(self) -> None:
        if not len(self):
            raise UserError("the replay is empty: add transitions (--warmup-steps) before the first update.")

    def reward_size(self) -> float:
        """Mean |reward| of a step over everything stored; 1 where all rewards are 0. Raises ``UserError`` when the
        replay is empty."""
        self._require_filled()
        return float(self._fields.reward[: len(self)].abs().mean(dtype=torch.float64)) or 1.0

    def unusual_rewards(self, newest: int) -> float:
        """Share of the stored rewards, but for the ``newest`` steps, that are not the median of them: 0 where all are the same, or none is left."""
        row = torch.arange(self._head - self._filled, self._head - min(newest, self._filled), device=self.device) % self.rows
        reward = self._fields.reward.unflatten(0, (self.rows, self.num_envs)).index_select(0, row)
        return float((reward != reward.median()).double().mean()) if len(row) else 0.0

    def sample_sequences(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        """``batch_size`` sub-sequences of ``length`` steps, (batch, time, ...), uniformly with replacement.

        None crosses the end of an episode, the write head or another environment's stream. Raises ``UserError`` when
        the replay holds no such sub-sequence.
        """
        if length < 1:
            raise UserError(f"a sub-sequence has at least one step, not {length}.")
        oldest = self._head if self._filled == self.rows else 0
        ends = self._filled - (length - 1)  # rows late enough to be the last of a sub-sequence
        if ends < 1:
            raise UserError(
                f"the replay holds {self._filled} steps a stream, too few for sub-sequences of {length}:"
                " raise --warmup-steps."
            )

        def whole(candidates: Tensor) -> Tensor:
            """Slots, among the (row by age, environment) numbers given, at which a sub-sequence ends."""
            row, env = candidates // self.num_envs, candidates % self.num_envs
            slots = (oldest + length - 1 + row) % self.rows * self.num_envs + env
            return slots[self._age.index_select(0, slots) >= length - 1]

        # Four candidates each are nearly always enough; if not, list them all. Either way the draw is uniform.
        draw = torch.randint(ends * self.num_envs, (4 * batch_size,), generator=generator, device=generator.device)
        chosen = whole(draw.to(self.device))[:batch_size]
        if len(chosen) < batch_size:
            every = whole(torch.arange(ends * self.num_envs, device=self.device))
            if not len(every):
                raise UserError(f"no episode in the replay has {length} steps: sample shorter sub-sequences.")
            pick = torch.randint(len(every), (batch_size,), generator=generator, device=generator.device)
            chosen = every.index_select(0, pick.to(self.device))
        back = torch.arange(1 - length, 1, device=self.device) * self.num_envs
        index = ((chosen[:, None] + back) % (self.rows * self.num_envs)).flatten()
        return Batch(*(ring.index_select(0, index).unflatten(0, (batch_size, length)) for ring in self._fields))

    def state_dict(self) -> dict[str, Tensor]:
        """The filled part as views (nothing is copied), and where the ring stands."""
        count = len(self)
        state = {name: ring[:count] for name, ring in self._fields._asdict().items()}
        position = torch.tensor([self.rows, self.num_envs, self._head, self._filled])
        return state | {"age": self._age[:count], "next_age": self._next_age, "position": position}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Undo ``state_dict`` to the bit. Of tensors that are only mapped (``files.StoredTensors``) a part at a time is
        in memory beside the ring.

        Raises ``UserError`` when names, shapes or the capacity do not fit.
        """
        rows, num_envs, head, filled = saved_position(state)
        if (rows, num_envs) != (self.rows, self.num_envs):
            raise UserError(
                f"the saved replay has {rows} rows of {num_envs} environments, this one {self.rows} of {self.num_envs}:"
                " resume with the same --replay-size and --num-envs."
            )
        rings = self._fields._asdict() | {"age": self._age}
        for name, ring in (*rings.items(), ("next_age", self._next_age)):
            if state[name].shape[1:] != ring.shape[1:] or state[name].dtype != ring.dtype:
                raise UserError(
                    f"the saved replay's {name} has another shape or type: it belongs to another environment."
                )
        for name, ring in rings.items():
            copy_rows(ring[: filled * num_envs], state, name)
        self._next_age = state["next_age"].to(self.device, copy=True)
        self._head, self._filled, self._written, self._looked = head, filled, filled, 0
        self._paying = Rising(self.device)


class Sampling(Protocol):
    """What a config says of an update's batch."""

    @property
    def batch_size(self) -> int: ...

    @property
    def cost_gamma(self) -> float: ...

    @property
    def cost_steps(self) -> int:
        """steps of costs that are looked ahead"""
        ...

    @property
    def costly_share(self) -> float:
        """share of the batch that is drawn from the transitions that pay within ``cost_steps`` steps"""
        ...


def sampled(config: Sampling, replay: Replay, generator: torch.Generator) -> tuple[Batch, Ahead | None]:
    """The batch of an update, and what followed it where the config's ``cost_steps`` look further than one step."""
    if config.cost_steps == 1 and not config.costly_share:
        return replay.sample(config.batch_size, generator), None
    return replay.sample_ahead(config.batch_size, config.cost_steps, config.cost_gamma, generator, config.costly_share)
