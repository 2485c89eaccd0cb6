"""Benchmark (b): a shuffled epoch from the store against reading the same Parquet columns unshuffled.

    python tests/benchmarks/stream.py [--rows 10m | --store STORE] [--repeat 5]

Each contender runs in a process of its own, in turn, several times. What is timed is the work alone:
imports and opening the store are not; reading is, except in `a later epoch`, which comes after one.
rows/s and peak memory (of the process, some 300 MB of it torch's) are medians; the ratios are to
pyarrow with its threads, the goal being 0.4. pyarrow reads all rows, the others the train split.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from featurestore.store import FeatureStore
from training.packing import pack_blocks, packed_columns
from training.stream import SplitStream

BATCH_ROWS = 8192
BASELINE = "pyarrow row groups"


def timed(work):
    """Return the rows/s of a function that returns how many rows it read."""
    started = time.perf_counter()
    rows = work()
    return rows / (time.perf_counter() - started)


def count(batches):
    return sum(len(batch.labels) for batch in batches)


def row_groups(store, *, threads):
    def read():
        rows = 0
        for path in store.snapshot.files("examples"):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                rows += file.read_row_group(group, packed_columns(store.spec), use_threads=threads).num_rows
        return rows

    return timed(read)


def shuffled(store, **options):
    return SplitStream(store, "train", BATCH_ROWS, shuffle=True, **options)


def first_epoch(store, **options):
    return timed(lambda: count(shuffled(store, **options).epoch(0)))


def later_epoch(store):
    stream = shuffled(store)
    count(stream.epoch(0))
    return timed(lambda: count(stream.epoch(1)))


class Rows(Dataset):
    """Packed rows that a DataLoader fetches a batch at a time."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, indices):
        return torch.from_numpy(self.rows[indices])


def data_loader(store):
    batches = store.stream("train", packed_columns(store.spec))
    (rows,) = pack_blocks(batches, store.splits.rows["train"], store.spec)
    loader = DataLoader(Rows(rows), BATCH_ROWS, shuffle=True, collate_fn=lambda batch: batch)
    return timed(lambda: sum(len(batch) for batch in loader))


CONTENDERS = {
    BASELINE: lambda store: row_groups(store, threads=True),
    "pyarrow row groups, one thread": lambda store: row_groups(store, threads=False),
    "slotstore, a later epoch": later_epoch,
    "slotstore, first epoch with reading": first_epoch,
    "slotstore, streamed in blocks of 1 M": lambda store: first_epoch(store, buffer_rows=1_000_000),
    "torch DataLoader, batched fetch, in memory": data_loader,
}


def measure(store, contender):
    """Run a contender in a process of its own; return its rows/s and peak memory in MB."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--store", str(store), "--contender", contender], stdout=subprocess.PIPE
    )
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{contender} failed")
    return json.loads(output), usage.ru_maxrss / 1024


def report(store, repeat):
    figures = {contender: [] for contender in CONTENDERS}
    for _ in range(repeat):
        for contender, runs in figures.items():
            runs.append(measure(store, contender))
    with FeatureStore(store) as opened:
        rows, lookups = opened.splits.rows["train"], len(opened.spec.slot_columns)
    print(f"\n{rows:,} training rows of {lookups} lookups, batches of {BATCH_ROWS:,}")
    print(f"{os.cpu_count()} cores, median of {repeat}")
    medians = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)]
        for name, runs in figures.items()
    }
    print(f"{'':44} {'rows/s':>12} {'ratio':>6} {'peak MB':>8}")
    for name, (rate, memory) in medians.items():
        print(f"{name:44} {rate:12,.0f} {rate / medians[BASELINE][0]:6.2f} {memory:8,.0f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="10m", help="rows of the synthetic store to make: ml-1m, 10m, ...")
    parser.add_argument("--store", type=Path, help="measure this store instead")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--contender", choices=CONTENDERS, help="run this one alone and print its rows/s")
    args = parser.parse_args()
    if args.contender:
        with FeatureStore(args.store) as store:
            print(json.dumps(CONTENDERS[args.contender](store)))
    elif args.store:
        report(args.store, args.repeat)
    else:
        with tempfile.TemporaryDirectory() as folder:
            ingest = ["-m", "pipelines.ingest", f"synthetic:{args.rows}", "--store", folder]
            subprocess.run([sys.executable, *ingest], check=True)
            report(Path(folder), args.repeat)


if __name__ == "__main__":
    main()
