"""Ratings of one movie by one user that arrive more than once, in one source or in one append after another.

Every shard leaves the sorted 64-bit keys of its rows. They are merged one slice of the key space at
a time, so memory does not grow with the rows; only where two are equal is the text itself compared.
The rating with the latest event time is kept, at equal times the last to arrive; one that says what an
earlier snapshot says already is not kept again.
"""

import contextlib
import itertools
import operator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.database import NEWER, OLDER, REPEATED, SAME, superseded_rows
from featurestore.digest import row_words
from featurestore.manifest import KEYS
from featurestore.paths import AnyPath, arrow_file, files_below, write_whole
from featurestore.shards import write_parquet
from pipelines.counters import StepCounters
from pipelines.read import Records, reject_rows
from pipelines.runner import available_cores

KEYS_FOLDER = "keys"
SUPERSEDED_FOLDER = "superseded"
KEY_BYTES = 8
SLICE_ROWS = 1 << 20
"""Keys merged at a time: few enough to stay in the processor's cache."""

SUPERSEDED = "superseded: "
"""Beginning of the reasons of ratings that an append supersedes: they are no mistakes of the source."""
_REASONS = {
    REPEATED: "user_id {user_id!r} rated movie_id {movie_id!r} more than once; the latest is kept",
    OLDER: SUPERSEDED + "an earlier snapshot has a later rating of movie {movie_id!r} by user {user_id!r}",
    SAME: SUPERSEDED + "an earlier snapshot has this rating of movie {movie_id!r} by user {user_id!r}",
    NEWER: SUPERSEDED + "user {user_id!r} rated movie {movie_id!r} again",
}


def row_keys(table: pa.Table) -> npt.NDArray[np.uint64]:
    """Return a 64-bit key of each row's user and movie: (n,)."""
    return row_words(table.select(list(KEYS)))


def write_keys(folder: AnyPath, index: int, table: pa.Table) -> None:
    """Write a shard's row keys, sorted, as plain 64-bit words."""
    path = folder / KEYS_FOLDER / f"{index:05d}"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, np.sort(row_keys(table)).tobytes())


def repeated_keys(files: Sequence[Path], rows: int) -> bool:
    """Whether any key occurs twice in the sorted key files, which hold ``rows`` in all."""
    workers = available_cores()
    slices = max(workers, -(-rows // SLICE_ROWS))
    edges = [np.uint64((1 << 64) * number // slices) for number in range(1, slices)]
    cuts = [_cut(file, edges) for file in files]

    def repeats(number: int) -> bool:
        parts = [
            np.fromfile(file, np.uint64, cut[number + 1] - cut[number], offset=cut[number] * KEY_BYTES)
            for file, cut in zip(files, cuts, strict=True)
        ]
        merged = np.sort(np.concatenate(parts), kind="stable")  # merges the sorted runs
        return bool((merged[1:] == merged[:-1]).any())

    with ThreadPoolExecutor(workers) as pool:
        return any(pool.map(repeats, range(slices)))


def _cut(file: Path, edges: Sequence[np.uint64]) -> list[int]:
    """Return where each slice begins in a sorted key file, and where the last one ends."""
    size = file.stat().st_size // KEY_BYTES
    if not size:  # it cannot be mapped
        return [0] * (len(edges) + 2)
    keys = np.memmap(file, np.uint64, "r")
    return [0, *np.searchsorted(keys, edges).tolist(), size]


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


@dataclass(frozen=True)
class Superseded:
    """Which shards have rows that another rating supersedes: the rows themselves lie in ``folder``.

    new: numbers of shards of this source. old: of the snapshot it is appended to.
    """

    folder: AnyPath
    new: frozenset[int] = frozenset()
    old: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.new or self.old)

    def rows(self, kind: str, index: int) -> pa.Table:
        """Return the superseded rows of a shard, in order: row, why (int64), of `featurestore.database`."""
        with arrow_file(self.folder / SUPERSEDED_FOLDER / f"{kind}-{index:05d}.parquet") as file:
            return pq.read_table(file)


def find_superseded(
    folder: AnyPath, shards: Sequence[AnyPath], rows: int, parent: Sequence[AnyPath] = ()
) -> Superseded:
    """Find the superseded rows of new ``shards``, of ``rows`` in all, and of the ``parent``'s.

    They are written to ``folder`` for the workers that will leave them out.
    """
    with _local_keys(folder / KEYS_FOLDER) as files:
        repeated = repeated_keys(files, rows)
    if not (repeated or parent):
        return Superseded(folder)
    found = superseded_rows(shards, parent, KEYS, "timestamp", "rating", repeated=repeated)
    with found as (new, old):
        return Superseded(folder, _write_rows(folder, "new", new), _write_rows(folder, "old", old))


def _write_rows(folder: AnyPath, kind: str, rows: pa.RecordBatchReader) -> frozenset[int]:
    """Write the rows of each shard, which come in order, to a file of its own; return the shards' numbers."""
    numbers = set()
    for number, parts in itertools.groupby(_by_file(rows), key=operator.itemgetter(0)):
        table = pa.concat_tables(part for _, part in parts)
        write_parquet(table, folder, f"{SUPERSEDED_FOLDER}/{kind}-{number:05d}.parquet")
        numbers.add(number)
    return frozenset(numbers)


def _by_file(rows: pa.RecordBatchReader) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of one file after another, those of a large one in several parts."""
    for batch in rows:
        files = batch["file"].to_numpy()
        edges = np.flatnonzero(np.diff(files)) + 1
        for start, end in itertools.pairwise([0, *edges.tolist(), len(files)]):
            if end > start:
                yield int(files[start]), pa.table(batch.slice(start, end - start).select(["row", "why"]))


def split_rows(table: pa.Table, rows: pa.Table) -> tuple[npt.NDArray[np.bool_], list[str], pa.Table]:
    """Return which rows of ``table`` are named in ``rows`` (n,), why each of them goes, and those rows."""
    bad = np.zeros(table.num_rows, np.bool_)
    bad[rows["row"].to_numpy()] = True
    taken = table.filter(pa.array(bad))
    keys = taken.select(list(KEYS)).to_pylist()
    reasons = [_REASONS[why].format(**key) for why, key in zip(rows["why"].to_pylist(), keys, strict=True)]
    return bad, reasons, taken


@dataclass
class DropDuplicates(beam.PTransform):
    """`Records` -> `Records` without the rows that an earlier pass found superseded."""

    superseded: Superseded

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Drop rows from the batches that have some."""
        return records | "Drop" >> beam.ParDo(_DropDuplicates(), superseded=self.superseded)


class _DropDuplicates(beam.DoFn):
    def process(self, records: Records, superseded: Superseded) -> Iterator[Records]:
        with StepCounters("duplicates") as count:
            kept, index = records, records.place.index
            if index in superseded.new:
                bad, reasons, _ = split_rows(records.table, superseded.rows("new", index))
                kept = reject_rows(records, bad, "movie_id", reasons)
            count(rows=kept.table.num_rows, rejected=records.table.num_rows - kept.table.num_rows)
        yield kept
