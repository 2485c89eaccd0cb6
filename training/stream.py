"""Splits as batches: the slot columns of a snapshot, shuffled, on the device.

A split of at most ``buffer_rows`` rows is read once, kept, and permuted as a whole every epoch. A larger
one is read again every epoch, shard by shard in a shuffled order, in blocks of ``buffer_rows`` that are
each permuted while a thread reads the next. Either way every row comes exactly once an epoch.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from featurestore.errors import ArtifactError, NotFound, QueryError, did_you_mean
from featurestore.store import FeatureStore
from training.packing import Rows, pack_blocks, packed_columns
from training.prefetch import prefetch
from training.shuffle import Order, Orders, permutation

BUFFER_ROWS = 8_000_000
"""Rows kept in memory: 4 (L + 1) bytes each and 8 for their order, so 352 MB at the default spec's L = 8.

A shuffled split that is kept also has the next epoch's order. One that is larger has two such blocks, the
one in use and the one being read.
"""

PART_ROWS = 65_536
"""Rows that are brought into their order at a time."""

Block = tuple[Rows, Order | None]  # packed rows (n, L + 1), their order (n,) where shuffled


class Batch(NamedTuple):
    """B examples. Read only: unshuffled batches share memory with the stream.

    slots: int32 (B, L), the columns in the order of `FeatureSpec.slot_columns`.
    labels: float32 (B,): the label, or 0.0 and 1.0 where the spec has a threshold.
    """

    slots: torch.Tensor
    labels: torch.Tensor


class SplitStream:
    """The batches of one split of a store.

    The order depends on ``seed``, the epoch and, where the split is larger, ``buffer_rows``; not on the
    batch size, the device or the number of threads. Only the last batch of an epoch may be short.

    Args:
        store: the snapshot to read; it must stay open.
        split: ``train``, ``validation`` or ``test``.
        batch_size: rows of a batch, at least 1.
        seed: of the shuffles, at least 0.
        shuffle: permute the rows each epoch, or keep the store's order.
        buffer_rows: rows to hold in memory, at least 1; `BUFFER_ROWS` says what they cost.
        device: where batches are delivered. To CUDA they go through pinned memory, asynchronously.

    Raises:
        NotFound: there is no such split.
        ArtifactError: while iterating, where the shards cannot be read or hold too few or many rows.
    """

    def __init__(
        self,
        store: FeatureStore,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        buffer_rows: int = BUFFER_ROWS,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(batch_size, buffer_rows) < 1:
            raise ValueError(f"batch_size and buffer_rows must be positive: {batch_size}, {buffer_rows}")
        if split not in store.splits.rows:
            raise NotFound(f"no split {split!r}{did_you_mean(split, store.splits.rows)}")
        self.split, self.batch_size, self.buffer_rows = split, batch_size, buffer_rows
        self.rows: int = store.splits.rows[split]
        self.shuffle, self.seed = shuffle, seed
        self.device = torch.device(device)
        self._store = store
        self._kept: Rows | None = None
        self._orders = Orders(self.rows, seed)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; epochs can be asked for in any order, and again."""
        with contextlib.closing(prefetch(_gather(self._blocks(number), self.batch_size))) as parts:
            for rows in _cut(parts, self.batch_size):
                yield self._deliver(rows)

    def _blocks(self, epoch: int) -> Generator[Block, None, None]:
        if self.rows > self.buffer_rows:
            yield from prefetch(self._streamed(epoch))
        elif self.rows:
            order = self._orders.start(epoch) if self.shuffle else None  # it is made while the rows are read
            block = self._load(), order.result() if order else None
            if self.shuffle:
                self._orders.start(epoch + 1)  # and the next one while these are in use
            yield block

    def _load(self) -> Rows:
        if self._kept is None:
            (self._kept,) = self._read(self.rows, shards=None)
        return self._kept

    def _streamed(self, epoch: int) -> Generator[Block, None, None]:
        """Yield the blocks of a split that does not fit; block numbers start at 1, 0 being the shards."""
        shards = None
        if self.shuffle:
            shards = permutation(len(self._store.snapshot.files("examples")), self.seed, epoch, 0).tolist()
        for number, rows in enumerate(self._read(self.buffer_rows, shards), start=1):
            yield rows, permutation(len(rows), self.seed, epoch, number) if self.shuffle else None

    def _read(self, block_rows: int, shards: list[int] | None) -> Generator[Rows, None, None]:
        rows = 0
        try:
            batches = self._store.stream(self.split, packed_columns(self._store.spec), shards=shards)
            for block in pack_blocks(batches, block_rows, self._store.spec):
                rows += len(block)
                yield block
        except (QueryError, pa.ArrowException) as error:  # no one asked a query: the shards are at fault
            raise ArtifactError(f"cannot read {self._place()}: {error}{_REMEDY}") from error
        if rows != self.rows:
            raise ArtifactError(f"{self._place()}: {rows:,} rows, the manifest says {self.rows:,}{_REMEDY}")

    def _place(self) -> str:
        return f"{self.split} of snapshot {self._store.snapshot.manifest.id} in {self._store.path}"

    def _deliver(self, packed: Rows) -> Batch:
        rows = torch.from_numpy(packed)
        if self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        return Batch(rows[:, :-1], rows[:, -1].view(torch.float32))


_REMEDY = "\n`slotstore snapshots verify` says which shards are damaged; ingest the source again."


def _gather(blocks: Generator[Block, None, None], batch_size: int) -> Generator[Rows, None, None]:
    """Bring blocks into their order, in parts of whole batches; a block without an order stays as it is.

    The parts are made ahead by a thread, so that the training does not wait for memory: where its own
    work has filled the caches, picking the rows of a batch costs it several times what it costs alone.
    """
    part_rows = -(-PART_ROWS // batch_size) * batch_size
    with contextlib.closing(blocks):
        for rows, order in blocks:
            if order is None:
                yield rows
                continue
            for start in range(0, len(rows), part_rows):
                yield rows.take(order[start : start + part_rows], axis=0)


def _cut(parts: Iterable[Rows], batch_size: int) -> Iterator[Rows]:
    """Cut parts into batches (batch_size, L + 1); what a part leaves over begins the next one's first."""
    left: Rows | None = None
    for rows in parts:
        start = 0
        while start < len(rows):
            stop = min(start + batch_size - (0 if left is None else len(left)), len(rows))
            part = rows[start:stop]
            start, left = stop, part if left is None else np.concatenate([left, part])
            if len(left) == batch_size:
                yield left
                left = None
    if left is not None:
        yield left
