"""Benchmark (c): training fed from the store, against preloaded slots and the article's own loop.

    python tests/benchmarks/train.py [--rows ml-1m | --store STORE] [--repeat 5]

All train the same network with the same optimizer, batch size and number of rows, in turn, several
times; rows/s are medians. `from the store` includes reading it. The article's loop hashes each value
of each batch in `forward`, in Python; it gets fewer rows, for it needs no warming up.
"""

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import xxhash

from featurestore.store import FeatureStore
from training.config import TrainConfig
from training.loop import Trainer, train_epoch
from training.models import ArticleMLP
from training.objective import objective_for
from training.stream import Batch, SplitStream

ARTICLE_ROWS = 20_480
PRELOADED = "the same step on preloaded slots"
FIRST = "from the store, first epoch"
ARTICLE = "the article's loop, hashing in forward"


class ArticleInForward(torch.nn.Module):
    """The article's module: every value of a batch is hashed when it is looked up."""

    def __init__(self, spec):
        super().__init__()
        self.inner = ArticleMLP(spec)
        self.seeds = [feature.seeds for feature in spec.features]
        self.num_slots = spec.table.num_slots

    def forward(self, columns):
        slots = [
            [xxhash.xxh32(str(value).encode(), seed).intdigest() % self.num_slots for value in values]
            for values, seeds in zip(columns, self.seeds, strict=True)
            for seed in seeds
        ]
        return self.inner(torch.tensor(slots).T)


def rate(store, model, batches):
    """Train a fresh model for one epoch; return rows/s."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=TrainConfig.learning_rate, fused=True)
    trainer = Trainer(model, optimizer, objective_for(store.spec.label))
    started = time.perf_counter()
    _, rows = train_epoch(trainer, batches, epoch=1)
    return rows / (time.perf_counter() - started)


def stream_of(store):
    return SplitStream(store, "train", TrainConfig.batch_size, shuffle=True)


def preloaded(store):
    """Return all batches of an epoch, each a pair of tensors of its own."""
    return [Batch(slots.clone(), labels.clone()) for slots, labels in stream_of(store).epoch(1)]


def raw_batches(store):
    """Return batches of raw values, as the article's loader gives them: a list of texts a feature."""
    columns = [feature.column for feature in store.spec.features]
    reader = store.stream(
        "train", [*dict.fromkeys(columns), store.spec.label.column], batch_rows=TrainConfig.batch_size
    )
    batches, rows = [], 0
    for batch in reader:
        labels = torch.from_numpy(batch[store.spec.label.column].to_numpy().copy())
        batches.append(Batch([batch[name].to_pylist() for name in columns], labels))
        rows += len(labels)
        if rows >= ARTICLE_ROWS:
            break
    return batches


def report(path, repeat):
    with FeatureStore(path) as store:
        slots, texts = preloaded(store), raw_batches(store)
        warm, epoch = stream_of(store), itertools.count()
        sum(len(batch.labels) for batch in warm.epoch(next(epoch)))
        contenders = {
            PRELOADED: (ArticleMLP, lambda: slots),
            FIRST: (ArticleMLP, lambda: stream_of(store).epoch(0)),
            "from the store, a later epoch": (ArticleMLP, lambda: warm.epoch(next(epoch))),
            ARTICLE: (ArticleInForward, lambda: texts),
        }
        rates = {name: [] for name in contenders}
        for _ in range(repeat):
            for name in random.sample(list(contenders), len(contenders)):  # none always follows the same one
                network, batches = contenders[name]
                rates[name].append(rate(store, network(store.spec), batches()))
        rows = store.splits.rows["train"]
    print(f"\n{rows:,} training rows, batches of {TrainConfig.batch_size:,}")
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, median of {repeat}")
    print(f"{'':40} {'rows/s':>10} {'ratio':>7}")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, median in medians.items():
        print(f"{name:40} {median:10,.0f} {median / medians[PRELOADED]:7.3f}")
    print(f"the store feeds {medians[FIRST] / medians[ARTICLE]:.1f} times the rows of the article's loop")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", default="ml-1m", help="rows of the synthetic store to make: ml-1m, 10m, ..."
    )
    parser.add_argument("--store", type=Path, help="measure this store instead")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    if args.store:
        report(args.store, args.repeat)
        return
    with tempfile.TemporaryDirectory() as folder:
        ingest = ["-m", "pipelines.ingest", f"synthetic:{args.rows}", "--store", folder]
        subprocess.run([sys.executable, *ingest], check=True)
        report(Path(folder), args.repeat)


if __name__ == "__main__":
    main()
