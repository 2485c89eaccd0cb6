"""Benchmark: how well the streaming shuffle mixes, and whether a model notices.

    python tests/benchmarks/shuffle.py [--window-rows 65536,8192,1024] [--seeds 3] [--epochs 3]
    python tests/benchmarks/shuffle.py --store STORE --seeds 0                           (some seconds)

Of the train split, the autocorrelation of labels and of event times between rows that are 1, 10 and 100 apart
in an epoch, and the root mean square over all distances from 1 to 100, as a multiple of the noise. For a
permutation of n rows each is 0 with a deviation of 1 / sqrt(n), the noise, so that the last is about 1. The
contenders hold equally many rows in memory: the buffer of tf.data and Hugging Face datasets, which gives
away a random one of its rows and puts the store's next in its place; and slotstore's windows over its
base order.

Then the best validation metric of trainings that differ in the order alone, as mean and standard
deviation over seeds. A seed also draws the initial weights, the same ones in every line.
"""

import argparse
import statistics

import numpy as np
import torch
from stores import add_options, integers, opened, trained

from training.order import BaseOrder, Shuffle, permutation

LAGS = (1, 10, 100)
FULL = "full permutation"


def columns(store):
    """Return labels and event times of the train split in the store's order, float64 (n,) each."""
    label, time = store.spec.label.column, "timestamp"
    table = store.stream("train", [label, time]).read_all()
    return {name: table[name].to_numpy().astype(np.float64) for name in (label, time)}


def windowed(rows, window_rows, epoch=1):
    """Return the order of one of slotstore's epochs: which row of the store's order comes when."""
    shuffle = Shuffle(rows, 0, window_rows)
    positions = np.concatenate([window.positions() for window in shuffle.windows(epoch)])
    if shuffle.whole:
        return positions
    at_place = np.argsort(BaseOrder(rows, window_rows).places())
    return at_place[positions]


def buffered(rows, buffer_rows):
    """Return the order of a shuffle buffer over the store's order."""
    draws = np.random.default_rng(0).integers(buffer_rows, size=rows).tolist()
    held, order = list(range(min(buffer_rows, rows))), []
    for row in range(buffer_rows, rows):
        out = draws[row]
        order.append(held[out])
        held[out] = row
    return np.concatenate([np.array(order, np.int64), np.random.default_rng(1).permutation(held)])


def autocorrelation(values, lag):
    """Return the correlation of a sequence with itself, ``lag`` places on."""
    centred = values - values.mean()
    return float(centred[:-lag] @ centred[lag:] / (centred @ centred))


def in_noise(values):
    """Return the root mean square of the autocorrelations at lags 1 to 100, a permutation's being about 1."""
    found = [autocorrelation(values, lag) for lag in range(1, 101)]
    return float(np.sqrt(np.mean(np.square(found)) * len(values)))


def show_mixing(store, window_rows):
    """Print the autocorrelations of every order."""
    values = columns(store)
    rows = len(next(iter(values.values())))
    orders = {"the store's order": np.arange(rows), FULL: permutation(rows, 0, 1)}
    for size in window_rows:
        orders[f"shuffle buffer of {size:,}"] = buffered(rows, size)
        orders[f"slotstore, windows of {size:,}"] = windowed(rows, size)
    print(f"\n{rows:,} training rows: autocorrelation; expected noise 1 / sqrt(n) = {rows**-0.5:.5f}")
    heads = [str(head) for name in values for head in (f"{name} {LAGS[0]}", *LAGS[1:], "1-100 rms")]
    print(f"{'':32}" + "".join(f"{head:>12}" for head in heads))
    for what, order in orders.items():
        assert (np.bincount(order, minlength=rows) == 1).all()
        print(f"{what:32}", end="")
        for column in values.values():
            print("".join(f"{autocorrelation(column[order], lag):12.5f}" for lag in LAGS), end="")
            print(f"{in_noise(column[order]):12.2f}", end="")
        print(flush=True)


def best_score(store, window_rows, seed, args):
    """Train, streaming; return the best validation metric."""
    result = trained(store, args, seed=seed, feed="stream", window_rows=window_rows)
    return result.epochs[result.best_epoch - 1].score


def show_training(store, args):
    """Print what models make of the orders."""
    lines = {FULL: store.splits.rows["train"]}
    lines |= {f"slotstore, windows of {size:,}": size for size in args.window_rows}
    scores = {what: [] for what in lines}
    for seed in range(args.seeds):
        for what, size in lines.items():
            scores[what].append(best_score(store, size, seed, args))
    print(f"\nbest validation metric of {args.epochs} epochs, batches of {args.batch_size:,}, ", end="")
    print(f"{args.seeds} seeds")
    print(f"{'':32} {'mean':>9} {'deviation':>9} {'less full':>9}")
    for what, found in scores.items():
        mean, spread = statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0
        print(f"{what:32} {mean:9.5f} {spread:9.5f} {mean - statistics.mean(scores[FULL]):+9.5f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--window-rows", type=integers, default=[65_536, 8192, 1024])
    parser.add_argument("--seeds", type=int, default=3, help="of the trainings; 0: none")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with opened(args) as store:
        show_mixing(store, args.window_rows)
        if args.seeds:
            show_training(store, args)


if __name__ == "__main__":
    main()
