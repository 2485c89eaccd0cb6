"""A table whose rows are spread over the processes of a training."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from training.embeddings import SlotEmbedding, look_up
from training.world import World, mark_sharded

CHUNK_FLOATS = 16_000_000
"""Floats that are made or sent at a time; a multiple of 16, see `_normal_chunks`."""


class ShardedEmbedding(SlotEmbedding):
    """`training.embeddings.UnifiedEmbedding` with its rows spread over N ranks, in 1/N of the memory.

    Rank r has the rows r * R .. (r + 1) * R - 1, where R = ceil(num_slots / N). For a batch, a rank asks each
    owner for the distinct rows it needs and receives those alone; the backward sends their gradients, summed
    over the rank's own batch, the same way back:

        forward:   slots -> distinct rows --all_to_all--> owners, rows --all_to_all--> output
        backward:  gradient -> sums by distinct row --all_to_all--> owners: weight.grad

    The loss of every rank must be divided by the global number of rows: owners sum the gradients.
    Every call is collective: ranks must call as often as each other, one without rows with slots (0, L).

    PyTorch's own way, RowwiseParallel for nn.Embedding, was not taken. All its ranks look up the *whole*
    global batch and add up what they found, N times the rows: 19 ms a forward and backward against 6 (two
    ranks on a CPU, 4,096 x 8 slots each, 16 floats, 100,000 slots; torch 2.15). A batch of other sizes on
    other ranks aborts the process under gloo, and there are no sparse gradients.

    Args:
        num_slots: rows of the whole table.
        dim: D, floats of a row.
        std: standard deviation of the initial weights. They are those of an unsharded table made from the
            same seed, and leave the generator in the same state.
        world: the ranks that share the table.
        sparse: make ``weight.grad`` sparse, with the rows that the batch has.

    Shapes:
        slots: int32 or int64 (b, L), each in 0..num_slots-1; b may differ by rank.
        output: float32 (b, L * D), lookup 0 first.

    The one parameter is ``weight``, float32 (rows of this rank, D).
    ``before_lookup`` may be set: it is called with the rows, int64 (n,) counted from this rank's first, that
    are about to be read for other ranks or this one.

    Raises:
        IndexError: in the forward, a slot is not in the table.
    """

    def __init__(
        self, num_slots: int, dim: int, std: float = 1.0, world: World | None = None, *, sparse: bool = False
    ) -> None:
        super().__init__()
        self.world = world or World()
        self.num_slots, self.dim, self.sparse = num_slots, dim, sparse
        self.before_lookup: Callable[[torch.Tensor], None] | None = None
        self.rank_rows = -(-num_slots // self.world.size)
        own = self.rows_of(self.world.rank)
        self.weight = nn.Parameter(torch.empty(len(own), dim))
        mark_sharded(self.weight)
        _fill_normal(self.weight.data, num_slots, own, std)

    def rows_of(self, rank: int) -> range:
        """Return the rows that a rank has; the last ranks may have fewer, or none."""
        bounds = [min(number * self.rank_rows, self.num_slots) for number in (rank, rank + 1)]
        return range(*bounds)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Look up and concatenate: (b, L) -> (b, L * D)."""
        distinct, place = torch.unique(
            slots.long(), return_inverse=True
        )  # sorted, and so in the owners' order
        wanted = self._wanted(distinct)
        out = wanted.tolist()
        if sum(out) != len(distinct):
            raise IndexError(f"a slot is not in 0..{self.num_slots - 1}")
        into = self.world.exchange(wanted, [1] * self.world.size, [1] * self.world.size).tolist()
        local = self.world.exchange(distinct, out, into) - self.rows_of(self.world.rank).start
        if self.before_lookup is not None:
            self.before_lookup(local)
        found = look_up(self.weight, local, sparse=self.sparse)  # (rows asked of us, D)
        rows = _Exchange.apply(found, into, out, self.world)  # (distinct rows, D)
        return look_up(rows, place).flatten(1)  # (b, L, D) -> (b, L * D)

    def _wanted(self, distinct: torch.Tensor) -> torch.Tensor:
        """Count the rows that each rank has of some sorted ones: (n,) -> int64 (N,)."""
        ranks = torch.arange(self.world.size + 1, device=distinct.device)
        bounds = torch.searchsorted(distinct, (ranks * self.rank_rows).clamp(max=self.num_slots))
        return bounds.diff()

    def extra_repr(self) -> str:
        """Describe the table in `repr`."""
        return f"{self.num_slots}, {self.dim}, rows {self.rows_of(self.world.rank)} here"


