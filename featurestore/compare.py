"""What changed from one snapshot of a store to another: spec, rows, values, splits, shards.

A row's key is (user_id, movie_id), which is unique in a snapshot. Shards that both snapshots list are not
read, for their rows are the same: comparing an append with its parent costs what was appended.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from featurestore.database import Database, identifier, parquet
from featurestore.errors import ArtifactError
from featurestore.manifest import KEYS, KINDS, Manifest, Shard
from featurestore.paths import AnyPath
from featurestore.snapshot import Snapshot
from featurestore.spec import SPLITS, FeatureSpec

SHOWN = 5
"""Examples of each kind of change: those with the lowest keys, as text."""
_MISSING = "(none)"


@dataclass(frozen=True)
class Change:
    """One thing that has another value in the second snapshot; ``(none)`` where it is not there."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Rows:
    """Examples by what became of them.

    columns: those compared. uncompared: those that only one snapshot has, or has with another type, and the
    slots where the specs differ. changed_in: changed rows by the column that changed. shown: by kind, the
    first few: their keys with the values, or with [old, new] of what changed.
    """

    kept: int
    added: int
    removed: int
    changed: int
    columns: Sequence[str]
    uncompared: Sequence[str]
    changed_in: Mapping[str, int]
    shown: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Values:
    """Distinct values of a feature: in each snapshot, only in the second, only in the first.

    recounted: in both, with another count. shown: the first few of the new and of the gone.
    """

    feature: str
    old: int
    new: int
    added: int
    gone: int
    recounted: int
    shown_added: Sequence[str]
    shown_gone: Sequence[str]


@dataclass(frozen=True)
class Shards:
    """Files of one kind and their bytes: in both snapshots, only in the first, only in the second."""

    kind: str
    shared: int
    shared_bytes: int
    only_old: int
    only_old_bytes: int
    only_new: int
    only_new_bytes: int


