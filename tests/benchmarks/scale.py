"""Benchmark (d): the seconds and the memory of generating and ingesting more and more rows.

    python tests/benchmarks/scale.py [--rows 1m --rows 10m ...]

Each size is generated, streamed, and ingested by a process of its own. Peak memory is what the process
held for itself at any time (RssAnon): mapped files and the page cache are not its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.synthetic_shape import parse_shape

SIZES = ("1m", "3m", "10m", "30m", "100m")
POLL_SECONDS = 0.05


def anonymous(process_id):
    """Return the memory in MB that a process holds for itself, 0 once it has ended."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def measure(command):
    """Run a command; return its seconds and its peak memory in MB."""
    started, peak = time.perf_counter(), 0
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while child.poll() is None:
        peak = max(peak, anonymous(child.pid))
        time.sleep(POLL_SECONDS)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, peak


def slotstore(*args):
    return [sys.executable, "-c", "from featurestore.cli import main; main()", *map(str, args)]


def run(name, folder):
    """Return rows, and seconds and MB of generating and of ingesting them."""
    rows = parse_shape(name).rows
    generated = measure(slotstore("generate", name, folder / "raw"))
    ingested = measure(slotstore("ingest", folder / "raw", "--store", folder / "store"))
    return rows, generated, ingested


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", action="append", help=f"default: {', '.join(SIZES)}")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    print(
        f"{'rows':>12} {'generate s':>11} {'MB':>6} {'ingest s':>9} {'us a row':>9} {'rows/s':>10} {'MB':>6}"
    )
    for name in args.rows or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows, generated, (seconds, peak) = run(name, Path(folder))
        cost = f"{seconds:9.1f} {seconds / rows * 1e6:9.2f} {rows / seconds:10,.0f} {peak:6,.0f}"
        print(f"{rows:12,} {generated[0]:11.1f} {generated[1]:6,.0f} {cost}", flush=True)


if __name__ == "__main__":
    main()
