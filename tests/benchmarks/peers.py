"""Benchmark (e): the train split as shuffled batches, through slotstore and through what others offer for it.

    pip install -c constraints.txt -e '.[peers]'
    python tests/benchmarks/peers.py [--rows 10m | --store STORE] [--repeat 5] [--mosaicml PYTHON]

mosaicml-streaming refuses the numpy and xxhash of constraints.txt: install `.[peers-mosaicml]`, without
constraints, in an environment of its own, and name its Python. What is not installed is left out.

All deliver the same rows as tensors on the CPU, int32 (B, L) and float32 (B,). Each gets its own format
of them, made once and not timed; then an epoch is checked: every row comes, once. Then they are timed,
each in a process of its own, in turn; rows/s are medians of whole epochs. Before a timed epoch comes
another, so that workers have started and files are cached, but for `first epoch`, which also reads.
Slow ones get the first rows only. Peak memory is that of the largest process. The last columns are how
many times as fast slotstore is, in its first epoch and in a later one; the goals are 5 for all and 25 for
`datasets`.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from contenders import BATCH_ROWS, measure, medians, parser_of, with_store
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler

from featurestore.store import FeatureStore
from training.packing import RowFormat
from training.stream import SplitStream

SOME, FEW = 1_000_000, 200_000
SHUFFLE_BUFFER = 100_000  # of `datasets`, whose default is 1,000: the larger one mixes more and was faster
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
}
FOLDERS = ("HF_HOME", "LITDATA_CACHE_DIR", "TMPDIR")
PEERS = "pip install -e '.[peers]'"
HOW = {"streaming": "pip install -e '.[peers-mosaicml]' in an environment of its own; --mosaicml its Python"}


class Data(NamedTuple):
    """Where a contender finds the rows: the store, and a folder for what is made of it."""

    store: Path
    folder: Path
    rows: int

    def parquet(self):
        """Return the train split's first rows as Parquet files, one a shard, of the packed columns."""
        return sorted(map(str, (self.folder / f"parquet-{self.rows}").glob("*.parquet")))

    def packed(self):
        """Read the Parquet files into packed rows, a tensor (n, L + 1)."""
        return torch.cat([pack_table(pq.read_table(path)) for path in self.parquet()])


def pack_table(table):
    *slots, labels = (column.to_numpy() for column in table.columns)
    return torch.from_numpy(np.stack([*slots, labels.view(np.int32)], axis=1))


def delivered(packed):
    return packed[:, :-1], packed[:, -1].view(torch.float32)


def from_items(items):
    """Collate packed rows, numpy arrays (L + 1,): one copy, where default_collate makes a tensor of each."""
    return delivered(torch.from_numpy(np.stack(items)))


def from_columns(batch):
    """Bring a batch of `datasets`, a tensor a column, into shape; its integers are int64 always."""
    *slots, labels = batch.values()
    return torch.stack([column.to(torch.int32) for column in slots], dim=1), labels


# slotstore


def slotstore(data):
    store = FeatureStore(data.store)
    stream = SplitStream(store, "train", BATCH_ROWS, shuffle=True, feed="memory")
    return lambda number: ((batch.slots, batch.labels) for batch in stream.epoch(number))


# torch.utils.data.DataLoader. It has no format: rows lie in memory, packed as slotstore packs them. Its
# documented way to fetch many rows at once is `__getitems__`; a sampler that yields index tensors, with
# automatic batching off (batch_size=None), also saves the list of int that the first one makes of an epoch.
# Both take with numpy, as slotstore does: torch's index_select is as fast on idle cores, but waits for all
# of its threads, and where other work has the cores it was four times slower; of a list it is always slower.


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, indices):
        return delivered(torch.from_numpy(self.rows.numpy().take(indices, axis=0)))

    __getitems__ = __getitem__


class IndexTensors(Sampler):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(torch.randperm(self.rows).split(BATCH_ROWS))


def same(batch):
    return batch


def workers(count):
    return {"num_workers": count, "persistent_workers": count > 0}


def batched_fetch(data, count):
    loader = DataLoader(Rows(data.packed()), BATCH_ROWS, shuffle=True, collate_fn=same, **workers(count))
    return lambda _: loader


def index_tensors(data, count):
    rows = data.packed()
    loader = DataLoader(Rows(rows), sampler=IndexTensors(len(rows)), batch_size=None, **workers(count))
    return lambda _: loader


