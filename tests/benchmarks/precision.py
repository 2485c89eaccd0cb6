"""Benchmark: what fp32, tf32 and bf16 products cost and what they do to the metric.

    python tests/benchmarks/precision.py [--models article,dcn] [--seeds 3] [--epochs 3]

Trainings that differ in `--precision` alone, in turn for each seed: rows/s of training and best validation
metric, as mean and standard deviation over seeds, and its difference to fp32's of the same seed. tf32
changes nothing but on CUDA, and is left out elsewhere. On a CPU without bfloat16 instructions bf16 is slower.
"""

import argparse
import statistics

import torch
from stores import add_options, opened, trained

from training.models import MODELS
from training.step import PRECISIONS


def run(store, model, precision, seed, args):
    """Train; return rows/s and the best validation metric."""
    result = trained(store, args, model=model, precision=precision, seed=seed)
    return result.rows_per_second, result.epochs[result.best_epoch - 1].score


def spread(numbers):
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def report(store, model, args):
    """Train with each precision and print the table."""
    names = [name for name in PRECISIONS if name != "tf32" or args.device.startswith("cuda")]
    found = {name: [] for name in names}
    for seed in range(args.seeds):
        for name in names:
            found[name].append(run(store, model, name, seed, args))
    print(f"\n{model}, batches of {args.batch_size:,}, best of {args.epochs} epochs, ", end="")
    print(f"{args.seeds} seeds, {args.device}, {args.threads} threads")
    head = f"{'':6} {'rows/s':>11} {'ratio':>6} {'metric':>9} {'deviation':>9}"
    print(f"{head} {'less fp32':>9} {'deviation':>9}")
    base_rate = statistics.median(rate for rate, _ in found["fp32"])
    base = [score for _, score in found["fp32"]]
    for name, runs in found.items():
        rate, scores = statistics.median(rate for rate, _ in runs), [score for _, score in runs]
        less = [score - other for score, other in zip(scores, base, strict=True)]
        metric = f"{statistics.mean(scores):9.5f} {spread(scores):9.5f}"
        shift = f"{statistics.mean(less):+9.5f} {spread(less):9.5f}"
        print(f"{name:6} {rate:11,.0f} {rate / base_rate:6.2f} {metric} {shift}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--models", default="article,dcn", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with opened(args) as store:
        for model in args.models.split(","):
            report(store, model, args)


if __name__ == "__main__":
    main()
