"""The shared table, and the gradient that a batch of lookups gives it."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

RADIX_ROWS = 32_768
"""Lookups from which `torch.sort` sorts integers by radix on a CPU, several times as fast as below."""

PROJECTION_RATIO = 6
"""Examples to a row of the table from which `UnifiedEmbedding.project` multiplies the table by the layer."""


class SlotEmbedding(nn.Module):
    """A table that is looked up by slots: int (B, L) -> float32 (B, L * D)."""

    def project(self, slots: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        """Return ``layer(self(slots))``: (B, L) -> (B, H)."""
        projected: torch.Tensor = layer(self(slots))
        return projected


class UnifiedEmbedding(SlotEmbedding):
    """One table that every lookup of every feature reads: Unified Embedding.

    B. Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems",
    NeurIPS 2023, section 3: features share the table, a feature of k lookups has k hash functions into it,
    and its embedding is the concatenation of the k rows.

        output[b] = concat(weight[slots[b, 0]], ..., weight[slots[b, L - 1]])

    The hashes are not computed here: the store has them as slots.

    Args:
        num_slots: rows of the table.
        dim: D, floats of a row.
        std: standard deviation of the initial weights, drawn from a normal distribution.
        sparse: give ``weight`` a gradient of the rows looked up only, a sparse COO tensor whose cost does
            not depend on ``num_slots``. Not every optimizer takes one.

    Shapes:
        slots: int32 or int64 (B, L), each in 0..num_slots-1.
        output: float32 (B, L * D), lookup 0 first.

    Raises:
        IndexError: in the forward pass on a CPU, where a slot is outside the table.

    The one parameter is ``weight``, float32 (num_slots, D).
    """

    def __init__(self, num_slots: int, dim: int, std: float = 1.0, *, sparse: bool = False) -> None:
        super().__init__()
        self.sparse = sparse
        self.weight = nn.Parameter(torch.empty(num_slots, dim))
        nn.init.normal_(self.weight, std=std)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Look up and concatenate: (B, L) -> (B, L * D)."""
        return look_up(self.weight, slots, sparse=self.sparse).flatten(1)  # (B, L, D) -> (B, L * D)

    def project(self, slots: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        """Return ``layer(self(slots))``, by the cheaper of two roads on a CPU.

        A linear layer on the concatenated rows is a sum over the lookups, W_l being the columns of its
        weight that lookup l meets:

            layer(self(slots))[b] = bias + sum over l of weight[slots[b, l]] @ W_l.T

        Where a batch has several times the examples that the table has rows, as the article's has at 8,192,
        multiplying the whole table by every W_l and adding up L rows an example costs far less. The result
        differs in the last bits.

        Args:
            slots: int32 or int64 (B, L).
            layer: from L * D features to H, with a bias.

        Returns:
            float32 (B, H).

        Raises:
            IndexError: on a CPU, where a slot is outside the table.
        """
        if self.sparse or not projects_table(slots, len(self.weight)):
            return super().project(slots, layer)
        return project_table(self.weight, slots, layer)

    def whole(self) -> torch.Tensor:
        """Return the table, (num_slots, D)."""
        return self.weight

    def extra_repr(self) -> str:
        """Describe the table in `repr`."""
        return "{}, {}".format(*self.weight.shape) + (", sparse=True" if self.sparse else "")


def projects_table(slots: torch.Tensor, num_slots: int) -> bool:
    """Whether `project_table` is the cheaper road for slots (B, L) into a table of so many rows."""
    if slots.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return slots.numel() >= RADIX_ROWS and len(slots) >= PROJECTION_RATIO * num_slots


def project_table(weight: torch.Tensor, slots: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """Return what `UnifiedEmbedding.project` does, multiplying the table (num_slots, D): (B, L) -> (B, H)."""
    (num_slots, dim), lookups = weight.shape, slots.shape[1]
    check_slots(slots, num_slots)
    parts = layer.weight.view(-1, lookups, dim).permute(2, 1, 0)  # (D, L, H): all W_l.T
    products = weight @ parts.flatten(1)  # (num_slots, L * H)
    table = products.view(num_slots * lookups, -1)  # row s * L + l: weight[s] @ W_l.T
    rows = slots * lookups + torch.arange(lookups, dtype=slots.dtype)
    sums: torch.Tensor = _CpuSum.apply(table, rows)
    return sums + layer.bias


def check_slots(slots: torch.Tensor, num_slots: int) -> None:
    """Raise IndexError where a slot is outside a table of so many rows."""
    if not slots.numel():
        return
    low, high = torch.aminmax(slots)
    if low < 0 or high >= num_slots:
        raise IndexError(f"a slot is outside the table: it has {num_slots:,} rows")


def look_up(weight: torch.Tensor, slots: torch.Tensor, *, sparse: bool = False) -> torch.Tensor:
    """Return ``weight[slots]``, (N, D) and (...) -> (..., D), whose gradient costs little on a CPU too."""
    if weight.device.type == "cpu":
        rows: torch.Tensor = _CpuLookup.apply(weight, slots, sparse)
        return rows
    return functional.embedding(slots, weight, sparse=sparse)


class _CpuSum(torch.autograd.Function):
    """Sums of rows: (N, H), int (B, L) -> (B, H), with the backward of `_CpuLookup`."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # torch's
        ctx.save_for_backward(rows)
        ctx.num_rows = len(table)
        return functional.embedding_bag(rows, table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        (rows,) = ctx.saved_tensors
        order, starts = _runs(rows.reshape(-1), ctx.num_rows)
        return _sum_runs(grad, order // rows.shape[1], starts), None  # every lookup of b has b's gradient


class _CpuLookup(torch.autograd.Function):
    """`functional.embedding` with another backward: torch's own adds one row after the other on a CPU."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, slots: torch.Tensor, sparse: bool) -> torch.Tensor:  # noqa: ANN401, FBT001  # torch's
        ctx.save_for_backward(slots)
        ctx.num_slots, ctx.sparse = len(weight), sparse
        return functional.embedding(slots, weight)  # (B, L) -> (B, L, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        (slots,) = ctx.saved_tensors
        slots, rows = slots.reshape(-1), grad.reshape(-1, grad.shape[-1])  # (B * L,), (B * L, D)
        if ctx.sparse:
            return sparse_gradient(slots, rows, ctx.num_slots), None, None
        dense = _dense_operator if torch.compiler.is_compiling() else dense_gradient
        return dense(slots, rows, ctx.num_slots), None, None


def dense_gradient(slots: torch.Tensor, rows: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Sum the gradients of the lookups of each slot, on a CPU.

        result[s] = sum of rows[i] over all i where slots[i] == s

    The rows of a slot are added in the order they have in the batch, so that the bits depend neither on
    the run nor on the number of threads, and are those of torch's own backward.

    Args:
        slots: int32 or int64 (N,), each in 0..num_slots-1.
        rows: float (N, D).
        num_slots: rows of the table.

    Returns:
        As ``rows``, (num_slots, D).
    """
    if len(slots) < RADIX_ROWS:  # scatter_add_ has a radix sort of its own where the index is expanded
        index = slots.long()[:, None].expand_as(rows)
        return rows.new_zeros(num_slots, rows.shape[1]).scatter_add_(0, index, rows)
    return _sum_runs(rows, *_runs(slots, num_slots))


# One operator to `torch.compile`, which cannot look into it (bincount's size depends on the data), and whose
# own backward of a lookup adds atomically: as fast, but with other bits at every run of several threads.
_dense_operator = torch.library.custom_op("slotstore::dense_gradient", dense_gradient, mutates_args=())


@_dense_operator.register_fake
def _(_slots: torch.Tensor, rows: torch.Tensor, num_slots: int) -> torch.Tensor:
    return rows.new_empty(num_slots, rows.shape[1])


def sparse_gradient(slots: torch.Tensor, rows: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Return what `dense_gradient` returns as a coalesced sparse COO tensor of the rows looked up."""
    keys, order = _sort(slots, num_slots)
    found, counts = torch.unique_consecutive(keys, return_counts=True)  # both (U,), U distinct slots
    starts = counts.cumsum(0) - counts
    sums = functional.embedding_bag(order, rows, starts, mode="sum")  # (U, D)
    return torch.sparse_coo_tensor(
        found.long()[None], sums, (num_slots, rows.shape[1]), is_coalesced=True, check_invariants=False
    )


def _runs(slots: torch.Tensor, num_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lookups by slot: those of slot s are order[starts[s] : starts[s + 1]], of order (N,)."""
    keys, order = _sort(slots, num_slots)
    starts = order.new_zeros(num_slots + 1)
    torch.cumsum(torch.bincount(keys, minlength=num_slots), 0, out=starts[1:])
    return order, starts


def _sum_runs(rows: torch.Tensor, order: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Return the sum of each run of rows: result[s] = rows[order[starts[s] : starts[s + 1]]].sum(0)."""
    return functional.embedding_bag(order, rows, starts, mode="sum", include_last_offset=True)


def _sort(slots: torch.Tensor, num_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the slots in ascending order, and where each came from: int64 (N,), equal ones in order."""
    narrow = slots.short() if num_slots <= 1 << 15 else slots  # half the bytes, two thirds of the time
    keys, order = torch.sort(narrow, stable=True)
    return keys, order
