"""The shared table without the rows that no value has, and the remap that finds a slot's row in it."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from training.embeddings import SlotEmbedding, check_slots, look_up, project_table, projects_table
from training.models import Table
from training.optimizers import TABLE

KEPT = "embedding.kept"
"""The remap, among the tensors of a pruned model."""
WORD_BITS = 32


class PrunedEmbedding(SlotEmbedding):
    """`training.embeddings.UnifiedEmbedding` with the rows of some slots alone, K of R, and one for the rest.

        row(s) = number of kept slots below s   where s is kept
                 K                              where it is not
        output[b] = concat(weight[row(slots[b, 0])], ..., weight[row(slots[b, L - 1])])

    The remap is a bitmap, a bit a slot, and for each word of 32 of them how many kept slots come before; the
    bits of a word below a slot's own are counted as in H. S. Warren, "Hacker's Delight", section 5-1. The
    file has the bitmap alone. So it takes 1 bit a slot in the file and 2 in memory, where an int32 a slot
    takes 32, and the kept slots, sorted, 32 a row kept. The rows of 65,536 x 8 slots of 32,768 took 3.1 ms to
    find, with an int32 a slot 0.2, by a binary search in the sorted slots 33; the article's network over 16
    floats took 16 (one thread).

    Args:
        num_slots: R.
        dim: D, floats of a row.
        kept: int32 (ceil(R / 32),); bit s % 32 of word s // 32 says whether slot s has a row.

    Shapes:
        slots: int32 or int64 (B, L), each in 0..R-1.
        output: float32 (B, L * D), lookup 0 first: the bits that the whole table gives, where slots are kept.

    Raises:
        ValueError: ``kept`` is of another shape or type, or has slots beyond the last.
        IndexError: in the forward pass on a CPU, where a slot is outside the table.

    The one parameter is ``weight``, float32 (K + 1, D): the kept rows in order, then that of all others.
    """

    kept: torch.Tensor
    before: torch.Tensor

    def __init__(self, num_slots: int, dim: int, kept: torch.Tensor) -> None:
        super().__init__()
        flags = unpack_slots(kept, num_slots)
        words = np.bitwise_count(kept.numpy().view(np.uint32)).astype(np.int32)
        self.num_slots, self.num_kept = num_slots, int(flags.sum())
        self.register_buffer("kept", kept.clone())
        before = torch.from_numpy(np.cumsum(words, dtype=np.int32) - words)
        self.register_buffer("before", before, persistent=False)
        self.weight = nn.Parameter(torch.empty(self.num_kept + 1, dim))

    def rows(self, slots: torch.Tensor) -> torch.Tensor:
        """Return the row of each slot, of the same shape and type."""
        words, place = (slots >> 5).flatten(), slots & 31
        bits = self.kept.index_select(0, words).view_as(slots)
        ones = bits & ~(-1 << place)  # those below the slot's own, never the sign
        ones -= (ones >> 1) & 0x55555555
        ones = (ones & 0x33333333) + ((ones >> 2) & 0x33333333)
        ones = (ones + (ones >> 4)) & 0x0F0F0F0F
        ones += ones >> 8
        ones = (ones + (ones >> 16)) & 0x3F
        ones += self.before.index_select(0, words).view_as(slots)
        return torch.where((bits >> place) & 1 > 0, ones, self.num_kept)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Look up and concatenate: (B, L) -> (B, L * D)."""
        if slots.device.type == "cpu":
            check_slots(slots, self.num_slots)
        return look_up(self.weight, self.rows(slots)).flatten(1)  # (B, L, D) -> (B, L * D)

    def project(self, slots: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        """Return ``layer(self(slots))`` by the road that the whole table takes, so that the bits are its own.

        Where that multiplies the table it is small beside the batch: it is made whole for it.
        """
        if not projects_table(slots, self.num_slots):
            return super().project(slots, layer)
        return project_table(self.whole(), slots, layer)

    def whole(self) -> torch.Tensor:
        """Return the table with a row for each slot, (R, D)."""
        slots = torch.arange(self.num_slots, dtype=torch.int32, device=self.weight.device)
        return look_up(self.weight, self.rows(slots))

    def extra_repr(self) -> str:
        """Describe the table in `repr`."""
        return f"{self.num_kept} of {self.num_slots} rows, {self.weight.shape[1]}"


def pack_slots(kept: npt.NDArray[np.bool_]) -> torch.Tensor:
    """Return the bitmap of the slots that are kept: bool (R,) -> int32 (ceil(R / 32),)."""
    whole = np.zeros(-(-len(kept) // WORD_BITS) * WORD_BITS, dtype=np.bool_)
    whole[: len(kept)] = kept
    words = np.packbits(whole, bitorder="little").view("<i4")
    return torch.from_numpy(words.astype(np.int32))


def unpack_slots(words: torch.Tensor, num_slots: int) -> npt.NDArray[np.bool_]:
    """Return which slots a bitmap keeps: int32 (ceil(R / 32),) -> bool (R,).

    Raises:
        ValueError: it is of another shape or type, or has slots beyond the last.
    """
    expected = (-(-num_slots // WORD_BITS),)
    if words.dtype != torch.int32 or tuple(words.shape) != expected:
        raise ValueError(
            f"the remap is {words.dtype} {tuple(words.shape)}, that of {num_slots:,} slots is torch.int32 "
            f"{expected}"
        )
    flags = np.unpackbits(words.numpy().astype("<i4").view(np.uint8), bitorder="little").astype(np.bool_)
    if flags[num_slots:].any():
        raise ValueError(f"the remap has slots from {num_slots:,} on, which the table does not have")
    return flags[:num_slots]


def pruned_table(model: Mapping[str, torch.Tensor]) -> Table:
    """Return what makes the table of a pruned model, to be filled with its weights."""
    return lambda num_slots, dim, _std: PrunedEmbedding(num_slots, dim, model[KEPT])


def prune(weights: Mapping[str, torch.Tensor], kept: npt.NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    """Return a model's weights with the rows of the kept slots, and the mean of all others as theirs.

    A value never seen has hashes that no one chose: where they lead to a kept row it has that row, as in the
    whole table. Else it had one of the other rows, whose mean is what it could expect. Where all rows are
    kept nothing leads to that row, and it is zeros.

    Args:
        weights: a state_dict with whole tables, decay paid.
        kept: bool (R,).
    """
    table = weights[TABLE]
    flags = torch.from_numpy(kept)
    rows = table.new_zeros(int(flags.sum()) + 1, table.shape[1])
    rows[:-1] = table[flags]
    if dropped := len(table) - (len(rows) - 1):
        total = table.sum(0, dtype=torch.float64) - rows.sum(0, dtype=torch.float64)
        rows[-1] = (total / dropped).to(table.dtype)
    return {**weights, TABLE: rows, KEPT: pack_slots(kept)}
