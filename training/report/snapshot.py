"""Of a page: what a snapshot is, where it comes from, and what could not become an example."""

from collections.abc import Iterator

from featurestore.manifest import COUNTS, Manifest
from featurestore.plans import FLOAT_BYTES
from featurestore.store import FeatureStore
from featurestore.wording import label_text, rule_text
from training.report.parts import Facts, Part, Section, Table, Words

REASONS, SHOWN = 20, 10
"""Kinds of rejects, and rejects, that a page shows."""


def snapshot_section(store: FeatureStore) -> Section:
    """Return what the manifest tells."""
    return Section("snapshot", "Snapshot", list(_snapshot_parts(store)))


def _snapshot_parts(store: FeatureStore) -> Iterator[Part]:
    manifest, table = store.snapshot.manifest, store.spec.table
    size = table.num_slots * table.dim * FLOAT_BYTES
    stored = sum(shard.bytes for shards in manifest.shards.values() for shard in shards)
    read, examples, rejects = (manifest.counts[name] for name in COUNTS)
    yield Facts(
        {
            "snapshot": manifest.id,
            "made": manifest.created,
            "source": f"{manifest.source['uri']} ({manifest.source['format']})",
            "records": f"{read:,} read = {examples:,} examples + {rejects:,} rejects",
            "size": f"{stored:,} bytes; shards of examples: {len(manifest.shards['examples']):,}",
            "table": f"{table}: {size:,} bytes",
            "label": label_text(store.spec.label),
            "splits": rule_text(store.splits),
            "spec": f"{store.spec.name}, fingerprint {manifest.fingerprint}",
            "content digest": manifest.content_digest,
            **({"parent": _parent(manifest)} if manifest.parent else {}),
            "written by": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        }
    )
    files = [(each["name"], each["bytes"], each["digest"]) for each in manifest.source["files"]]
    yield Table("Files of the source", ["file", "bytes", "digest"], files)
    if manifest.lineage:
        yield Table("Grown from", ["snapshot", "made", "examples", "rejects"], _lineage(manifest))


def _parent(manifest: Manifest) -> str:
    how = "the same rows, with slots of another table" if manifest.is_reslotted else "appended to"
    return f"{manifest.parent}: {how}"


def _lineage(manifest: Manifest) -> list[tuple[object, ...]]:
    return [
        (each["snapshot"], each["created"], each["counts"]["examples"], each["counts"]["rejects"])
        for each in manifest.lineage
    ]


def rejects_section(store: FeatureStore) -> Section:
    """Return the records that could not become examples: how many of each kind, and the first of them."""
    total = store.snapshot.manifest.counts["rejects"]
    return Section("rejects", "Rejects", list(_rejects(store, total)) if total else [Words([_NO_REJECTS])])


_NO_REJECTS = "None: every record of the source became an example."


def _rejects(store: FeatureStore, total: int) -> Iterator[Part]:
    read = store.snapshot.manifest.counts["read"]
    yield Words([f"{total:,} of {read:,} records ({total / read:.2%}) could not become examples."])
    kinds = """
        SELECT file, source_column, reason, count(*) AS n FROM rejects GROUP BY ALL
        ORDER BY n DESC, file, source_column, reason LIMIT $limit"""
    yield Table(
        f"Rejects by reason, the {REASONS} most frequent",
        ["file", "column", "reason", "rejects"],
        _rows(store, kinds, REASONS),
    )
    first = """
        SELECT file, byte_offset, source_column, reason, raw FROM rejects
        ORDER BY file, byte_offset, source_column LIMIT $limit"""
    yield Table(
        f"The first {SHOWN} rejects",
        ["file", "byte", "column", "reason", "record"],
        _rows(store, first, SHOWN),
    )


def _rows(store: FeatureStore, query: str, limit: int) -> list[tuple[object, ...]]:
    return list(zip(*store.sql(query, {"limit": limit}).to_pydict().values(), strict=True))
