"""Benchmark: predictions a second of a pruned model against the whole one, in one run.

    python tests/benchmarks/pruning.py [--rows ml-1m] [--spec movielens] [--store store] [--threads 1]
    python tests/benchmarks/pruning.py --rows 3k --rounds 2 --epochs 1        (some seconds)

A model is trained and pruned. Then both predict the same rows of the test split, repeated to the size of a
batch: from raw values, as `Predictor` does, and from slots, the network alone. They take turns, so that both
meet the same machine; times are medians, ratios those of the medians. Bits are compared in every round.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import stores
import torch

from featurestore.encode import encode
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.job import train
from training.predictor import Predictor
from training.utilization.pruning import prune_table


def pruned_pair(store, args, folder):
    """Return the whole predictor and the pruned one, and what the pruning said."""
    config = TrainConfig(store.path, epochs=args.epochs, tracking=False, checkpoint_dir=folder)
    path = train(config).checkpoint
    said = prune_table(store, load_checkpoint(path), path, folder / "pruned.pt")
    return Predictor.load(path), Predictor.load(folder / "pruned.pt"), said


def seconds(*calls, rounds):
    """Return the median time of each call, which take turns and must give the same bits."""
    times = [[] for _ in calls]
    for _ in range(rounds + 1):
        results = []
        for call, of_call in zip(calls, times, strict=True):
            started = time.perf_counter()
            results.append(bytes(memoryview(call()).cast("B")))
            of_call.append(time.perf_counter() - started)
        assert len(set(results)) == 1
    return [statistics.median(of_call[1:]) for of_call in times]  # the first warms up


def report(store, args, folder):
    *predictors, said = pruned_pair(store, args, Path(folder))
    print(said)
    columns = predictors[0].columns
    test = store.stream("test", columns).read_all()
    print(f"{'from':12} {'batch':>8} {'whole/s':>12} {'pruned/s':>12} {'pruned/whole':>13}")
    for size in args.batches:
        rows = pa.concat_tables([test] * (-(-size // len(test)))).slice(0, size)
        encoded = encode(rows, store.spec).select(store.spec.slot_columns)
        slots = torch.stack([torch.tensor(column.to_numpy()) for column in encoded.columns], dim=1)
        calls = {
            "raw values": [lambda one=one, rows=rows: one.predict(rows) for one in predictors],
            "slots": [lambda one=one, slots=slots: one.model(slots).numpy() for one in predictors],
        }
        for name, both in calls.items():
            with torch.inference_mode():
                whole, pruned = seconds(*both, rounds=args.rounds)
            print(f"{name:12} {size:8,} {size / whole:12,.0f} {size / pruned:12,.0f} {whole / pruned:13.2f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stores.add_options(parser)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batches", type=stores.integers, default=[1, 1024, 65_536])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with stores.opened(args) as store, tempfile.TemporaryDirectory() as folder:
        report(store, args, folder)


if __name__ == "__main__":
    main()
