"""What the benchmarks of loaders share: contenders in processes of their own, in turn, several times."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH_ROWS = 8192


def timed(work):
    """Return the rows/s of a function that returns how many rows it read."""
    started = time.perf_counter()
    rows = work()
    return rows / (time.perf_counter() - started)


def measure(script, *args, python=sys.executable, **options):
    """Run a contender in a process of its own; return what it prints, as JSON, and its peak memory in MB."""
    child = subprocess.Popen([python, script, *map(str, args)], stdout=subprocess.PIPE, **options)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, args))}")
    return json.loads(output), usage.ru_maxrss / 1024


def medians(contenders, repeat, run):
    """Run each contender ``repeat`` times, in turn; return the medians of its rows/s and its peak memory."""
    figures = {contender: [] for contender in contenders}
    for _ in range(repeat):
        for contender, runs in figures.items():
            runs.append(run(contender))
    return {
        name: [statistics.median(column) for column in zip(*runs, strict=True)]
        for name, runs in figures.items()
    }


def parser_of(description, contenders):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="10m", help="rows of the synthetic store to make: ml-1m, 10m, ...")
    parser.add_argument("--store", type=Path, help="measure this store instead")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--contender", choices=contenders, help="run this one alone and print its rows/s")
    return parser


def with_store(args, report):
    """Call ``report`` with the path of the store asked for, or of a synthetic one that is removed again."""
    if args.store:
        report(args.store)
        return
    with tempfile.TemporaryDirectory() as folder:
        ingest = ["-m", "pipelines.ingest", f"synthetic:{args.rows}", "--store", folder]
        subprocess.run([sys.executable, *ingest], check=True)
        report(Path(folder))
