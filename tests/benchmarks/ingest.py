"""Benchmark (a): ingestion against the row-by-row loop and the best plain scripts, whole processes.

    python tests/benchmarks/ingest.py [--rows ml-1m --rows 10m] [--repeat 3]

Each contender is a process of its own, timed from outside with its start-up, in turn, several
times; rows/s and peak memory are medians. Absolute figures depend on the machine, the ratios less.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.synthetic import generate
from pipelines.synthetic_shape import parse_shape

PLAIN = str(Path(__file__).with_name("plain_ingest.py"))
LOOP_ROWS = 1_000_000


def measure(command, rows):
    """Run a command; return its rows/s and its peak memory in MB."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return rows / seconds, usage.ru_maxrss / 1024


def contenders(source, rows, scratch):
    """Return {name: (command, rows it converts)}."""
    loop_rows = min(rows, LOOP_ROWS)
    plain = [sys.executable, PLAIN]
    ours = [sys.executable, "-m", "pipelines.ingest", str(source), "--store", str(scratch / "store")]
    loop = [*plain, "loop", str(source), str(scratch / "loop.parquet"), "--rows", str(loop_rows)]
    return {
        "slotstore ingest": (ours, rows),
        "the same, shuffled": ([*ours, "--join", "shuffle"], rows),
        "polars script": ([*plain, "polars", str(source), str(scratch / "polars.parquet")], rows),
        "pyarrow script": ([*plain, "pyarrow", str(source), str(scratch / "pyarrow")], rows),
        "row-by-row loop": (loop, loop_rows),
    }


def run(name, repeat, folder):
    shape = parse_shape(name)
    source = folder / f"source-{shape.rows}"
    generate(shape, source)
    figures = {}
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for contender, arguments in contenders(source, shape.rows, Path(scratch)).items():
                figures.setdefault(contender, []).append(measure(*arguments))
                shutil.rmtree(scratch, ignore_errors=True)
                Path(scratch).mkdir()
    return {
        name: [statistics.median(column) for column in zip(*runs, strict=True)]
        for name, runs in figures.items()
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", action="append", help="ml-1m, 10m, ...; may be given several times")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows or ["ml-1m", "10m"]:
            figures = run(name, args.repeat, Path(folder))
            ours = figures["slotstore ingest"][0]
            print(f"\n{name}, {os.cpu_count()} cores, median of {args.repeat}")
            print(f"{'':18} {'rows/s':>12} {'peak MB':>9} {'slotstore is':>13}")
            for contender, (rate, memory) in figures.items():
                print(f"{contender:18} {rate:12,.0f} {memory:9,.0f} {ours / rate:12.2f}x")


if __name__ == "__main__":
    main()
