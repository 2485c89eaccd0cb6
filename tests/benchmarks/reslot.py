"""Benchmark: another table size from stored hashes, against all ingested again and every row hashed again.

    python tests/benchmarks/reslot.py [--rows 1m] [--num-slots 100000] [--repeat 3]

`full ingestion` and `slotstore reslot` are whole commands, start-up included, that make the same snapshot;
`reslot()` is the second without its start-up. `row by row` is what there is without a vocabulary, and does
less: it reads the raw values, hashes those of every row under every seed, and keeps the slots in memory. It
is measured on some of the rows, and told for all. The processor's seconds depend less on what else runs.
"""

import argparse
import resource
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


def cpu_seconds():
    """Return the processor's seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(function, *args, **options):
    """Call a function; return the seconds of the clock and of the processor, and what it returned."""
    started = time.perf_counter(), cpu_seconds()
    result = function(*args, **options)
    return np.array([time.perf_counter() - started[0], cpu_seconds() - started[1]]), result


def run_command(*args):
    program = "from featurestore.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, args)]
    return timed(subprocess.run, command, stdout=subprocess.DEVNULL, check=True)[0]


def hash_row_by_row(snapshot, num_slots):
    """Return the slots of the first rows, each hashed by itself, and how many rows these are."""
    spec, slots, rows = snapshot.manifest.load_spec(), [], 0
    for path in snapshot.files("examples"):
        table = pq.read_table(path, columns=[feature.column for feature in spec.features])
        table = table.slice(0, SAMPLED_ROWS - rows)
        rows += table.num_rows
        for feature in spec.features:
            values = table[feature.column].to_pylist()
            slots += [[slot(value, seed, num_slots) for value in values] for seed in feature.seeds]
        if rows == SAMPLED_ROWS:
            break
    return slots, rows


def run(rows, num_slots, repeat, folder):
    """Return the seconds (clock, processor) of each way, medians of ``repeat``, all on the same rows."""
    source, store, spec = folder / "source", folder / "store", folder / "other.toml"
    generate(parse_shape(str(rows)), source)
    run_command("ingest", source, "--store", store)
    parent = open_snapshot(store)
    spec.write_text(SPEC.read_text().replace("num_slots = 32768", f"num_slots = {num_slots}"))
    figures = {"full ingestion": [], "slotstore reslot": [], "reslot()": [], "row by row": []}
    for number in range(repeat):
        whole, name = folder / f"whole-{number}", parent.manifest.id
        figures["full ingestion"].append(run_command("ingest", source, "--store", whole, "--spec", spec))
        figures["slotstore reslot"].append(
            run_command("reslot", "--store", store, "--snapshot", name, "--num-slots", num_slots)
        )
        assert latest(store) == latest(whole)  # the id is a digest of all that is in it
        figures["reslot()"].append(timed(reslot, store, name, num_slots=num_slots + 1 + number)[0])
        seconds, (_, hashed) = timed(hash_row_by_row, parent, num_slots)
        figures["row by row"].append(seconds * rows / hashed)
    return {
        name: [statistics.median(part) for part in zip(*each, strict=True)] for name, each in figures.items()
    }


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
    print(f"{rows:,} ratings to {args.num_slots:,} slots, median of {args.repeat}")
    print(f"{'':16} {'seconds':>9} {'rows/s':>11} {'ratio':>7} {'cpu s':>9} {'ratio':>7}")
    for name, (clock, cpu) in figures.items():
        ratios = [whole / part for whole, part in zip(figures["full ingestion"], (clock, cpu), strict=True)]
        print(f"{name:16} {clock:9.2f} {rows / clock:11,.0f} {ratios[0]:6.2f}x {cpu:9.2f} {ratios[1]:6.2f}x")


if __name__ == "__main__":
    main()
