"""Arrow batches to packed rows: the layout in which examples wait to be shuffled, and travel.

A packed row is a few int32 words: the slots in the narrowest unsigned integers that hold them, then the
float32 label. A shuffled batch is then one gather of contiguous rows, where columns kept apart would cost
L + 1 cache misses a row; and a table of at most 65,536 slots costs half the memory, disk and copying.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from featurestore.spec import FeatureSpec

Rows = npt.NDArray[np.int32]  # (n, words)

_NARROW = {np.uint8: torch.uint8, np.uint16: torch.uint16, np.int32: torch.int32}


class SlotRangeError(ValueError):
    """A slot column holds a slot that the table does not have: it must not reach a kernel."""

    def __init__(self, column: str, slot: int, num_slots: int) -> None:
        super().__init__(f"{column} holds slot {slot}, the table has slots 0 to {num_slots - 1}")
        self.column, self.slot = column, slot


@dataclass(frozen=True)
class RowFormat:
    """How an example of L lookups is packed.

    columns: the slot columns in order, then the label's.
    num_slots: rows of the table, which every slot must be below.
    threshold: where given, the label becomes 1.0 from here on and 0.0 below.
    """

    columns: tuple[str, ...]
    num_slots: int
    threshold: float | None

    @classmethod
    def of(cls, spec: FeatureSpec) -> "RowFormat":
        """Return the format of a spec's examples."""
        return cls((*spec.slot_columns, spec.label.column), spec.table.num_slots, spec.label.threshold)

    @property
    def lookups(self) -> int:
        """L."""
        return len(self.columns) - 1

    @property
    def slot_type(self) -> type[np.uint8] | type[np.uint16] | type[np.int32]:
        """The narrowest type that holds every slot; slots stay below 2**31."""
        if self.num_slots <= 1 << 8:
            return np.uint8
        return np.uint16 if self.num_slots <= 1 << 16 else np.int32

    @property
    def words(self) -> int:
        """int32 words of a row: the slots, filled up to a whole word, and the label."""
        return -(-self.lookups * np.dtype(self.slot_type).itemsize // 4) + 1

    def empty(self, rows: int) -> Rows:
        """Return packed rows to be written, int32 (rows, words)."""
        return np.zeros((rows, self.words), np.int32)

    def pack(self, batch: pa.RecordBatch, rows: Rows) -> None:
        """Write a batch into packed rows.

        Args:
            batch: n rows of `columns`, without nulls.
            rows: int32 (n, words), written to.

        Raises:
            SlotRangeError: a slot is not in the table.
        """
        *slots, label = map(np.from_dlpack, batch.columns)  # to_numpy would import pandas, half a second
        packed = rows.view(self.slot_type)
        for index, column in enumerate(slots):
            if len(column) and column.view(np.uint32).max() >= self.num_slots:  # negative ones are huge there
                self._refuse(index, column)
            packed[:, index] = column
        if self.threshold is not None:
            label = label >= self.threshold
        rows[:, -1] = label.astype(np.float32, copy=False).view(np.int32)

    def _refuse(self, index: int, column: npt.NDArray[np.int32]) -> None:
        wrong = column[(column < 0) | (column >= self.num_slots)]
        raise SlotRangeError(self.columns[index], int(wrong[0]), self.num_slots)

    def pack_blocks(self, batches: Iterable[pa.RecordBatch], block_rows: int) -> Generator[Rows, None, None]:
        """Pack a stream of batches into blocks of ``block_rows`` rows; only the last may be shorter.

        Yields:
            int32 (block_rows, words), each an array of its own.
        """
        block, filled = self.empty(block_rows), 0
        for batch in batches:
            start = 0
            while start < batch.num_rows:
                part = batch.slice(start, block_rows - filled)
                self.pack(part, block[filled : filled + part.num_rows])
                start, filled = start + part.num_rows, filled + part.num_rows
                if filled == block_rows:
                    yield block
                    block, filled = self.empty(block_rows), 0
        if filled:
            yield block[:filled]

    def unpack(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return slots, int32 (n, L), and labels, float32 (n,), of packed rows on any device.

        Args:
            rows: int32 (n, words).
        """
        narrow = rows.view(_NARROW[self.slot_type])  # (n, words * 1, 2 or 4)
        slots = narrow[:, : self.lookups].to(torch.int32).contiguous()
        return slots, rows[:, -1].view(torch.float32).contiguous()
