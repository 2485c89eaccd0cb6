"""A split's packed rows on disk, in their base order: what a split too large for memory is trained from.

A shuffled epoch reads it in chunks at random places, which Parquet is not made for. It is made once, in
bounded memory, kept in ``<store>/cache/<snapshot>/`` and removable at any time: ``slotstore cache``. Its name
holds a digest of all that its content depends on, so that one of another snapshot or split is never taken.

Two NumPy files: ``<split>-<digest>.npy``, int32 (rows, words), and ``<split>-<digest>.xxh3.npy``, the XXH3-64
of each chunk's bytes, uint64 (chunks,), by which damage is found when a chunk is read.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from featurestore.errors import ArtifactError
from featurestore.paths import sync
from featurestore.store import FeatureStore
from training.order import BaseOrder, Shuffle, Window
from training.packing import RowFormat, Rows

_FORMAT = 1


@dataclass(frozen=True)
class PackedCopy:
    """An open copy."""

    path: Path
    offset: int  # of the first row's bytes
    rows: int
    words: int
    digests: npt.NDArray[np.uint64]
    descriptor: int

    @classmethod
    def open(cls, path: Path, rows: int, words: int, chunk_rows: int) -> "PackedCopy":
        """Open a copy; ArtifactError where it is not what it should be."""
        try:
            digests = np.load(_digests(path))
            found = np.load(path, mmap_mode="r")
            fits = (found.shape, found.dtype) == ((rows, words), np.int32)
            fits = fits and isinstance(digests, np.ndarray) and digests.shape == (-(-rows // chunk_rows),)
            offset = int(getattr(found, "offset", 0))
            del found
            descriptor = os.open(path, os.O_RDONLY)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"cannot read {path}: {error}{_remedy(path)}") from error
        if not fits:
            os.close(descriptor)
            raise ArtifactError(
                f"{path} does not hold {rows:,} rows of {words} words, with their digests{_remedy(path)}"
            )
        return cls(path, offset, rows, words, digests, descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def read(self, window: Window) -> Rows:
        """Return the rows of a window, chunk after chunk, int32 (window.rows, words).

        Raises:
            ArtifactError: a chunk is not what was written.
        """
        block, filled = np.empty((window.rows, self.words), np.int32), 0
        for chunk in window.chunks.tolist():
            first = chunk * window.chunk_rows
            part = block[filled : filled + min(window.chunk_rows, self.rows - first)]
            self._fill(part, first)
            if xxhash.xxh3_64_intdigest(part.data) != self.digests[chunk]:
                raise ArtifactError(f"{self.path}: rows {first:,} and on are damaged{_remedy(self.path)}")
            filled += len(part)
        return block

    def _fill(self, part: Rows, first: int) -> None:
        buffer = part.reshape(-1).view(np.uint8).data
        place = self.offset + first * self.words * 4
        while buffer:
            read = os.preadv(self.descriptor, [buffer], place)
            if not read:
                raise ArtifactError(f"{self.path} ends before row {first + len(part):,}{_remedy(self.path)}")
            buffer, place = buffer[read:], place + read


def _remedy(path: Path) -> str:
    return f"\nIt is a copy, made again when it is missing: remove it (rm {path})."


def _digests(path: Path) -> Path:
    return path.with_suffix(".xxh3.npy")


def copy_path(cache: Path, store: FeatureStore, split: str, rows_format: RowFormat, shuffle: Shuffle) -> Path:
    """Return where the copy of a split lies, whether there is one or not."""
    manifest = store.snapshot.manifest
    facts = [
        _FORMAT, split, manifest.fingerprint, [shard.digest for shard in manifest.shards["examples"]],
        list(store.splits.boundaries), shuffle.rows, shuffle.window_rows, shuffle.chunk_rows,
        list(rows_format.columns), rows_format.num_slots, rows_format.threshold,
    ]  # fmt: skip
    digest = xxhash.xxh3_64_hexdigest(json.dumps(facts).encode())
    return cache / manifest.id / f"{split}-{digest}.npy"


def write_copy(path: Path, blocks: Iterable[Rows], words: int, shuffle: Shuffle) -> None:
    """Write the base order of a split, so that a reader, or a crash, sees all of it or nothing.

    One block and one bucket of the base order are in memory at a time: first every row goes to the next free
    place of its bucket, then each bucket is permuted.

    Args:
        path: where it goes; files of that name are replaced.
        blocks: the rows in the store's order, int32 (n, words) each.
        words: of a packed row.
        shuffle: how many rows there are, and how many are in a window and in a chunk.

    Raises:
        ArtifactError: it cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        base = BaseOrder(shuffle.rows, shuffle.window_rows)
        with _new_file(temporary, shuffle.rows, words) as target:
            _scatter(target, blocks, base)
            digests = _permute(target, base, shuffle.chunk_rows)
        np.save(_digests(temporary), digests)
        for written in (_digests(temporary), temporary):  # the rows last: they are what is looked for
            sync(written)
        _digests(temporary).replace(_digests(path))
        temporary.replace(path)
    except OSError as error:
        needed = shuffle.rows * words * 4
        raise ArtifactError(
            f"cannot write {path}, the copy that this split is streamed from: {error}\n"
            f"It takes {needed:,} bytes: make room, or give --feed memory, which needs as much memory."
        ) from error
    finally:
        for left in (temporary, _digests(temporary)):
            with contextlib.suppress(OSError):  # the folder itself may be what is wrong
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def _new_file(path: Path, rows: int, words: int) -> Iterator[Rows]:
    """Make a NumPy file of the full size, for a mapped file must not find the disk full."""
    target = np.lib.format.open_memmap(path, mode="w+", dtype=np.int32, shape=(rows, words))
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    yield target
    target.flush()


def _scatter(target: Rows, blocks: Iterable[Rows], base: BaseOrder) -> None:
    """Write each row to the next free place of its bucket."""
    free = base.bounds[:-1].copy()
    start = 0
    for rows in blocks:
        buckets = base.bucket_of(start, len(rows))
        start += len(rows)
        ordered = rows.take(np.argsort(buckets, kind="stable"), axis=0)
        begin = 0
        for bucket, count in enumerate(np.bincount(buckets, minlength=base.buckets).tolist()):
            target[free[bucket] : free[bucket] + count] = ordered[begin : begin + count]
            free[bucket] += count
            begin += count


def _permute(target: Rows, base: BaseOrder, chunk_rows: int) -> npt.NDArray[np.uint64]:
    """Permute each bucket in place; return the digest of every chunk of all rows."""
    digests: list[int] = []
    left = target[:0]
    for bucket in range(base.buckets):
        rows = target[base.bounds[bucket] : base.bounds[bucket + 1]]
        rows[:] = permuted = rows.take(base.order_in(bucket), axis=0)
        whole = np.concatenate([left, permuted])
        stop = len(whole) if bucket == base.buckets - 1 else len(whole) - len(whole) % chunk_rows
        digests += _chunk_digests(whole[:stop], chunk_rows)
        left = whole[stop:]
    return np.array(digests, np.uint64)


def _chunk_digests(rows: Rows, chunk_rows: int) -> Generator[int, None, None]:
    for first in range(0, len(rows), chunk_rows):
        yield xxhash.xxh3_64_intdigest(np.ascontiguousarray(rows[first : first + chunk_rows]).data)
