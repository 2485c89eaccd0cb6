"""Benchmark: what a training step costs with each memory layout, and what of it is the layout's own.

    python tests/benchmarks/layouts.py                   (synthetic, of the size of ml-100k; a minute or two)
    python tests/benchmarks/layouts.py --store STORE --budgets 1.0x,0.1x --rounds 9

A step is one of `slotstore compare`: forward, backward and Adam over a batch, on one thread, as a cell has.
`plain` is the alternative that anybody would write: torch.nn.Embedding with a row for each value, in the same
network, with the same batches and optimizer. All layouts take their turns, round by round, so that a busy
machine slows all alike; figures are medians over rounds.

    step        milliseconds
    x plain     how many times as long as plain's step: less is better
    own         share of the step that the embedding's forward and backward take by themselves
    updates     floats that Adam updates, in thousands: the layout's and the network's
"""

import argparse
import statistics
import time

import numpy as np
import stores
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from featurestore.layouts import LAYOUTS, make_plan
from featurestore.plans import TooSmall
from training.comparison.arguments import read_budgets
from training.comparison.cell import Trial
from training.comparison.data import load_coded
from training.comparison.setup import Setup
from training.layout_embeddings import embed

STEPS = 60


class Plain(nn.Module):
    """Collision-free rows, by torch.nn.Embedding."""

    def __init__(self, fields, dim):
        super().__init__()
        sizes = [len(field) for field in fields]
        self.register_buffer("starts", torch.from_numpy(np.cumsum([0, *sizes[:-1]])))
        self.table = nn.Embedding(sum(sizes), dim)
        nn.init.uniform_(self.table.weight, -0.05, 0.05)

    def forward(self, codes):
        """Look up codes, int (B, F): float32 (B, F * D)."""
        return self.table(codes + self.starts).flatten(1)


def embedding_of(name, coded, setup, floats):
    """Make a layout's embedding, or the plain one."""
    return (
        Plain(coded.fields, setup.dim)
        if name == "plain"
        else embed(make_plan(name, coded.fields, setup.dim, floats))
    )


def time_steps(trial, batches):
    """Return the seconds of a step, and of the embedding's part of it."""
    started = time.perf_counter()
    for codes, labels in batches:
        trial.step(codes, labels, len(labels))
    whole = (time.perf_counter() - started) / len(batches)
    started = time.perf_counter()
    for codes, _ in batches:
        embedded = trial.model.embedding(codes)
        embedded.backward(torch.ones_like(embedded))
    return whole, (time.perf_counter() - started) / len(batches)


def measure(coded, setup, floats, rounds):
    """Return the medians of each layout that fits: (step s, own s, updated floats)."""
    trials = {}
    for name in ("plain", *LAYOUTS):
        try:
            trials[name] = Trial(embedding_of(name, coded, setup, floats), coded, setup)
        except TooSmall:
            continue
    count = STEPS * setup.batch_size
    some = torch.randint(len(coded.labels["train"]), (count,), generator=torch.Generator().manual_seed(0))
    codes, labels = (torch.from_numpy(each["train"])[some] for each in (coded.codes, coded.labels))
    batches = list(zip(codes.split(setup.batch_size), labels.split(setup.batch_size), strict=True))
    times = {name: [] for name in trials}
    for each in range(rounds + 1):
        for name, trial in trials.items():
            found = time_steps(trial, batches)
            if each:  # the first round warms up
                times[name].append(found)
    updates = {name: sum(p.numel() for p in trial.model.parameters()) for name, trial in trials.items()}
    return {
        name: (*map(statistics.median, zip(*found, strict=True)), updates[name])
        for name, found in times.items()
    }


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stores.add_options(parser)
    parser.set_defaults(rows="100k")
    parser.add_argument("--budgets", default="1.0x,0.1x,0.02x")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    setup, console = Setup(), Console()
    with stores.opened(args) as store:
        coded = load_coded(store, setup)
    for floats in read_budgets(args.budgets, coded.values * setup.dim):
        table = Table("layout", "step ms", "x plain", "own", "updates k", title=f"{4 * floats:,} bytes")
        found = measure(coded, setup, floats, args.rounds)
        for name, (step, own, updates) in sorted(found.items(), key=lambda item: item[1][0]):
            ratio = step / found["plain"][0]
            table.add_row(
                name, f"{1e3 * step:.2f}", f"{ratio:.2f}", f"{own / step:.0%}", f"{updates / 1e3:.0f}"
            )
        console.print(table)


if __name__ == "__main__":
    main()
