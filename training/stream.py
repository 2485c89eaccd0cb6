"""Splits as batches: the slots of a snapshot, shuffled, on the device.

Three feeds give the same batches in the same order. ``device``: the split's packed rows lie on the device and
are gathered there. ``memory``: they lie in memory, from which a thread gathers them ahead of the training.
``stream``: they are read from disk every epoch, in windows of bounded size; a shuffled split that is
larger than a window is read from a copy of it (`training.copies`).
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from featurestore.cache import cache_folder
from featurestore.errors import did_you_mean
from featurestore.store import FeatureStore
from training.order import WINDOW_ROWS, Order, Share, Shuffle
from training.prefetch import prefetch
from training.reader import SplitReader
from training.sources import Resident, Source, Streamed

FEEDS = ("device", "memory", "stream")

PART_ROWS = 65_536
"""Rows that are brought into their order, unpacked and sent to the device at a time."""


class Batch(NamedTuple):
    """This rank's part of a batch: b examples of B.

    slots: int32 (b, L), the columns in the order of `FeatureSpec.slot_columns`.
    labels: float32 (b,): the label, or 0.0 and 1.0 where the spec has a threshold.
    total: B, the rows of the batch on all ranks.
    """

    slots: torch.Tensor
    labels: torch.Tensor
    total: int


class SplitStream:
    """The batches of one split of a store.

    The order depends on ``seed``, the epoch and ``window_rows``; not on the feed, the batch size, the device,
    or the number of ranks or threads. Only the last batch of an epoch may be short.

    Args:
        store: the snapshot to read; it must stay open.
        split: ``train``, ``validation`` or ``test``.
        batch_size: rows of a batch of all ranks, at least 1.
        seed: of the shuffles, at least 0.
        shuffle: permute the rows each epoch, or keep the store's order.
        feed: ``device``, ``memory`` or ``stream``. On a CPU the first two are the same.
        window_rows: rows permuted together, at least 1.
        device: where batches are delivered. To CUDA they go through pinned memory, asynchronously.
        share: which part of each batch to deliver.
        cache: the folder that `training.copies` are kept in; that of the store by default.

    Raises:
        NotFound: there is no such split.
        ArtifactError: while iterating, where the shards cannot be read, hold too few or many rows, or a slot
            that the table does not have; or a copy is damaged or cannot be written.
    """

    def __init__(
        self,
        store: FeatureStore,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        feed: str = "memory",
        window_rows: int = WINDOW_ROWS,
        device: torch.device | str = "cpu",
        share: Share | None = None,
        cache: Path | None = None,
    ) -> None:
        if min(batch_size, window_rows) < 1:
            raise ValueError(f"batch_size and window_rows must be positive: {batch_size}, {window_rows}")
        if feed not in FEEDS:
            raise ValueError(f"unknown feed {feed!r}{did_you_mean(feed, FEEDS)}")
        reader = SplitReader(store, split)
        self.rows, self.batch_size, self.share = reader.rows, batch_size, share or Share()
        self.device, self.format = torch.device(device), reader.format
        order = Shuffle(reader.rows, seed, window_rows) if shuffle else None
        self._source: Source
        if feed == "stream":
            self._source = Streamed(reader, order, cache or cache_folder(store.path))
        else:
            at = self.device if feed == "device" else torch.device("cpu")
            self._source = Resident(reader, order, at)

    def close(self) -> None:
        """Let go of files and threads."""
        self._source.close()

    def prepare(self) -> None:
        """Make now, rather than in the first epoch, the copy that a streamed split needs."""
        self._source.prepare()

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from row ``start`` on; any epoch can be asked for, and again.

        ``start`` is counted on all ranks together; it is where the first batch begins.
        """
        with contextlib.closing(self._parts(number, start)) as parts:
            sizes = [
                (high - low, rows)
                for rows in self._batch_rows(start)
                for low, high in [self.share.bounds(rows)]
            ]
            yield from cut(parts, sizes)

    def _batch_rows(self, start: int) -> Iterator[int]:
        for first in range(start, self.rows, self.batch_size):
            yield min(self.batch_size, self.rows - first)

    def _parts(self, epoch: int, start: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Return slots and labels in their order, made ahead by a thread, already on the device."""
        return prefetch(self._unpacked(epoch, start))

    def _unpacked(self, epoch: int, start: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        yield self.format.unpack(torch.from_numpy(self.format.empty(1)[:0]).to(self.device))  # to begin with
        with contextlib.closing(self._source.stretches(epoch, start)) as stretches:
            for first, (rows, index) in stretches:
                for part in self._gathered(first, rows, index, start):
                    yield self.format.unpack(to_device(part, self.device))

    def _gathered(
        self, first: int, rows: torch.Tensor, index: Order | None, start: int
    ) -> Iterator[torch.Tensor]:
        """Yield this rank's rows of a stretch, `PART_ROWS` at a time; batches are counted from ``start``."""
        if index is None and self.share.size > 1:
            index = np.arange(len(rows))
        if index is None:
            yield from rows.split(PART_ROWS)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return
        mine = self.share.of(index, first - start, self.batch_size, self.rows - start)
        for begin in range(0, len(mine), PART_ROWS):
            yield gather(rows, mine[begin : begin + PART_ROWS])


def gather(rows: torch.Tensor, index: Order) -> torch.Tensor:
    """Return the rows of an index, where they are: int32 (len(index), words)."""
    if rows.device.type == "cpu":  # NumPy takes half the time of torch's index_select
        return torch.from_numpy(rows.numpy().take(index, axis=0))
    return rows.index_select(0, to_device(torch.from_numpy(index.astype(np.int32)), rows.device))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to a device without waiting: from pinned memory, which torch keeps until the copy is done."""
    if tensor.device.type == device.type or device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def cut(
    parts: Iterable[tuple[torch.Tensor, torch.Tensor]], sizes: Iterable[tuple[int, int]]
) -> Iterator[Batch]:
    """Cut slots and labels into batches.

    Args:
        parts: slots (n, L) and labels (n,), of any lengths, at least one.
        sizes: of each batch, its rows here and on all ranks.
    """
    remaining = iter(parts)
    slots, labels = next(remaining)
    start = 0
    for rows, total in sizes:
        while len(labels) - start < rows:
            more_slots, more_labels = next(remaining)
            left = slice(start, None)
            slots = torch.cat([slots[left], more_slots]) if start < len(labels) else more_slots
            labels = torch.cat([labels[left], more_labels]) if start < len(labels) else more_labels
            start = 0
        yield Batch(slots[start : start + rows], labels[start : start + rows], total)
        start += rows
