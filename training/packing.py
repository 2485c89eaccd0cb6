"""Arrow batches to packed rows: the layout in which examples wait to be shuffled.

A packed row is L + 1 int32 words: the slots, then the bits of the float32 label. A shuffled batch is then
one gather of contiguous rows, where columns kept apart would cost L + 1 cache misses a row.
"""

from collections.abc import Generator, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.spec import FeatureSpec

Rows = npt.NDArray[np.int32]  # (n, L + 1)


def packed_columns(spec: FeatureSpec) -> list[str]:
    """Return the columns of a packed row, in order: the slot columns, then the label."""
    return [*spec.slot_columns, spec.label.column]


def pack(batch: pa.RecordBatch, rows: Rows, threshold: float | None) -> None:
    """Write a batch into packed rows.

    Args:
        batch: n rows of `packed_columns`, without nulls.
        rows: int32 (n, L + 1), written to.
        threshold: where given, the label becomes 1.0 from here on and 0.0 below.
    """
    *slots, label = map(np.from_dlpack, batch.columns)  # to_numpy would import pandas, half a second
    for index, column in enumerate(slots):
        rows[:, index] = column
    if threshold is not None:
        label = label >= threshold
    rows[:, -1] = label.astype(np.float32, copy=False).view(np.int32)


def pack_blocks(
    batches: Iterable[pa.RecordBatch], block_rows: int, spec: FeatureSpec
) -> Generator[Rows, None, None]:
    """Pack a stream of batches into blocks of ``block_rows`` rows; only the last may be shorter.

    Yields:
        int32 (block_rows, L + 1), each an array of its own.
    """
    shape = (block_rows, len(spec.slot_columns) + 1)
    block, filled = np.empty(shape, np.int32), 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, block_rows - filled)
            pack(part, block[filled : filled + part.num_rows], spec.label.threshold)
            start, filled = start + part.num_rows, filled + part.num_rows
            if filled == block_rows:
                yield block
                block, filled = np.empty(shape, np.int32), 0
    if filled:
        yield block[:filled]