class _Exchange(torch.autograd.Function):
    """`World.exchange` whose backward sends the gradients the other way."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        rows: torch.Tensor,
        out: list[int],
        into: list[int],
        world: World,
    ) -> torch.Tensor:
        ctx.out, ctx.into, ctx.world = out, into, world
        return world.exchange(rows, out, into)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: torch.Tensor,
    ) -> tuple[torch.Tensor, None, None, None]:
        return ctx.world.exchange(gradient, ctx.into, ctx.out), None, None, None


def _fill_normal(weight: torch.Tensor, num_slots: int, own: range, std: float) -> None:
    """Fill rows ``own`` of a table with what ``normal_`` gives the table as a whole, a chunk at a time.

    On a CPU ``normal_`` makes 16 floats at a time, and the last 16 once more where their number is no
    multiple of 16. So it makes the same numbers in chunks, where all but the last are such multiples and the
    last has at least 16.
    """
    dim = weight.shape[1]
    total, first, last = num_slots * dim, own.start * dim, own.stop * dim
    starts = list(range(0, total, CHUNK_FLOATS))
    if len(starts) > 1 and total - starts[-1] < 16:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], total], strict=True):
        drawn = torch.empty(stop - start).normal_(std=std)
        low, high = max(start, first), min(stop, last)
        if low < high:
            weight.view(-1)[low - first : high - first] = drawn[low - start : high - start]


def full_table(embedding: ShardedEmbedding) -> torch.Tensor | None:
    """Return the whole table (num_slots, D) on rank 0's CPU, None on others, which must all call this."""
    return _full(embedding.weight.detach(), embedding)


def _full(own: torch.Tensor, embedding: ShardedEmbedding) -> torch.Tensor | None:
    """Gather rows (rows of this rank, ...) chunk by chunk: only rank 0 has more than its own."""
    world = embedding.world
    full = None if world.rank else torch.empty(embedding.num_slots, *own.shape[1:], dtype=own.dtype)
    chunk_rows = max(1, CHUNK_FLOATS // embedding.dim)
    for source in range(world.size):
        rows = embedding.rows_of(source)
        for start in range(0, len(rows), chunk_rows):
            part = rows[start : start + chunk_rows]
            if source == world.rank:
                chunk = own[start : start + chunk_rows]
            else:
                chunk = own.new_empty(len(part) if full is not None else 0, *own.shape[1:])
            world.to_first(chunk, source)
            if full is not None:
                full[part.start : part.stop] = chunk
    return full


def load_rows(embedding: ShardedEmbedding, full: torch.Tensor) -> None:
    """Take this rank's rows from a whole table, which may be a mapped file and was saved at any N.

    Raises:
        ValueError: it has another shape.
    """
    if full.shape != (embedding.num_slots, embedding.dim):
        raise ValueError(
            f"the table has shape {(embedding.num_slots, embedding.dim)}, this one {tuple(full.shape)}"
        )
    with torch.no_grad():
        embedding.weight.copy_(_own(full, embedding))


def _own(full: torch.Tensor, embedding: ShardedEmbedding) -> torch.Tensor:
    rows = embedding.rows_of(embedding.world.rank)
    return full[rows.start : rows.stop]


def full_state(optimizer: torch.optim.Optimizer, embedding: ShardedEmbedding) -> dict[str, Any] | None:
    """Return an optimizer's state with that of the whole table, on rank 0; None on others, which call too."""
    state = optimizer.state_dict()
    state = _with_rows(optimizer, state, embedding, lambda rows: _full(rows, embedding))
    return None if embedding.world.rank else state


def own_state(
    optimizer: torch.optim.Optimizer, full: Mapping[str, Any], embedding: ShardedEmbedding
) -> dict[str, Any]:
    """Return a state from `full_state`, saved at any N, with what belongs to this rank's rows."""
    return _with_rows(optimizer, full, embedding, lambda rows: _own(rows, embedding).clone())


def _with_rows(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    embedding: ShardedEmbedding,
    change: Callable[[torch.Tensor], torch.Tensor | None],
) -> dict[str, Any]:
    """Change what a state has by row of the table: each tensor of its parameter that is no mere number."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    changed = dict(state["state"])
    for number, parameter in enumerate(parameters):  # torch names parameters by their order
        if parameter is embedding.weight and number in changed:
            changed[number] = {
                name: change(value) if isinstance(value, torch.Tensor) and value.dim() else value
                for name, value in changed[number].items()
            }
    return {**state, "state": changed}