def index_tensors_reading(data):
    return lambda _: iter(index_tensors(data, 0)(0))  # reads when the epoch is asked for


# datasets. Streaming: shards are shuffled, then a buffer. "Use with PyTorch" recommends with_format("torch")
# and .iter or .batch: in 5.2 .batch stays in Arrow, .iter makes rows of dicts. Its own fastest format is
# "arrow": the batch then is a pyarrow.Table. Workers were slower, each batch going through a pipe. At the end
# of an epoch of several Parquet files it sleeps for 5 s, for Arrow's threads; that is switched off here, for
# it would be most of the time. A buffer mixes less than a permutation, so it is also given one that holds all
# rows. Map-style: a BatchSampler, so that a batch is one `dataset[indices]`; its documentation says that
# shuffled access is slow.


def hf_dataset(data, **options):
    import datasets

    datasets.disable_progress_bars()
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    cache = str(data.folder / "hf")
    return datasets.load_dataset(
        "parquet", data_files=data.parquet(), split="train", cache_dir=cache, **options
    )


def hf_shuffled(dataset, epoch, buffer_size=SHUFFLE_BUFFER):
    return dataset.shuffle(seed=epoch, buffer_size=buffer_size)


def hf_stream(data):
    dataset = hf_dataset(data, streaming=True)
    return lambda epoch: map(from_columns, hf_shuffled(dataset, epoch).with_format("torch").batch(BATCH_ROWS))


def hf_stream_arrow(data, buffer_size=SHUFFLE_BUFFER):
    dataset = hf_dataset(data, streaming=True)

    def batches(epoch):
        for table in hf_shuffled(dataset, epoch, buffer_size).with_format("arrow").iter(BATCH_ROWS):
            yield delivered(pack_table(table))

    return batches


def hf_map_prepare(data):
    hf_dataset(data)


def hf_map(data):
    dataset = hf_dataset(data).with_format("torch")
    batches = BatchSampler(RandomSampler(dataset), BATCH_ROWS, drop_last=False)
    loader = DataLoader(dataset, sampler=batches, batch_size=None)
    return lambda _: map(from_columns, loader)


# litdata. ParquetLoader gives a dict a row, and says itself that shuffled it is slow. Fixed rows of numbers
# are `no_header_numpy`: as TokensLoader (a row is a block of L + 1 tokens), which permutes all rows of a
# chunk, or as numpy items at their default, which permutes blocks of 256 rows, then the rows in a block: a
# full permutation of items took a hundred times as long. So few rows are one chunk of the default 64 MB, and
# two workers that shared it were twenty times slower than one process: chunks are of 4 MB, so that each has
# its own. Items with two workers stayed three times slower than without, and are left out.


def token_rows(path):
    yield pack_table(pq.read_table(path)).numpy().reshape(-1)


def numpy_rows(path):
    yield from pack_table(pq.read_table(path)).numpy()


def tokens_loader(data):
    from litdata import TokensLoader

    return TokensLoader(block_size=len(pq.read_schema(data.parquet()[0])))


def lit_prepare(data, name, rows, **options):
    import litdata

    folder = str(data.folder / name)
    litdata.optimize(rows, data.parquet(), folder, chunk_bytes="4MB", num_workers=1, **options)


def lit_stream(data, name, count, **options):
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(data.folder / name), shuffle=True, drop_last=False, **options)
    loader = StreamingDataLoader(dataset, batch_size=BATCH_ROWS, collate_fn=from_items, num_workers=count)
    return lambda _: loader


# mosaicml-streaming. MDS is its "most performant" format; one array of fixed dtype and shape a row is its
# shortest encoding: no sizes, no pickle. Uncompressed and local, so that nothing is copied; batch_size is
# given, as its documentation asks; the shuffle is its default, py1e. It reads one sample at a time.


def mds_prepare(data):
    from streaming import MDSWriter

    rows = data.packed().numpy()
    columns = {"row": f"ndarray:int32:{rows.shape[1]}"}
    with MDSWriter(out=str(data.folder / "mds"), columns=columns) as writer:
        for row in rows:
            writer.write({"row": row})


def from_samples(samples):
    return from_items([sample["row"] for sample in samples])


def mds(data, count):
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(data.folder / "mds"), shuffle=True, batch_size=BATCH_ROWS)
    loader = DataLoader(dataset, BATCH_ROWS, collate_fn=from_samples, **workers(count))
    return lambda _: loader


