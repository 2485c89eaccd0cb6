"""Benchmark: the collisions of a million values, by the SQL macros, by numpy and by plain dictionaries.

    python tests/benchmarks/collisions.py [--values 1000000] [--num-slots 1048576] [--repeat 3]
    python tests/benchmarks/collisions.py --values 20000 --num-slots 32768 --repeat 1        (some seconds)

The values are spread over six features with one or two lookups, hashed by xxh32, their counts Zipf: a
vocabulary as an ingestion writes it, in Parquet. All three read it and count what `collisions(n)` does: by
feature the values, and their examples, that share one or all of their slots with values of the same
feature, of others, of any; the answers must be equal. numpy holds a counter for each slot and feature,
which a large table does not allow. Then the other macros, and all of `slotstore collisions`. Seconds of the
clock and, in brackets, of all cores; medians.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.collisions import collisions
from featurestore.hashing import hash_values
from featurestore.manifest import VOCABULARY_SCHEMA
from featurestore.store import FeatureStore

PARTS = {"user_id": (0.5, 2), "movie_id": (0.3, 2), "zip": (0.15, 1), "title": (0.049, 1), "age": (0.0009, 1)}
PARTS["gender"] = (0.0001, 1)
"""Each feature's part of the values, and its lookups."""
SCOPES = ("any", "others", "same")
MACROS = (
    "lookup_collisions",
    "feature_pairs",
    "inseparable",
    "slot_load",
    "slot_histogram",
    "value_collisions",
)


def make_store(folder):
    """Ingest a few made-up ratings under a spec with the features: a store for the vocabulary to hang in."""
    lines = ["[table]", "num_slots = 1000", "dim = 4"]
    for feature, (_, lookups) in PARTS.items():
        lines += ["[[features]]", f'name = "{feature}"', f"lookups = {lookups}"]
    lines += ["[label]", 'column = "rating"', "[split]", 'kind = "random"', "fractions = [0.8, 0.2]"]
    spec = folder / "six.toml"
    spec.write_text("\n".join(lines))
    ingest = [
        "-m",
        "pipelines.ingest",
        "synthetic:2000",
        "--store",
        str(folder / "store"),
        "--spec",
        str(spec),
    ]
    subprocess.run([sys.executable, *ingest], check=True, stdout=subprocess.DEVNULL)
    return folder / "store"


def write_vocabulary(spec, values, folder):
    """Write a shard for each feature; return their paths."""
    paths = []
    for feature in spec.features:
        number = max(int(values * PARTS[feature.name][0]), 2)
        texts = pa.array([f"{feature.name[0]}{value}" for value in range(number)])
        counts = np.maximum(values / np.arange(1, number + 1), 1).astype(np.int64)
        hashes = hash_values(texts, feature.seeds)  # (k, n)
        offsets = np.arange(0, hashes.size + 1, len(feature.seeds), dtype=np.int32)
        flat = pa.array(np.ascontiguousarray(hashes.T).reshape(-1))
        columns = [[feature.name] * number, texts, counts, pa.ListArray.from_arrays(pa.array(offsets), flat)]
        paths.append(folder / f"{feature.name}.parquet")
        pq.write_table(pa.table(columns, schema=VOCABULARY_SCHEMA), paths[-1])
    return paths


def by_sql(store, _, num_slots):
    rows = store.sql("FROM collisions($n) ORDER BY feature, sharing_with", {"n": num_slots}).to_pylist()
    return [tuple(row.values()) for row in rows]


def by_numpy(store, paths, num_slots):
    """A counter for each slot and feature; a value's second lookup in the same slot is masked."""
    slots, fresh, counts = {}, {}, {}
    for feature, path in zip(store.spec.features, paths, strict=True):
        table = pq.read_table(path, columns=["count", "hashes"])
        flat = table["hashes"].combine_chunks().flatten().to_numpy()
        taken = np.sort(flat.reshape(-1, len(feature.seeds)) % num_slots, axis=1)
        slots[feature.name], counts[feature.name] = taken, table["count"].to_numpy()
        fresh[feature.name] = np.diff(taken, axis=1, prepend=-1) != 0
    load = {name: np.bincount(slots[name][fresh[name]], minlength=num_slots) for name in slots}
    everyone = sum(load.values())
    found = []
    for name in sorted(slots):
        same, every = load[name][slots[name]], everyone[slots[name]]
        shared = {"any": every > 1, "others": every > same, "same": same > 1}
        for scope in SCOPES:
            some = (shared[scope] & fresh[name]).any(axis=1)
            whole = (shared[scope] | ~fresh[name]).all(axis=1)
            sums = [(mask.sum(), counts[name][mask].sum()) for mask in (some, whole)]
            found.append((name, scope, len(some), counts[name].sum(), *sums[0], *sums[1]))
    return found


def by_dictionaries(_, paths, num_slots):
    """What anybody would write."""
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    same, everyone = Counter(), Counter()
    for row in rows:
        row["slots"] = {number % num_slots for number in row["hashes"]}
        for slot in row["slots"]:
            same[row["feature"], slot] += 1
            everyone[slot] += 1
    found = {}
    for row in rows:
        loads = [(same[row["feature"], slot], everyone[slot]) for slot in row["slots"]]
        shared = {
            "any": [every > 1 for _, every in loads],
            "others": [every > mine for mine, every in loads],
            "same": [mine > 1 for mine, _ in loads],
        }
        for scope in SCOPES:
            sums = found.setdefault((row["feature"], scope), [0] * 6)
            for place, counted in enumerate((True, any(shared[scope]), all(shared[scope]))):
                sums[2 * place] += counted
                sums[2 * place + 1] += counted * row["count"]
    return [(*key, *found[key]) for key in sorted(found)]


def timed(repeat, function, *args):
    """Return the medians of the seconds, of the clock and of all cores, and what came out."""
    clock, cores = [], []
    for _ in range(repeat):
        started, used = time.perf_counter(), time.process_time()
        result = function(*args)
        clock.append(time.perf_counter() - started)
        cores.append(time.process_time() - used)
    return statistics.median(clock), statistics.median(cores), result


def run(args, folder):
    with FeatureStore(make_store(folder)) as store:
        paths = write_vocabulary(store.spec, args.values, folder)
        listed = ", ".join(f"'{path}'" for path in paths)
        store.sql(f"CREATE OR REPLACE VIEW vocabulary AS FROM read_parquet([{listed}])")
        values, uses = store.sql("SELECT count(*), sum(len(hashes)) FROM vocabulary").to_pylist()[0].values()
        print(f"{values:,} values, {uses:,} uses, {args.num_slots:,} slots; median of {args.repeat}")
        contenders = {"collisions(n)": by_sql, "numpy": by_numpy, "dictionaries": by_dictionaries}
        found = {
            name: timed(args.repeat, function, store, paths, args.num_slots)
            for name, function in contenders.items()
        }
        assert len({repr([tuple(map(str, row)) for row in rows]) for *_, rows in found.values()}) == 1
        ours = found["collisions(n)"][0]
        for name, (clock, cores, _) in found.items():
            show(name, clock, cores, f"{clock / ours:6.2f}x the time of collisions(n)")
        for macro in MACROS:
            show(f"{macro}(n)", *timed(args.repeat, store.sql, f"FROM {macro}({args.num_slots})")[:2])
        show("slotstore collisions", *timed(args.repeat, collisions, store, args.num_slots)[:2])


def show(name, clock, cores, told=""):
    print(f"{name:24} {clock:8.2f} s {f'({cores:.2f})':>9}  {told}".rstrip(), flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--num-slots", type=int, default=1 << 20)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))


if __name__ == "__main__":
    main()
