"""Benchmark (c): training from the store against the step alone, plain eager PyTorch and the article's loop.

    python tests/benchmarks/train.py [--spec article] [--batches 512,8192,65536,262144] [--repeat 3]
    python tests/benchmarks/train.py --store STORE --models article --batches 8192      (half a minute)

For each model and batch size, in rows/s:

    first epoch     end to end from the store: shards are read, packed, shuffled, trained on
    later epoch     the same with the rows in memory already, feed `memory`
    feed stream     an epoch read from disk; on CUDA there is a `feed device` too
    preloaded       the same step on slices of one tensor that was shuffled before: no feed
    step alone      the same step on one batch over and over
    plain eager     the step on `functional.embedding` and `layer(embedding)`, torch's own, on the slices
    no lookup       the network with its Adam on a ready (B, L * D): no table, no gradient of the input
    article's loop  each value of a batch hashed in `forward`, in Python; few rows, batches of 20,480 at most

All go through `training.loop.train_epoch`: the first three whole epochs, for parts of one would make reading
and shuffling look dearer, the others a part. Models, Adam's state and compilations are made before. All
take turns in an order drawn anew each round. rows/s are medians; ratios are medians of the rounds' ratios,
which compares neighbours in time where others use the machine too. The goals: a later epoch at 0.95 of
the step alone from batches of 8,192 on, and at 1.4 of plain eager, which is given its rows for nothing.

One thread by default: the feed then has another core to itself, as it has in a training with threads to
spare, and what is compared is work, not how many cores were free at the time.
"""

import argparse
import os
import random
import statistics
import time
from dataclasses import dataclass

import torch
import xxhash
from stores import add_options, integers, opened
from torch.nn import functional

from training.allocator import keep_freed_memory
from training.config import TrainConfig
from training.embeddings import SlotEmbedding
from training.loop import Trainer, TrainState, train_epoch
from training.models import MODELS, build_model
from training.objective import objective_for
from training.step import PRECISIONS, EagerStep, make_step
from training.stream import Batch, SplitStream

PART_ROWS, ARTICLE_ROWS = 262_144, 20_480
FIRST, LATER, STREAM, DEVICE = "first epoch", "later epoch", "feed stream", "feed device"
PRELOADED, ALONE, PLAIN = "preloaded", "step alone", "plain eager"
NO_LOOKUP, ARTICLE = "no lookup", "article's loop"
GOALS = {ALONE: 0.95, PLAIN: 1.4}  # of a later epoch
GOAL_BATCH = 8192  # from which on a later epoch is to be as fast as the step alone


class PlainEmbedding(SlotEmbedding):
    """The table as PyTorch has it, with its backward; what follows is a layer of its own."""

    def __init__(self, num_slots, dim, std):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(num_slots, dim).normal_(std=std))

    def forward(self, slots):
        return functional.embedding(slots, self.weight).flatten(1)


class NoLookup(SlotEmbedding):
    """In the table's place: what comes is the embedding."""

    def __init__(self, num_slots, dim, std):
        super().__init__()

    def forward(self, ready):
        return ready


class HashInForward(torch.nn.Module):
    """The article's way: every value of a batch is hashed when it is looked up."""

    def __init__(self, inner, spec):
        super().__init__()
        self.inner, self.num_slots = inner, spec.table.num_slots
        self.seeds = [feature.seeds for feature in spec.features]

    def forward(self, columns):
        slots = [
            [xxhash.xxh32(str(value).encode(), seed).intdigest() % self.num_slots for value in values]
            for values, seeds in zip(columns, self.seeds, strict=True)
            for seed in seeds
        ]
        device = next(self.parameters()).device
        return self.inner(torch.tensor(slots, device=device).T)


class Slices:
    """A source of batches that are slices of what is ready: inputs (n, ...) and labels (n,)."""

    def __init__(self, inputs, labels, batch, *, repeats=None):
        self.inputs, self.labels, self.batch = inputs, labels, batch
        self.starts = [0] * repeats if repeats else list(range(0, len(labels) - batch + 1, batch))
        self.rows = len(self.starts) * batch

    def epoch(self, _number, _start=0):
        for start in self.starts:
            rows = slice(start, start + self.batch)
            yield Batch(self.inputs[rows], self.labels[rows], self.batch)