class Contender(NamedTuple):
    """A function of the data that returns a function of the epoch that returns its batches."""

    open: Callable
    prepare: Callable = lambda _: None
    package: str = "torch"
    rows: int | None = None  # the first ones only
    warm: bool = True  # an epoch comes before the one that is timed


def lit_tokens(data, count):
    return lit_stream(data, "lit-tokens", count, item_loader=tokens_loader(data), item_shuffle_window="full")


def lit_tokens_prepare(data):
    lit_prepare(data, "lit-tokens", token_rows, item_loader=tokens_loader(data))


def lit_items_prepare(data):
    lit_prepare(data, "lit-items", numpy_rows)


FIRST, LATER = "slotstore, first epoch with reading", "slotstore, a later epoch"
LIT = {"package": "litdata", "rows": SOME}
MDS = {"prepare": mds_prepare, "package": "streaming", "rows": FEW}
CONTENDERS = {
    FIRST: Contender(slotstore, warm=False),
    LATER: Contender(slotstore),
    "DataLoader, index tensors, first epoch, reading": Contender(index_tensors_reading, warm=False),
    "DataLoader, index tensors": Contender(lambda data: index_tensors(data, 0)),
    "DataLoader, index tensors, 2 workers": Contender(lambda data: index_tensors(data, 2)),
    "DataLoader, __getitems__": Contender(lambda data: batched_fetch(data, 0)),
    "DataLoader, __getitems__, 2 workers": Contender(lambda data: batched_fetch(data, 2)),
    "datasets, streamed, arrow": Contender(hf_stream_arrow, package="datasets"),
    "datasets, streamed, arrow, all rows in buffer": Contender(
        lambda data: hf_stream_arrow(data, data.rows), package="datasets"
    ),
    "datasets, streamed, torch": Contender(hf_stream, package="datasets"),
    "datasets, map-style, torch": Contender(hf_map, hf_map_prepare, "datasets", FEW),
    "litdata, TokensLoader": Contender(lambda data: lit_tokens(data, 0), lit_tokens_prepare, **LIT),
    "litdata, TokensLoader, 2 workers": Contender(
        lambda data: lit_tokens(data, 2), lit_tokens_prepare, **LIT
    ),
    "litdata, numpy items, blocks": Contender(
        lambda data: lit_stream(data, "lit-items", 0), lit_items_prepare, **LIT
    ),
    "mosaicml-streaming, MDS": Contender(lambda data: mds(data, 0), **MDS),
    "mosaicml-streaming, MDS, 2 workers": Contender(lambda data: mds(data, 2), **MDS),
}


# What a child does: one step of one contender.


def digest(slots, labels):
    """Add up a 64-bit number for each row, which depends on all its values and their columns."""
    factors = torch.arange(1, slots.shape[1] + 1) * 0x1E3779B97F4A7C15 | 1
    mixed = (slots.long() * factors).sum(1) ^ labels.contiguous().view(
        torch.int32
    ).long() * 0x5851F42D4C957F2D
    mixed = (mixed ^ mixed >> 29) * 0x3F58476D1CE4E5B9
    return int((mixed ^ mixed >> 32).sum()) % (1 << 64)


def check(contender, data):
    """Compare an epoch with the Parquet files: types, rows, the sum of their digests, but not their order."""
    expected, found = delivered(data.packed()), [0, 0]
    for slots, labels in contender.open(data)(0):
        assert (slots.dtype, labels.dtype) == (torch.int32, torch.float32), (slots.dtype, labels.dtype)
        assert len(slots) == len(labels) <= BATCH_ROWS, (slots.shape, labels.shape)
        found = [found[0] + len(labels), (found[1] + digest(slots, labels)) % (1 << 64)]
        assert not torch.equal(slots, expected[0][: len(slots)]), "the rows come in the order of the files"
    wanted = [len(expected[1]), digest(*expected)]
    assert found == wanted, f"not every row once: rows and sum of digests are {found}, expected {wanted}"


def count(batches):
    return sum(len(labels) for _, labels in batches)


def rate(contender, data):
    epoch = contender.open(data)
    if contender.warm:
        count(epoch(0))
    started = time.perf_counter()
    rows = count(epoch(int(contender.warm)))
    return rows / (time.perf_counter() - started)


