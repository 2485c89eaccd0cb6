"""Benchmark (b): a shuffled epoch from the store against reading the same Parquet columns unshuffled.

    python tests/benchmarks/stream.py [--rows 10m | --store STORE] [--repeat 5]

Each contender runs in a process of its own, in turn, several times. What is timed is the work alone:
imports and opening the store are not; reading is, except in `a later epoch`, which comes after one. The
feed from disk copies the split once before its first epoch, where it is larger than a window.
rows/s and peak memory (of the process, some 300 MB of it torch's) are medians; the ratios are to
pyarrow with its threads, the goal being 0.4. pyarrow reads all rows, the others the train split.
"""

import json
import os
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch
from contenders import BATCH_ROWS, measure, medians, parser_of, timed, with_store
from torch.utils.data import DataLoader, Dataset

from featurestore.store import FeatureStore
from training.packing import RowFormat
from training.reader import SplitReader
from training.stream import SplitStream

BASELINE = "pyarrow row groups"


def count(batches):
    return sum(len(batch.labels) for batch in batches)


def row_groups(store, *, threads):
    columns = RowFormat.of(store.spec).columns

    def read():
        rows = 0
        for path in store.snapshot.files("examples"):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                rows += file.read_row_group(group, columns, use_threads=threads).num_rows
        return rows

    return timed(read)


def shuffled(store, **options):
    return SplitStream(store, "train", BATCH_ROWS, shuffle=True, **options)


def first_epoch(store, **options):
    return timed(lambda: count(shuffled(store, **options).epoch(0)))


def later_epoch(store, **options):
    stream = shuffled(store, **options)
    count(stream.epoch(0))
    return timed(lambda: count(stream.epoch(1)))


def streamed(store, measured):
    """Measure the feed from disk, its copy of the split made in a folder that is removed again."""
    with tempfile.TemporaryDirectory() as folder:
        return measured(store, feed="stream", cache=Path(folder))


def copied(store):
    """Return the rows/s of making that copy."""
    with tempfile.TemporaryDirectory() as folder:
        stream = shuffled(store, feed="stream", cache=Path(folder))

        def prepare():
            stream.prepare()
            return stream.rows

        return timed(prepare)


class Rows(Dataset):
    """Packed rows that a DataLoader fetches a batch at a time."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, indices):
        return torch.from_numpy(self.rows[indices])


def data_loader(store):
    (rows,) = SplitReader(store, "train").blocks(store.splits.rows["train"])
    loader = DataLoader(Rows(rows), BATCH_ROWS, shuffle=True, collate_fn=lambda batch: batch)
    return timed(lambda: sum(len(batch) for batch in loader))


CONTENDERS = {
    BASELINE: lambda store: row_groups(store, threads=True),
    "pyarrow row groups, one thread": lambda store: row_groups(store, threads=False),
    "slotstore, a later epoch": later_epoch,
    "slotstore, first epoch with reading": first_epoch,
    "slotstore, streamed, the copy alone": copied,
    "slotstore, streamed, a later epoch": lambda store: streamed(store, later_epoch),
    "torch DataLoader, batched fetch, in memory": data_loader,
}


def report(store, repeat):
    figures = medians(
        CONTENDERS, repeat, lambda name: measure(__file__, "--store", store, "--contender", name)
    )
    with FeatureStore(store) as opened:
        rows, lookups = opened.splits.rows["train"], len(opened.spec.slot_columns)
    print(f"\n{rows:,} training rows of {lookups} lookups, batches of {BATCH_ROWS:,}")
    print(f"{os.cpu_count()} cores, median of {repeat}")
    print(f"{'':44} {'rows/s':>12} {'ratio':>6} {'peak MB':>8}")
    for name, (rate, memory) in figures.items():
        print(f"{name:44} {rate:12,.0f} {rate / figures[BASELINE][0]:6.2f} {memory:8,.0f}")


def main():
    args = parser_of(__doc__, CONTENDERS).parse_args()
    if args.contender:
        with FeatureStore(args.store) as store:
            print(json.dumps(CONTENDERS[args.contender](store)))
    else:
        with_store(args, lambda store: report(store, args.repeat))


if __name__ == "__main__":
    main()
