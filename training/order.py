"""The order of an epoch: a function of the seed and the epoch alone, whatever feeds it and on how many ranks.

A split of at most ``window_rows`` rows is permuted as a whole. A larger one is brought into a *base order*
once, a permutation of all its rows that never changes; an epoch then permutes its chunks, and the rows
within windows of as many chunks as ``window_rows`` holds. So an epoch never needs more than a window in
memory, and rows that were neighbours when they were ingested meet in a window only by chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.int64]

WINDOW_ROWS = 1 << 20
"""Rows permuted together: 20 MB of packed rows at the default spec, and 8 MB for their order."""

CHUNK_ROWS = 1 << 13
"""Rows that stay together in the base order and are read at once: 160 kB at the default spec."""

CHUNKS_IN_WINDOW = 64
"""At least, so that a window mixes rows of many places however small it is."""

_BASE_SEED = 0x510753
_BUCKET_BLOCK = 1 << 16


def permutation(rows: int, *seeds: int) -> Order:
    """Return a permutation of ``range(rows)``, int64 (rows,), drawn from ``seeds``."""
    order: Order = _generator(*seeds).permutation(rows)
    return order


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seeds)))


@dataclass(frozen=True)
class Window:
    """Rows that are permuted together.

    start: how many rows of the epoch come before it.
    rows: n, its own.
    chunks: which chunks of the base order it holds, int64; their rows one after another are its rows.
    chunk_rows: rows of a chunk; the base order's last chunk may have fewer.
    seeds: of its permutation.
    """

    start: int
    rows: int
    chunks: Order
    chunk_rows: int
    seeds: tuple[int, ...]

    def order(self) -> Order:
        """Return the permutation of its rows, int64 (n,)."""
        return permutation(self.rows, *self.seeds)

    def positions(self) -> Order:
        """Return where its rows lie in the base order, in the epoch's order, int64 (n,)."""
        order = self.order()
        if self.chunks.size == 1:
            order += self.chunks[0] * self.chunk_rows
            return order
        rows = self.chunks[:, None] * self.chunk_rows + np.arange(self.chunk_rows)  # (chunks, chunk_rows)
        short = self.chunk_rows * len(self.chunks) - self.rows  # missing at the end of the base order's last
        flat = rows.ravel()
        if short:
            last = int(self.chunks.argmax()) + 1
            flat = np.delete(flat, np.s_[last * self.chunk_rows - short : last * self.chunk_rows])
        positions: Order = flat.take(order)
        return positions


@dataclass(frozen=True)
class Shuffle:
    """The shuffled epochs of ``rows`` rows."""

    rows: int
    seed: int
    window_rows: int = WINDOW_ROWS

    @property
    def whole(self) -> bool:
        """Whether all rows are permuted together, and the base order is the store's."""
        return self.rows <= self.window_rows

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        if self.whole:
            return max(self.rows, 1)
        return max(min(CHUNK_ROWS, self.window_rows // CHUNKS_IN_WINDOW), 1)

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield the windows of an epoch, in its order."""
        size = self.chunk_rows
        chunks = permutation(-(-self.rows // size), self.seed, epoch, 0)
        step, start = max(self.window_rows // size, 1), 0
        for number, first in enumerate(range(0, len(chunks), step), start=1):
            held = chunks[first : first + step]
            rows = int(np.minimum(self.rows - held * size, size).sum())
            yield Window(start, rows, held, size, (self.seed, epoch, number))
            start += rows


class BaseOrder:
    """Where each row of the store's order goes in the base order of a split larger than a window.

    Each row goes to one of `buckets` places at random, of about ``window_rows`` rows each, and each of
    these is permuted: a permutation of all rows, all of them equally likely, that can be followed on disk
    with one bucket in memory. It depends on the number of rows and ``window_rows`` alone, so that one copy on
    disk serves every training.
    """

    def __init__(self, rows: int, window_rows: int) -> None:
        self.rows = rows
        self.buckets = -(-rows // window_rows)
        sizes = np.zeros(self.buckets, np.int64)
        for start in range(0, rows, _BUCKET_BLOCK):
            sizes += np.bincount(self.bucket_of(start, _BUCKET_BLOCK), minlength=self.buckets)
        self.bounds = np.concatenate([[0], sizes.cumsum()])
        """Bucket b has places ``bounds[b]`` to ``bounds[b + 1] - 1``, int64 (buckets + 1,)."""

    def bucket_of(self, start: int, rows: int) -> npt.NDArray[np.int64]:
        """Return the bucket of each of the next ``rows`` rows, as many as there are, int64."""
        first, stop = start // _BUCKET_BLOCK, min(start + rows, self.rows)
        blocks = [
            _generator(_BASE_SEED, block).integers(self.buckets, size=_BUCKET_BLOCK)
            for block in range(first, -(-stop // _BUCKET_BLOCK))
        ]
        origin = first * _BUCKET_BLOCK
        return np.concatenate([np.empty(0, np.int64), *blocks])[start - origin : stop - origin]

    def order_in(self, bucket: int) -> Order:
        """Return the order of a bucket: place i is taken by the row that came to it as number order[i]."""
        rows = int(self.bounds[bucket + 1] - self.bounds[bucket])
        return permutation(rows, _BASE_SEED, self.buckets, bucket)

    def places(self) -> Order:
        """Return the place of every row of the store's order, int64 (rows,)."""
        arrived = np.argsort(
            self.bucket_of(0, self.rows).astype(np.min_scalar_type(self.buckets)), kind="stable"
        )
        places = np.empty(self.rows, np.int64)
        for bucket in range(self.buckets):
            start, stop = self.bounds[bucket : bucket + 2]
            places[arrived[start:stop][self.order_in(bucket)]] = np.arange(start, stop)
        return places


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several ranks trains on.

    Of a batch of n rows, rank r takes rows ``r * n // size`` to ``(r + 1) * n // size - 1``: disjoint, and
    together the batch.
    """

    rank: int = 0
    size: int = 1

    def bounds(self, rows: int) -> tuple[int, int]:
        """Return the first row and the one after the last, of a batch of ``rows``."""
        return self.rank * rows // self.size, (self.rank + 1) * rows // self.size

    def of(self, index: Order, first: int, batch_size: int, total: int) -> Order:
        """Return this rank's part of a stretch of the epoch.

        Args:
            index: which rows the stretch has, int64 (n,).
            first: how many rows of the epoch come before it.
            batch_size: rows of a batch of all ranks.
            total: rows of the epoch; the last batch has what remains.
        """
        if self.size == 1:
            return index
        place = np.arange(first, first + len(index))
        within = place % batch_size
        low, high = self.bounds(batch_size)
        mine = (within >= low) & (within < high)
        last = total - total % batch_size
        if first + len(index) > last:
            low, high = self.bounds(total - last)
            mine = np.where(place < last, mine, (within >= low) & (within < high))
        return index[mine]