def prepare(contender, data):
    """Make the contender's format; return the seconds it took, or None where its package is missing."""
    if not importlib.util.find_spec(contender.package):
        return None
    started = time.perf_counter()
    contender.prepare(data)
    return time.perf_counter() - started


STEPS = {"prepare": prepare, "check": check, "rate": rate}


# The parent.


def write_parquet(store, folder, rows):
    """Write the first rows of the train split, one file a shard; none of it is timed."""
    target = folder / f"parquet-{rows}"
    target.mkdir(exist_ok=True)
    for shard in range(len(store.snapshot.files("examples"))):
        table = store.stream("train", RowFormat.of(store.spec).columns, shards=[shard]).read_all()[:rows]
        *slots, label = table.columns
        if store.spec.label.threshold is not None:
            label = pc.greater_equal(label, store.spec.label.threshold)
        table = pa.table([*slots, label.cast(pa.float32())], names=table.column_names)
        if len(table):
            pq.write_table(table, target / f"part-{shard:05}.parquet")
        rows -= len(table)


def rows_of(name, total):
    return min(CONTENDERS[name].rows or total, total)


def run(mosaicml, store, folder, total, name, step):
    """Run a step of a contender in a process of its own, with what it prints kept from the table."""
    python = mosaicml if mosaicml and CONTENDERS[name].package == "streaming" else sys.executable
    options = ["--store", store, "--contender", name, "--step", step]
    options += ["--folder", folder, "--limit", rows_of(name, total)]
    environment = {**os.environ, **QUIET, **{name: str(folder) for name in FOLDERS}}
    with (folder / "log").open("w+") as log:
        try:
            return measure(__file__, *options, python=python, env=environment, stderr=log)
        except SystemExit:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
            raise


def prepare_all(run_step):
    """Make each format once, and check each contender; return for each the seconds, or why it is left out."""
    made, notes = {}, {}
    for name, contender in CONTENDERS.items():
        key = contender.package, contender.prepare
        if key not in made:
            made[key], _ = run_step(name, "prepare")
        notes[name] = made[key]
        if made[key] is not None:
            run_step(name, "check")
    return notes


def print_table(figures, notes, total):
    print(f"{'':47} {'rows':>9} {'made in':>8} {'rows/s':>11} {'peak MB':>8} {'of first':>8} {'of later':>8}")
    for name, seconds in notes.items():
        if seconds is None:
            print(f"{name:47} not installed: {HOW.get(CONTENDERS[name].package, PEERS)}")
            continue
        speed, memory = figures[name]
        made = f"{seconds:.1f} s" if seconds >= 0.1 else ""
        first, later = (figures[base][0] / speed for base in (FIRST, LATER))
        print(
            f"{name:47} {rows_of(name, total):9,} {made:>8} {speed:11,.0f} {memory:8,.0f}"
            f" {first:8.2f} {later:8.2f}",
            flush=True,
        )


def report(args, path, folder):
    with FeatureStore(path) as store:
        total, lookups = store.splits.rows["train"], len(store.spec.slot_columns)
        for rows in {rows_of(name, total) for name in CONTENDERS}:
            write_parquet(store, folder, rows)
    run_step = functools.partial(run, args.mosaicml, path, folder, total)
    notes = prepare_all(run_step)
    installed = [name for name, seconds in notes.items() if seconds is not None]
    figures = medians(installed, args.repeat, lambda name: run_step(name, "rate"))
    print(f"\n{total:,} training rows of {lookups} lookups, batches of {BATCH_ROWS:,}")
    print(f"{os.cpu_count()} cores, median of {args.repeat}; each was seen to deliver every row once")
    print_table(figures, notes, total)


def main():
    parser = parser_of(__doc__, CONTENDERS)
    parser.add_argument("--mosaicml", help="the Python of an environment with mosaicml-streaming")
    parser.add_argument("--step", choices=STEPS, default="rate", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        with contextlib.redirect_stdout(sys.stderr):  # litdata prints
            found = STEPS[args.step](CONTENDERS[args.contender], Data(args.store, args.folder, args.limit))
        print(json.dumps(found))
        return
    if args.contender:
        for other in set(CONTENDERS) - {args.contender, FIRST, LATER}:
            del CONTENDERS[other]
    with tempfile.TemporaryDirectory() as folder:
        with_store(args, lambda store: report(args, store, Path(folder)))


if __name__ == "__main__":
    main()