@dataclass(frozen=True)
class Comparison:
    """What changed from ``old`` to ``new``."""

    old: Manifest
    new: Manifest
    spec: Sequence[Change]
    rows: Rows
    values: Sequence[Values]
    splits: Sequence[Change]
    shards: Sequence[Shards]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; of the manifests what tells the snapshots apart."""
        data = dataclasses.asdict(self)
        told = ("id", "created", "parent", "fingerprint", "counts", "source")
        return data | {name: {key: data[name][key] for key in told} for name in ("old", "new")}


def compare(old: Snapshot, new: Snapshot) -> Comparison:
    """Compare two snapshots of one store.

    Raises:
        ArtifactError: a shard cannot be read.
    """
    one, other = old.manifest, new.manifest
    shared = {kind: _shared(one.shards[kind], other.shards[kind]) for kind in KINDS}
    with contextlib.closing(Database(explain=_blame(old, new))) as database:
        database.mount(old.folder)
        return Comparison(
            old=one,
            new=other,
            spec=_changes(_flat(one.load_spec()), _flat(other.load_spec())),
            rows=_compare_rows(database, old, new, shared["examples"]),
            values=_compare_values(database, old, new),
            splits=_changes(_split_facts(one), _split_facts(other)),
            shards=[_compare_shards(kind, one, other, shared[kind]) for kind in KINDS],
        )


def _blame(old: Snapshot, new: Snapshot) -> Callable[[str], NoReturn]:
    def explain(message: str) -> NoReturn:
        for snapshot in (old, new):
            snapshot.check()
        ids = f"{old.manifest.id} and {new.manifest.id}"
        raise ArtifactError(
            f"snapshots {ids} cannot be compared: {message}\n"
            "`slotstore snapshots verify` says what is damaged."
        )

    return explain


# Spec and splits


def _flat(spec: FeatureSpec) -> dict[str, Any]:
    """Return the canonical form with one key for each thing that can change; features go by name."""
    data = spec.to_dict()
    flat = {"fingerprint": spec.fingerprint, "name": data["name"]}
    for section in ("table", "label", "split"):
        flat |= {f"{section}.{key}": value for key, value in data[section].items()}
    flat["features"] = [feature["name"] for feature in data["features"]]
    for feature in data["features"]:
        name = feature.pop("name")
        flat |= {f"features.{name}.{key}": value for key, value in feature.items()}
    return flat


def _split_facts(manifest: Manifest) -> dict[str, Any]:
    splits = manifest.load_splits()
    rows = {f"{split}.rows": splits.rows.get(split, 0) for split in SPLITS}
    starts = zip(SPLITS[1:], splits.boundaries, strict=False)
    found = {"kind": splits.rule.kind, **rows, "dropped.rows": splits.dropped}
    return found | {f"{split}.from": start for split, start in starts}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    pairs = [(key, old.get(key, _MISSING), new.get(key, _MISSING)) for key in dict.fromkeys([*old, *new])]
    return [Change(key, one, other) for key, one, other in pairs if one != other]


# Shards


def _shared(old: Sequence[Shard], new: Sequence[Shard]) -> Counter[str]:
    """Return how many shards both list, by digest."""
    return Counter(shard.digest for shard in old) & Counter(shard.digest for shard in new)


def _own(shards: Sequence[Shard], shared: Counter[str]) -> list[Shard]:
    """Return the shards that the other snapshot does not list."""
    left = Counter(shared)
    own = []
    for shard in shards:
        if left[shard.digest]:
            left[shard.digest] -= 1
        else:
            own.append(shard)
    return own


def _compare_shards(kind: str, old: Manifest, new: Manifest, shared: Counter[str]) -> Shards:
    gone, added = _own(old.shards[kind], shared), _own(new.shards[kind], shared)
    all_bytes = sum(shard.bytes for shard in new.shards[kind])
    added_bytes = sum(shard.bytes for shard in added)
    return Shards(
        kind=kind,
        shared=shared.total(),
        shared_bytes=all_bytes - added_bytes,
        only_old=len(gone),
        only_old_bytes=sum(shard.bytes for shard in gone),
        only_new=len(added),
        only_new_bytes=added_bytes,
    )


# Rows


def _compare_rows(database: Database, old: Snapshot, new: Snapshot, shared: Counter[str]) -> Rows:
    own = [_own(snapshot.manifest.shards["examples"], shared) for snapshot in (old, new)]
    files = [
        [snapshot.folder / shard.path for shard in shards]
        for snapshot, shards in zip((old, new), own, strict=True)
    ]
    columns, uncompared = _compared_columns(old.manifest, new.manifest)
    found: dict[str, tuple[int, dict[str, int], list[dict[str, Any]]]] = {}
    if any(files):
        for kind, count, examples, *counts in database.execute(_rows_query(files[0], files[1], columns)):
            found[kind] = count, dict(zip(columns, counts, strict=True)), examples
    count = {kind: found[kind][0] if kind in found else 0 for kind in ("same", "added", "removed", "changed")}
    slots = new.manifest.load_spec().slot_columns  # compared only where both have the same
    changed_in = found["changed"][1] if "changed" in found else {}
    return Rows(
        kept=new.manifest.counts["examples"] - sum(shard.rows for shard in own[1]) + count["same"],
        added=count["added"],
        removed=count["removed"],
        changed=count["changed"],
        columns=columns,
        uncompared=uncompared,
        changed_in={column: changes for column, changes in changed_in.items() if changes},
        shown={
            kind: [_shown(kind, example, slots) for example in found[kind][2]] if kind in found else []
            for kind in ("added", "removed", "changed")
        },
    )


def _compared_columns(old: Manifest, new: Manifest) -> tuple[list[str], list[str]]:
    """Return the columns beside the keys that both have with one type, and all others of either."""
    left_out: set[str] = set()
    if old.fingerprint != new.fingerprint:
        left_out = {*old.load_spec().slot_columns, *new.load_spec().slot_columns}
    names = [name for name in dict.fromkeys([*old.columns, *new.columns]) if name not in KEYS]
    same = [name for name in names if old.columns.get(name) == new.columns.get(name) and name not in left_out]
    return same, [name for name in names if name not in same]


def _rows_query(old: Sequence[AnyPath], new: Sequence[AnyPath], columns: Sequence[str]) -> str:
    """Return SQL for (kind, rows, first examples, rows that differ in each column), a row for each kind.

    An example is {key: [user, movie], old: {column: value}, new: the same}.
    """
    names = [identifier(name) for name in columns]
    keys = ", ".join(map(identifier, KEYS))
    fields = "{" + ", ".join(f"{name}: {name}" for name in names or map(identifier, KEYS)) + "}"
    differ = "".join(f", count(*) FILTER (old.{name} IS DISTINCT FROM new.{name})" for name in names)
    return f"""
        SELECT kind, count(*), min_by({{'key': key, 'old': old, 'new': new}}, key, {SHOWN}){differ}
        FROM (
            SELECT [{keys}] AS key, old, new, CASE
                WHEN old IS NULL THEN 'added' WHEN new IS NULL THEN 'removed'
                WHEN old IS DISTINCT FROM new THEN 'changed' ELSE 'same' END AS kind
            FROM (SELECT {keys}, {fields} AS old FROM {_source(old, new)})
            FULL JOIN (SELECT {keys}, {fields} AS new FROM {_source(new, old)}) USING ({keys})
        ) GROUP BY kind"""


def _source(files: Sequence[AnyPath], others: Sequence[AnyPath]) -> str:
    """Return SQL for the rows of ``files``; where there are none, for none with the columns of ``others``."""
    return parquet(files) if files else f"{parquet(others)} WHERE false"


def _shown(kind: str, example: Mapping[str, Any], slots: Sequence[str]) -> dict[str, Any]:
    """Return an example for a person: slots only where nothing else differs, for they follow from values."""
    keys = dict(zip(KEYS, example["key"], strict=True))
    old, new = example["old"], example["new"]
    if kind == "changed":
        row = {name: [old[name], new[name]] for name in old if old[name] != new[name]}
    else:
        row = new if kind == "added" else old
    return keys | ({name: value for name, value in row.items() if name not in slots} or row)


# Values


def _compare_values(database: Database, old: Snapshot, new: Snapshot) -> list[Values]:
    files = [snapshot.files("vocabulary") for snapshot in (old, new)]
    if not any(files):
        return []
    rows = database.execute(_values_query(files[0], files[1]))
    found = {feature: Values(feature, *facts) for feature, *facts in rows}
    specs = [snapshot.manifest.load_spec() for snapshot in (old, new)]
    names = dict.fromkeys(feature.name for spec in specs for feature in spec.features)
    return [found.get(name, Values(name, 0, 0, 0, 0, 0, [], [])) for name in names]


def _values_query(old: Sequence[AnyPath], new: Sequence[AnyPath]) -> str:
    """Return SQL for the fields of `Values`, a row for each feature."""

    def side(name: str, source: str) -> str:
        return f'(SELECT feature, value, "count" AS {name} FROM {source})'

    return f"""
        SELECT feature, count(old), count(new), count(*) FILTER (old IS NULL),
            count(*) FILTER (new IS NULL), count(*) FILTER (old <> new),
            coalesce(min(value, {SHOWN}) FILTER (old IS NULL), []),
            coalesce(min(value, {SHOWN}) FILTER (new IS NULL), [])
        FROM {side("old", _source(old, new))} FULL JOIN {side("new", _source(new, old))}
        USING (feature, value) GROUP BY feature"""