@dataclass
class Contender:
    """A step, and how to have what it trains on."""

    trainer: Trainer
    source: object  # called before each measurement

    def rate(self, epoch):
        """Train on an epoch; return rows/s. Opening the source is timed, as reading is a part of it."""
        started = time.perf_counter()
        source = self.source()
        state = TrainState(epoch=epoch)
        train_epoch(self.trainer, source, state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return state.rows / (time.perf_counter() - started)


def trainer_of(store, name, table, batch, args):
    """Make a model, by the shared table or what stands in for it, with its step."""
    options = {"table": table} if table else {}
    torch.manual_seed(0)
    model = build_model(name, store.spec, 3.5, **options).to(args.device)
    adam = torch.optim.Adam(model.parameters(), lr=TrainConfig.learning_rate, fused=True)
    kind = "eager" if table is PlainEmbedding else args.step
    objective = objective_for(store.spec.label)
    step = make_step(kind, model, adam, objective, batch_rows=batch, precision=args.precision)
    return Trainer(model, step, objective)


class HashingStep(EagerStep):
    """A step on lists of texts, one for each feature."""

    def _scores(self, columns):
        return self.model(columns).float()


def article_loop(store, name, batch, args):
    """Return the article's loop as a contender."""
    plain = trainer_of(store, name, PlainEmbedding, batch, args)
    model = HashInForward(plain.model, store.spec).to(args.device)
    adam = torch.optim.Adam(model.parameters(), lr=TrainConfig.learning_rate, fused=True)
    step = HashingStep(model, adam, plain.objective)
    batches = RawBatches(store, min(batch, ARTICLE_ROWS), args.device)
    return Contender(Trainer(model, step, plain.objective), lambda: batches)


class RawBatches:
    """Batches as the article's loader gives them: a list of raw values a feature."""

    def __init__(self, store, batch, device):
        columns, label = [feature.column for feature in store.spec.features], store.spec.label.column
        self.batches, self.rows = [], 0
        for found in store.stream("train", [*dict.fromkeys(columns), label], batch_rows=batch):
            labels = torch.from_numpy(found[label].to_numpy().copy()).to(device)
            self.batches.append(Batch([found[name].to_pylist() for name in columns], labels, len(labels)))
            self.rows += len(labels)
            if self.rows >= ARTICLE_ROWS:
                break

    def epoch(self, _number, _start=0):
        return self.batches


def contenders(store, name, batch, args, shuffled):
    """Return everyone who takes part, by name, and the streams to close."""
    slots, labels = shuffled
    rows = min(max(PART_ROWS, 3 * batch), len(labels))
    ours = trainer_of(store, name, None, batch, args)
    plain = trainer_of(store, name, PlainEmbedding, batch, args)
    bare = trainer_of(store, name, NoLookup, batch, args)
    width = slots.shape[1] * store.spec.table.dim
    ready = Slices(torch.randn(batch, width, device=args.device), labels, batch, repeats=rows // batch)
    part = Slices(slots[:rows], labels[:rows], batch)
    alone = Slices(slots[:batch].clone(), labels[:batch].clone(), batch, repeats=rows // batch)
    for trainer, source in ((ours, alone), (plain, alone), (bare, ready)):
        for _ in range(2):  # Adam's state, compilation, first touch of memory
            trainer.step(source.inputs[:batch], source.labels[:batch], batch)

    def stream(feed="memory"):
        return SplitStream(store, "train", batch, shuffle=True, feed=feed, device=args.device)

    feeds = {LATER: "memory", STREAM: "stream", **({DEVICE: "device"} if args.device == "cuda" else {})}
    streams = {what: stream(feed) for what, feed in feeds.items()}
    for made in streams.values():
        made.prepare()
        next(made.epoch(0))  # resident rows are read now
    found = {FIRST: Contender(ours, stream)}
    found |= {what: Contender(ours, lambda made=made: made) for what, made in streams.items()}
    found |= {
        PRELOADED: Contender(ours, lambda: part),
        ALONE: Contender(ours, lambda: alone),
        PLAIN: Contender(plain, lambda: part),
        NO_LOOKUP: Contender(bare, lambda: ready),
        ARTICLE: article_loop(store, name, batch, args),
    }
    return found, list(streams.values())


def preloaded(store, device):
    """Return an epoch's slots and labels in their shuffled order, each one tensor."""
    batches = list(SplitStream(store, "train", PART_ROWS, shuffle=True).epoch(1))
    return (
        torch.cat([batch.slots for batch in batches]).to(device),
        torch.cat([batch.labels for batch in batches]).to(device),
    )


def measure(store, name, batch, args, shuffled):
    """Return the rows/s of each contender, by round."""
    found, streams = contenders(store, name, batch, args, shuffled)
    rates = {what: [] for what in found}
    for epoch in range(1, args.repeat + 1):
        for what in random.sample(list(found), len(found)):  # none always follows the same one
            rates[what].append(found[what].rate(epoch))
    for stream in streams:
        stream.close()
    return rates


def ratio(rates, one, other):
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))


def show(name, batch, rates):
    """Print a table and the goals."""
    print(f"\n{name}, batches of {batch:,}")
    print(f"{'':16} {'rows/s':>11} {'of the step alone':>18} {'of plain eager':>15}")
    for what, found in rates.items():
        ratios = f"{ratio(rates, what, ALONE):18.3f} {ratio(rates, what, PLAIN):15.3f}"
        print(f"{what:16} {statistics.median(found):11,.0f} {ratios}")
    for other, goal in GOALS.items():
        if other != ALONE or batch >= GOAL_BATCH:
            got = ratio(rates, LATER, other)
            verdict = "met" if got >= goal else "missed"
            print(f"goal: {LATER} / {other} >= {goal}: {got:.3f}, {verdict}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--models", default="article,dcn", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--batches", type=integers, default=[512, 8192, 65_536, 262_144])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch's, for its operators")
    parser.add_argument("--step", choices=("eager", "compile"), default="eager")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument(
        "--malloc",
        choices=("kept", "default"),
        default="kept",
        help="kept: freed memory, as `slotstore train` does",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.malloc == "kept":
        keep_freed_memory()
    with opened(args) as store:
        shuffled = preloaded(store, args.device)
        table = store.spec.table
        print(f"{len(shuffled[1]):,} training rows of {shuffled[0].shape[1]} lookups, ", end="")
        print(f"table of {table.num_slots:,} x {table.dim}; {args.device}, {os.cpu_count()} cores, ", end="")
        print(f"{args.threads} threads, step {args.step}, {args.precision}, median of {args.repeat}")
        for name in args.models.split(","):
            for batch in args.batches:
                if batch <= len(shuffled[1]):
                    show(name, batch, measure(store, name, batch, args, shuffled))


if __name__ == "__main__":
    main()
