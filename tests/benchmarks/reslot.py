"""Benchmark: another table size from stored hashes, against all ingested again and every value hashed again.

    python tests/benchmarks/reslot.py [--rows 1m] [--num-slots 100000] [--repeat 3]

The first two are whole commands, start-up included; `reslot` is the same without it. `row by row` is what
there is without a vocabulary: the raw values are read, every row's are hashed under every seed, and the slots
alone are kept in memory, none of them written. It is measured on some of the rows, and told for all.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from featurestore.hashing import slot
from featurestore.reslot import reslot
from featurestore.snapshot import latest, open_snapshot
from pipelines.synthetic import generate
from pipelines.synthetic_shape import parse_shape

SAMPLED_ROWS = 200_000
SPEC = Path(__file__).parents[2] / "featurestore" / "specs" / "movielens.toml"


def timed(function, *args, **options):
    started = time.perf_counter()
    result = function(*args, **options)
    return time.perf_counter() - started, result


def run_command(*args):
    program = "from featurestore.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, args)]
    return timed(subprocess.run, command, stdout=subprocess.DEVNULL, check=True)[0]


def hash_row_by_row(snapshot, num_slots):
    """Return the slots of the first rows, each row hashed; and how many rows there were."""
    slots, rows = [], 0
    for path in snapshot.files("examples"):
        spec = snapshot.manifest.load_spec()
        table = pq.read_table(path, columns=[feature.column for feature in spec.features])
        table = table.slice(0, SAMPLED_ROWS - rows)
        rows += table.num_rows
        for feature in spec.features:
            values = table[feature.column].to_pylist()
            slots += [
                np.array([slot(value, seed, num_slots) for value in values], np.int32)
                for seed in feature.seeds
            ]
        if rows == SAMPLED_ROWS:
            break
    return slots, rows


def run(rows, num_slots, repeat, folder):
    """Return the seconds of each way, medians of ``repeat``, all in one run on the same rows."""
    source, store = folder / "source", folder / "store"
    generate(parse_shape(str(rows)), source)
    run_command("ingest", source, "--store", store)
    parent = latest(store)
    spec = folder / "other.toml"
    text = SPEC.read_text()
    spec.write_text(text.replace("num_slots = 32768", f"num_slots = {num_slots}"))
    assert spec.read_text() != text
    seconds = {}
    for number in range(repeat):
        whole = folder / f"whole-{number}"
        seconds.setdefault("full ingestion", []).append(
            run_command("ingest", source, "--store", whole, "--spec", spec)
        )
        asked = ("--store", store, "--snapshot", parent, "--num-slots")
        seconds.setdefault("slotstore reslot", []).append(run_command("reslot", *asked, num_slots))
        assert latest(store) == latest(whole)  # the id is a digest of all that is in it
        inside = reslot(store, parent, num_slots=num_slots + 1 + number, newest=False)
        seconds.setdefault("reslot, started", []).append(inside.seconds)
        snapshot = open_snapshot(store, parent)
        took, (_, hashed) = timed(hash_row_by_row, snapshot, num_slots)
        seconds.setdefault("row by row", []).append(took * rows / hashed)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1m")
    parser.add_argument("--num-slots", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    rows = parse_shape(args.rows).rows
    with tempfile.TemporaryDirectory() as folder:
        figures = run(rows, args.num_slots, args.repeat, Path(folder))
    print(
        f"{rows:,} ratings to {args.num_slots:,} slots, median of {args.repeat}; the same snapshot both ways"
    )
    for name, seconds in figures.items():
        ratio = figures["full ingestion"] / seconds
        print(f"{name:17} {seconds:7.2f} s {rows / seconds:12,.0f} rows/s {ratio:6.2f}x a full ingestion")


if __name__ == "__main__":
    main()
