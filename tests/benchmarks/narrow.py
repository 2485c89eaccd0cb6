"""Benchmark: what a training step costs with narrow rows, against wide ones and against signs kept by value.

    python tests/benchmarks/narrow.py [--batches 128,1024,8192] [--models dcn,article] [--rounds 15]

Made-up examples of the six features of ml-1m, tables of equal bytes, vectors of 30 floats, one thread. A step
is forward, backward and Adam. All take their turns, round by round; figures are medians over rounds.

    wide          one lookup a feature, rows of 30, by torch.nn.Embedding: what anybody would write
    concatenated  five lookups, rows of 6, as the store's own table does it
    narrow        six lookups, rows of one float: signs by the slots, a fixed projection
    small=2       the same with two lookups for the three small features
    by value      `narrow`, but the signs of each value kept, and looked up: needs a vocabulary

    step          milliseconds
    x wide        how many times as long as wide's step: less is better
    own           share of the step that the forward up to the vectors takes
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from stores import integers
from torch import nn

from featurestore.layouts import unified_narrow
from featurestore.plans import Field
from training.combiners import CODE, SignedProjection
from training.embeddings import SlotEmbedding, UnifiedEmbedding
from training.layout_embeddings import embed
from training.models import build_network

VALUES = (6040, 3706, 2, 7, 21, 3439)
DIM, FLOATS = 30, sum(VALUES) * 30 // 10


class Wide(SlotEmbedding):
    """Rows of the whole width, by torch.nn.Embedding."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(FLOATS // DIM, DIM)

    def forward(self, slots):
        """Look up slots, int (B, F): float32 (B, F * D)."""
        return self.table(slots).flatten(1)


def contenders(model, batch):
    """Return of each contender its network and a batch of inputs, by name."""
    generator = torch.Generator().manual_seed(0)
    fields = [Field(f"f{number}", tuple(map(str, range(size)))) for number, size in enumerate(VALUES)]
    codes = torch.stack([torch.randint(size, (batch,), generator=generator) for size in VALUES], 1)

    def slots(lookups, rows):
        found = [
            torch.from_numpy(field.slots(k, rows))[codes[:, number]]
            for number, (field, k) in enumerate(zip(fields, lookups, strict=True))
        ]
        return torch.cat(found, 1)

    def network(embedding, count=6, dim=DIM):
        return build_network(model, embedding, count, dim)

    made = {
        "wide": (network(Wide()), slots([1] * 6, FLOATS // DIM)),
        "concatenated": (network(UnifiedEmbedding(FLOATS // 6, 6), 30, 6), slots([5] * 6, FLOATS // 6)),
    }
    for name, lookups in (("narrow", [6] * 6), ("small=2", [6, 6, 2, 2, 2, 6])):
        made[name] = network(UnifiedEmbedding(FLOATS, 1)), slots(lookups, FLOATS)
        made[name][0].combiner = SignedProjection(lookups, 1, DIM)
    made["by value"] = network(embed(unified_narrow(fields, DIM, FLOATS, code=CODE))), codes
    return made


def measure(model, batch, rounds):
    """Return the medians of each contender: (step s, own s)."""
    made, times = contenders(model, batch), {}
    labels = torch.rand(batch)
    adams = {name: torch.optim.Adam(network.parameters(), fused=True) for name, (network, _) in made.items()}
    steps = max(1, 4096 // batch)
    for each in range(rounds + 1):
        for name, (network, inputs) in made.items():
            started = time.perf_counter()
            for _ in range(steps):
                adams[name].zero_grad()
                (network(inputs) - labels).square().mean().backward()
                adams[name].step()
            between = time.perf_counter()
            with torch.no_grad():
                for _ in range(steps):
                    network.embed(inputs)
            found = (between - started) / steps, (time.perf_counter() - between) / steps
            if each:  # the first round warms up
                times.setdefault(name, []).append(found)
    return {name: tuple(map(statistics.median, zip(*found, strict=True))) for name, found in times.items()}


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=integers, default=[128, 1024, 8192])
    parser.add_argument("--models", default="dcn,article")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for model in args.models.split(","):
        for batch in args.batches:
            table = Table("table", "step ms", "x wide", "own", title=f"{model}, batches of {batch:,}")
            found = measure(model, batch, args.rounds)
            for name, (step, own) in found.items():
                ratio = step / found["wide"][0]
                table.add_row(name, f"{1e3 * step:.2f}", f"{ratio:.2f}", f"{own / step:.0%}")
            Console().print(table)


if __name__ == "__main__":
    main()
