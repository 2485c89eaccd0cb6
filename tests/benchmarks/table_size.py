"""Benchmark: the time of a training step by the size of the table, row-wise Adagrad against dense Adam.

    python tests/benchmarks/table_size.py [--sizes 1000,1000000,100000000] [--steps 20] [--threads 1]
    python tests/benchmarks/table_size.py --sizes 1000,100000 --steps 3        (some seconds)

A step is forward, backward and optimizer on one of `--batches` prepared batches: 8,192 rows of 8 lookups,
rows of 16 floats, the article's network. The slots are uniform random, where nearly every lookup of a large
table misses the caches, or Zipf: value v comes with a frequency of v**-1.1, and the values are spread over
the table by a multiplicative hash. Every line is a process of its own, so that its peak memory is its own.
The first steps, in which optimizers make their state, are not timed. Times are medians.

A table that needs more memory than is free is skipped, and said so. Dense Adam needs four times the table:
weights, gradient and two moments; row-wise Adagrad the weights and a seventeenth.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from training.embeddings import UnifiedEmbedding
from training.optimizers import build_optimizer

ROWS, LOOKUPS, DIM = 8192, 8, 16
KINDS = ("adam", "rowwise_adagrad")
COPIES = {"adam": 4.0, "rowwise_adagrad": 1 + 1 / DIM}  # of the table, in memory
DRAWS = ("uniform", "zipf")
WARM_UP = 2


class Network(nn.Module):
    """The article's, over a table that may have sparse gradients."""

    def __init__(self, num_slots, *, sparse):
        super().__init__()
        self.embedding = UnifiedEmbedding(num_slots, DIM, 0.01, sparse=sparse)
        self.layers = nn.Sequential(nn.Linear(LOOKUPS * DIM, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, slots):
        return self.layers(self.embedding(slots)).squeeze(1)


def draw(kind, num_slots):
    """Return the slots of a batch, int64 (ROWS, LOOKUPS)."""
    if kind == "uniform":
        return torch.randint(num_slots, (ROWS, LOOKUPS))
    values = torch.rand(ROWS, LOOKUPS, dtype=torch.float64).clamp(min=1e-12).pow(-1 / 0.1)  # P(v) ~ v**-1.1
    return values.clamp(max=2**40).long() * 2654435761 % num_slots


def measure(kind, num_slots, slots, args):
    """Return what one process finds: seconds to make the table, ms a step, peak MB, distinct rows."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    started = time.perf_counter()
    model = Network(num_slots, sparse=kind != "adam")
    made = time.perf_counter() - started
    optimizer = build_optimizer(model, kind, lr=2e-3, weight_decay=args.weight_decay)
    batches = [(draw(slots, num_slots), torch.rand(ROWS) * 5) for _ in range(args.batches)]
    times = []
    for number in range(WARM_UP + args.steps):
        batch, labels = batches[number % len(batches)]
        started = time.perf_counter()
        optimizer.catch_up(batch)
        optimizer.zero_grad()
        functional.mse_loss(model(batch), labels).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return {
        "made": made,
        "ms": statistics.median(times[WARM_UP:]) * 1e3,
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "distinct": len(batches[0][0].unique()),
    }


def free_bytes():
    """Return the memory that can be had: Linux says it with what caches would give up."""
    with contextlib.suppress(OSError):
        for row in Path("/proc/meminfo").read_text().splitlines():
            if row.startswith("MemAvailable:"):
                return int(row.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def report(args):
    print(f"{ROWS:,} rows of {LOOKUPS} lookups a step, rows of {DIM} floats, {args.threads} thread(s),")
    print(f"{os.cpu_count()} cores, median of {args.steps} steps, weight decay {args.weight_decay}")
    columns = f"{'ms/step':>9} {'rows/s':>11} {'distinct':>9} {'made s':>7} {'peak MB':>8}"
    print(f"{'slots':>12} {'drawn':8} {'optimizer':16} {columns}", flush=True)
    for num_slots in args.sizes:
        for slots in DRAWS:
            for kind in KINDS:
                line(args, num_slots, slots, kind)


def line(args, num_slots, slots, kind):
    """Measure in a process of its own, and print."""
    head = f"{num_slots:12,} {slots:8} {kind:16}"
    needed, free = COPIES[kind] * num_slots * DIM * 4 + 5e8, free_bytes()
    if needed > free:
        print(f"{head} skipped: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        return
    numbers = {"steps": args.steps, "batches": args.batches, "threads": args.threads}
    flags = [f"--{name}={value}" for name, value in {**numbers, "weight-decay": args.weight_decay}.items()]
    command = [sys.executable, __file__, *flags, "--one", kind, str(num_slots), slots]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    ms, mb, rate = found["ms"], found["mb"], ROWS / found["ms"] * 1e3
    print(
        f"{head} {ms:9.2f} {rate:11,.0f} {found['distinct']:9,} {found['made']:7.2f} {mb:8,.0f}", flush=True
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ",".join(str(10**power) for power in range(3, 9))
    parser.add_argument("--sizes", default=sizes, help="rows of the tables")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batches", type=int, default=8, help="different batches to go through")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--one", nargs=3, metavar=("OPTIMIZER", "SLOTS", "DRAWN"), help="measure this alone")
    args = parser.parse_args()
    args.sizes = [int(size) for size in args.sizes.split(",")]
    if args.one:
        kind, num_slots, slots = args.one
        print(json.dumps(measure(kind, int(num_slots), slots, args)))
    else:
        report(args)


if __name__ == "__main__":
    main()
