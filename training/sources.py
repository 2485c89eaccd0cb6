"""Where the packed rows of an epoch come from: memory, the device, or a disk."""

import itertools
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from training.copies import PackedCopy, copy_path, write_copy
from training.order import WINDOW_ROWS, Order, Shuffle, Window
from training.prefetch import prefetch
from training.reader import SplitReader

BLOCK_ROWS = 1 << 16
"""Rows that a copy is made from at a time, at least."""

Stretch = tuple[torch.Tensor, Order | None]
"""Packed rows, int32 (n, words), and which of them come in which order; None: all of them, as they are."""


class Source(Protocol):
    """Where the packed rows of an epoch come from."""

    def stretches(self, epoch: int, start: int) -> Generator[tuple[int, Stretch], None, None]:
        """Yield the epoch from row ``start`` on, each stretch with how many rows of the epoch come before."""

    def prepare(self) -> None:
        """Do now what the first epoch would else do: make what it needs on disk."""

    def close(self) -> None:
        """Let go of files and threads."""


class Resident:
    """All rows in memory, or on the device."""

    def __init__(self, reader: SplitReader, shuffle: Shuffle | None, device: torch.device) -> None:
        self._reader, self._shuffle, self._device = reader, shuffle, device
        self._rows: torch.Tensor | None = None
        self._thread = ThreadPoolExecutor(1, "slotstore-order")
        self._ahead: dict[tuple[int, int], Future[Order]] = {}

    def stretches(self, epoch: int, start: int) -> Generator[tuple[int, Stretch], None, None]:
        """Yield all rows with the positions of each window, or once without any if nothing is shuffled."""
        if self._shuffle is None:
            yield start, (self._load()[start:], None)
            return
        windows = [one for one in self._shuffle.windows(epoch) if one.start + one.rows > start]
        for window, following in itertools.zip_longest(windows, windows[1:]):
            positions = self._positions(epoch, window)
            rows = self._load()  # the first time, while the thread makes the order
            order = positions.result()
            self._positions(*self._next(epoch, following))
            skipped = max(start - window.start, 0)
            yield window.start + skipped, (rows, order[skipped:])

    def prepare(self) -> None:
        """Do nothing: there is nothing to be made."""

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _load(self) -> torch.Tensor:
        if self._rows is None:
            shuffle = self._shuffle or Shuffle(self._reader.rows, 0, max(self._reader.rows, 1))
            self._rows = torch.from_numpy(self._reader.base(shuffle)).to(self._device)
        return self._rows

    def _next(self, epoch: int, following: Window | None) -> tuple[int, Window]:
        if following is not None:
            return epoch, following
        assert self._shuffle is not None
        return epoch + 1, next(self._shuffle.windows(epoch + 1))

    def _positions(self, epoch: int, window: Window) -> Future[Order]:
        """Start to make a window's positions, unless that has begun, and let go of all others."""
        key = (epoch, window.start)
        made = self._ahead.get(key) or self._thread.submit(window.positions)
        self._ahead = {key: made}
        return made


class Streamed:
    """Rows read from disk every epoch: from Parquet in the store's order, or shuffled, from a copy."""

    def __init__(self, reader: SplitReader, shuffle: Shuffle | None, cache: Path) -> None:
        self._reader, self._shuffle, self._cache = reader, shuffle, cache
        self._copy: PackedCopy | None = None

    def stretches(self, epoch: int, start: int) -> Generator[tuple[int, Stretch], None, None]:
        """Yield the windows, each read while the one before is in use."""
        yield from prefetch(self._read(epoch, start))

    def close(self) -> None:
        """Close the copy."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def prepare(self) -> None:
        """Make the copy where it is needed and missing."""
        if self._shuffle is not None and not self._shuffle.whole and self._copy is None:
            self._copy = self._open(self._shuffle)

    def _read(self, epoch: int, start: int) -> Generator[tuple[int, Stretch], None, None]:
        if self._shuffle is None:
            first = 0
            for block in self._reader.blocks(WINDOW_ROWS):
                skipped = min(max(start - first, 0), len(block))
                yield first + skipped, (torch.from_numpy(block[skipped:]), None)
                first += len(block)
            return
        self.prepare()
        for window in self._shuffle.windows(epoch):
            if window.start + window.rows <= start:
                continue
            rows = self._copy.read(window) if self._copy else self._reader.base(self._shuffle)
            skipped = max(start - window.start, 0)
            yield window.start + skipped, (torch.from_numpy(rows), window.order()[skipped:])

    def _open(self, shuffle: Shuffle) -> PackedCopy:
        reader, words = self._reader, self._reader.format.words
        path = copy_path(self._cache, reader.store, reader.split, reader.format, shuffle)
        if not path.exists():
            write_copy(path, reader.blocks(max(shuffle.window_rows, BLOCK_ROWS)), words, shuffle)
        return PackedCopy.open(path, reader.rows, words, shuffle.chunk_rows)
