"""Small stores made without a pipeline: any table, any split, cut into any number of shards."""

import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.database import resolve_splits
from featurestore.digest import add_sums, file_digest, row_sums
from featurestore.encode import encode
from featurestore.hashing import hash_values
from featurestore.manifest import REJECTS_SCHEMA, VOCABULARY_SCHEMA, Manifest, Shard
from featurestore.snapshot import open_snapshot
from featurestore.spec import parse_spec
from featurestore.staging import staging

TIME_SPLIT = {"kind": "time", "fractions": [0.8, 0.1, 0.1]}


def _spec(split=None, features=None, label=None):
    features = features or [{"name": "user_id", "lookups": 2}, {"name": "movie_id", "seeds": [2, 3]}]
    data = {
        "table": {"num_slots": 97, "dim": 4},
        "features": features,
        "label": label or {},
        "split": split or TIME_SPLIT,
    }
    return parse_spec(data, "made", "a test's spec")


def _table(rows, users=7, movies=500, seed=0, span=1_000):
    """Ratings of distinct (user, movie) pairs at times with ties."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice(users * movies, rows, replace=False)
    return pa.table(
        {
            "user_id": pa.array((pairs % users).astype(str)).dictionary_encode(),
            "movie_id": pa.array((pairs // users).astype(str)).dictionary_encode(),
            "rating": pa.array(rng.integers(1, 6, rows), pa.float32()),
            "timestamp": pa.array(978_300_000 + rng.integers(0, span, rows), pa.int64()),
        }
    )


def _cut(table, count):
    edges = [table.num_rows * number // count for number in range(count + 1)]
    return [table.slice(low, high - low) for low, high in itertools.pairwise(edges)]


def _vocabulary(table, feature):
    counts = table.column(feature.column).cast(pa.string()).fill_null("").value_counts()
    values = counts.field("values")
    hashes = hash_values(values, feature.seeds)
    columns = [[feature.name] * len(values), values, counts.field("counts"), hashes.T.tolist()]
    return pa.table(columns, schema=VOCABULARY_SCHEMA)


def _write(folder, kind, tables):
    shards = []
    for number, table in enumerate(tables):
        path = folder / kind / f"part-{number:05d}-of-{len(tables):05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
        shards.append(
            Shard(str(path.relative_to(folder)), table.num_rows, path.stat().st_size, file_digest(path))
        )
    return shards


def _publish(store, table, spec=None, shards=3, rejects=(), **changes):
    """Publish ``table`` as `pipelines.publish` does and return the snapshot."""
    spec = spec or _spec()
    encoded = encode(table, spec)
    rejected = [pa.Table.from_pylist(list(rejects), REJECTS_SCHEMA)] if rejects else []
    with staging(Path(store)) as stage:
        examples = _write(stage.folder, "examples", _cut(encoded, shards))
        sums = functools.reduce(add_sums, map(row_sums, _cut(encoded, shards)), (0, 0))
        splits = resolve_splits([stage.folder / shard.path for shard in examples], spec.split, spec.label)
        facts = {
            "created": "2001-01-01T00:00:00.000+00:00",
            "fingerprint": spec.fingerprint,
            "sums": sums,
            "reject_sums": functools.reduce(add_sums, map(row_sums, rejected), (0, 0)),
            "spec": spec.to_dict(),
            "source": {"format": "made", "uri": "a test", "files": []},
            "columns": {field.name: str(field.type) for field in encoded.schema},
            "counts": {
                "read": table.num_rows + len(rejects),
                "examples": table.num_rows,
                "rejects": len(rejects),
            },
            "splits": splits.to_dict(),
            "shards": {
                "examples": examples,
                "vocabulary": _write(
                    stage.folder, "vocabulary", [_vocabulary(table, f) for f in spec.features]
                ),
                "rejects": _write(stage.folder, "rejects", rejected),
            },
            "versions": {},
        }
        return stage.publish(Manifest(**{**facts, **changes}))


def _append(store, table, parent=None, rejects=(), **changes):
    """Publish ``table`` as a child of ``parent``, the newest by default, whose shards stay where they are."""
    parent = open_snapshot(Path(store), parent)
    old, spec = parent.manifest, parent.manifest.load_spec()
    encoded = encode(table, spec)
    rejected = [pa.Table.from_pylist(list(rejects), REJECTS_SCHEMA)] if rejects else []
    inherited = {
        kind: [shard.seen_from_child(old.id) for shard in old.shards[kind]]
        for kind in ("examples", "rejects")
    }
    with staging(Path(store)) as stage:
        written = {
            kind: _write(stage.folder, kind, tables)
            for kind, tables in (("examples", [encoded]), ("rejects", rejected))
        }
        files = parent.files("examples") + [stage.folder / shard.path for shard in written["examples"]]
        whole = pa.concat_tables([pq.read_table(path) for path in files], promote_options="permissive")
        vocabulary = [_vocabulary(whole, feature) for feature in spec.features]
        counts = {
            "examples": old.counts["examples"] + table.num_rows,
            "rejects": old.counts["rejects"] + len(rejects),
        }
        facts = {
            "created": f"{int(old.created[:4]) + 1}{old.created[4:]}",
            "parent": old.id,
            "sums": add_sums(old.sums, row_sums(encoded)),
            "reject_sums": functools.reduce(add_sums, map(row_sums, rejected), old.reject_sums),
            "counts": {"read": sum(counts.values()), **counts},
            "splits": resolve_splits(files, spec.split, spec.label).to_dict(),
            "shards": {
                "examples": inherited["examples"] + written["examples"],
                "vocabulary": _write(stage.folder, "vocabulary", vocabulary),
                "rejects": inherited["rejects"] + written["rejects"],
            },
        }
        return stage.publish(dataclasses.replace(old, **{**facts, **changes}))


@pytest.fixture(scope="session")
def make_spec():
    """A function (split, features, label) -> FeatureSpec."""
    return _spec


@pytest.fixture(scope="session")
def make_table():
    """A function (rows, ...) -> table of ratings."""
    return _table


@pytest.fixture(scope="session")
def publish():
    """A function (store, table, spec, shards, rejects, **manifest fields) -> Snapshot."""
    return _publish


@pytest.fixture(scope="session")
def append():
    """A function (store, table, parent id, rejects, **manifest fields) -> Snapshot that grew from it."""
    return _append


@pytest.fixture
def store(tmp_path) -> Path:
    """A store of 300 ratings in three shards, to be broken by tests."""
    _publish(tmp_path / "store", _table(300))
    return tmp_path / "store"
