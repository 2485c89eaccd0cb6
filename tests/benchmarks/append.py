"""Benchmark (e): a day's ratings appended to a store, against all ratings ingested again.

    python tests/benchmarks/append.py [--rows 10m] [--day 100000] [--repeat 3]

`repeated` is the same day with 1,000 ratings that supersede older ones, taken from all over the parent: it
is the worst case, for then the day is read twice and nearly every shard of the parent is written again.
"""

import argparse
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.synthetic import generate
from pipelines.synthetic_shape import parse_shape

SUPERSEDING = 1_000


def ingest(source, store, *flags):
    """Run `slotstore ingest`; return its seconds, start-up included."""
    command = [sys.executable, "-m", "pipelines.ingest", str(source), "--store", str(store), *flags]
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def divide(whole, folder, rows, day):
    """Write the sources: all but the last ``day`` ratings; these; these and some later ones of the former."""
    for name in ("parent", "day", "repeated"):
        shutil.copytree(whole, folder / name, ignore=shutil.ignore_patterns("ratings.dat"))
    step = (rows - day) // SUPERSEDING
    later = []
    with (whole / "ratings.dat").open() as lines, (folder / "parent" / "ratings.dat").open("w") as parent:
        for number, line in enumerate(itertools.islice(lines, rows - day)):
            parent.write(line)
            if number % step == 0:
                user, movie, rating, timestamp = line.split("::")
                later.append(f"{user}::{movie}::{rating}::{int(timestamp) + 1}\n")
        rest = lines.read()
    (folder / "day" / "ratings.dat").write_text(rest)
    (folder / "repeated" / "ratings.dat").write_text(rest + "".join(later))


def run(rows, day, repeat, folder):
    whole = folder / "whole"
    generate(parse_shape(str(rows)), whole)
    divide(whole, folder, rows, day)
    ingest(folder / "parent", folder / "store")
    figures = {}
    for _ in range(repeat):
        figures.setdefault("all ingested again", []).append(ingest(whole, folder / "again"))
        shutil.rmtree(folder / "again")
        for name in ("day", "repeated"):
            shutil.copytree(folder / "store", folder / "copy")
            figures.setdefault(f"{name} appended", []).append(
                ingest(folder / name, folder / "copy", "--append")
            )
            shutil.rmtree(folder / "copy")
    return {name: statistics.median(seconds) for name, seconds in figures.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="10m")
    parser.add_argument("--day", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    rows = parse_shape(args.rows).rows
    with tempfile.TemporaryDirectory() as folder:
        figures = run(rows, args.day, args.repeat, Path(folder))
    print(f"{args.day:,} of {rows:,} ratings, median of {args.repeat}")
    for name, seconds in figures.items():
        print(f"{name:20} {seconds:7.1f} s {figures['all ingested again'] / seconds:6.2f}x as fast")


if __name__ == "__main__":
    main()
