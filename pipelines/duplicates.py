"""Ratings of one movie by one user that arrive more than once.

Every shard leaves the sorted 64-bit keys of its rows. They are merged one slice of the key space at
a time, so memory does not grow with the rows; only where two are equal is the text itself compared.
The rating with the latest event time is kept, at equal times the last in the source.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.database import duplicate_rows
from featurestore.digest import row_words
from featurestore.paths import AnyPath, files_below, write_whole
from pipelines.counters import StepCounters
from pipelines.movielens import KEYS
from pipelines.read import Records, reject_rows
from pipelines.runner import available_cores

KEYS_FOLDER = "keys"
SLICE_ROWS = 16_000_000

Rows = dict[int, list[int]]
"""Row numbers by the index of their shard."""


def row_keys(table: pa.Table) -> npt.NDArray[np.uint64]:
    """Return a 64-bit key of each row's user and movie: (n,)."""
    return row_words(table.select(list(KEYS)))


def write_keys(folder: AnyPath, index: int, table: pa.Table) -> None:
    """Write a shard's row keys, sorted, as plain 64-bit words."""
    path = folder / KEYS_FOLDER / f"{index:05d}"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, np.sort(row_keys(table)).tobytes())


def _read_keys(file: Path) -> npt.NDArray[np.uint64]:
    """Map a shard's keys into memory; a file without any cannot be mapped."""
    return np.memmap(file, np.uint64, "r") if file.stat().st_size else np.empty(0, np.uint64)


def repeated_keys(files: Sequence[Path], rows: int) -> bool:
    """Whether any key occurs twice in the sorted key files, which hold ``rows`` in all."""
    workers = available_cores()
    slices = max(workers, -(-rows // SLICE_ROWS))
    edges = [np.uint64((1 << 64) * number // slices) for number in range(1, slices)]
    keys = [_read_keys(file) for file in files]
    cuts = [[0, *np.searchsorted(part, edges).tolist(), len(part)] for part in keys]

    def repeats(number: int) -> bool:
        parts = [part[cut[number] : cut[number + 1]] for part, cut in zip(keys, cuts, strict=True)]
        merged = np.sort(np.concatenate(parts), kind="stable")  # merges the sorted runs
        return bool((merged[1:] == merged[:-1]).any())

    with ThreadPoolExecutor(workers) as pool:
        return any(pool.map(repeats, range(slices)))


def find_duplicates(folder: AnyPath, shards: Sequence[AnyPath], rows: int) -> Rows:
    """Return which rows of which shards are superseded by another rating of the same user and movie."""
    found: Rows = {}
    with _local_keys(folder / KEYS_FOLDER) as files:
        repeated = repeated_keys(files, rows)
    if repeated:
        for shard, row in duplicate_rows(shards, KEYS, "timestamp"):
            found.setdefault(shard, []).append(row)
    return found


@contextlib.contextmanager
def _local_keys(folder: AnyPath) -> Iterator[list[Path]]:
    """Yield the key files of a run; those on an object store are copied, for they are to be mapped."""
    names = files_below(folder)
    if isinstance(folder, Path):
        yield [folder / name for name in names]
        return
    with TemporaryDirectory(prefix="slotstore-") as scratch:
        for name in names:
            (Path(scratch) / name).write_bytes((folder / name).read_bytes())
        yield [Path(scratch) / name for name in names]


def drop_rows(records: Records, rows: Sequence[int]) -> Records:
    """Reject the given rows of a batch as superseded."""
    bad = np.zeros(records.table.num_rows, np.bool_)
    bad[list(rows)] = True
    taken = records.table.select(list(KEYS)).filter(pa.array(bad)).to_pylist()
    reasons = [
        f"user_id {row['user_id']!r} rated movie_id {row['movie_id']!r} more than once; the latest is kept"
        for row in taken
    ]
    return reject_rows(records, bad, "movie_id", reasons)


@dataclass
class DropDuplicates(beam.PTransform):
    """`Records` -> `Records` without the rows that an earlier pass found superseded."""

    rows: Rows

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Drop rows from the batches that have some."""
        return records | "Drop" >> beam.ParDo(_DropDuplicates(), rows=self.rows)


class _DropDuplicates(beam.DoFn):
    def process(self, records: Records, rows: Rows) -> Iterator[Records]:
        with StepCounters("duplicates") as count:
            superseded = rows.get(records.place.index, [])
            kept = drop_rows(records, superseded) if superseded else records
            count(rows=kept.table.num_rows, rejected=len(superseded))
        yield kept
