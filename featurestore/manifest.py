"""The manifest: the JSON that makes a folder a snapshot, and the schemas of the Parquet files beside it."""

import dataclasses
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from featurestore.digest import Sums, content_digest
from featurestore.spec import FeatureSpec, parse_spec
from featurestore.splits import Splits

FORMAT_VERSION = 1
ID_LENGTH = 12
KINDS = ("examples", "vocabulary", "rejects")
COUNTS = ("read", "examples", "rejects")
PACKAGES = ("slotstore", "pyarrow", "duckdb", "xxhash", "numpy")
"""Whose versions a manifest tells, beside those of what read the source."""
KEYS = ("user_id", "movie_id")
"""What tells an example from all others of its snapshot."""

VOCABULARY_SCHEMA = pa.schema(
    [
        ("feature", pa.string()),
        ("value", pa.string()),
        ("count", pa.int64()),
        ("hashes", pa.list_(pa.uint32())),
    ]
)
REJECTS_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("byte_offset", pa.int64()),
        ("source_column", pa.string()),
        ("raw", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a snapshot.

    ``path`` is relative to the snapshot's folder; that of a shard which an earlier snapshot wrote begins
    with ``../<its id>/``.
    """

    path: str
    rows: int
    bytes: int
    digest: str

    @property
    def is_inherited(self) -> bool:
        """Whether an earlier snapshot wrote it."""
        return self.path.startswith("../")

    def seen_from_child(self, owner: str) -> "Shard":
        """Return this shard of the snapshot ``owner`` as another snapshot of the store names it."""
        path = posixpath.normpath(posixpath.join("..", owner, self.path))
        return dataclasses.replace(self, path=path)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What makes a folder a snapshot. Counts, shards and digests are checked against the files.

    ``lineage`` tells of the snapshots it grew from, oldest first: id, created, source and counts of each.
    ``parent`` is the last of them, or the snapshot whose rows it has with other slots.
    """

    created: str  # ISO 8601, UTC
    fingerprint: str
    spec: Mapping[str, Any]
    source: Mapping[str, Any]  # format, uri, files with bytes and digests
    columns: Mapping[str, str]  # name -> Arrow type, in order
    counts: Mapping[str, int]  # as `COUNTS`
    splits: Mapping[str, Any]
    shards: Mapping[str, Sequence[Shard]]
    versions: Mapping[str, str]
    sums: Sums  # of the examples' rows
    reject_sums: Sums  # of the rejects' rows
    content_digest: str = ""  # given, like the id, when it is published
    id: str = ""
    parent: str | None = None
    lineage: Sequence[Mapping[str, Any]] = ()
    format_version: int = FORMAT_VERSION

    @property
    def is_reslotted(self) -> bool:
        """Whether it has its parent's rows with other slots: an append's parent is in its lineage."""
        return self.parent is not None and self.parent not in [entry["snapshot"] for entry in self.lineage]

    def named(self) -> "Manifest":
        """Return the manifest with its content digest and its id, which is one of the rejects too."""
        digest = content_digest(self.fingerprint, self.counts["examples"], self.sums)
        rejects = self.counts["rejects"]
        whole = content_digest(digest, rejects, self.reject_sums) if rejects else digest
        return dataclasses.replace(self, content_digest=digest, id=whole[:ID_LENGTH])

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse a manifest; ValueError, KeyError or TypeError where it is none."""
        data = json.loads(text)
        shards = {kind: [Shard(**shard) for shard in data["shards"][kind]] for kind in KINDS}
        counts = {name: int(data["counts"][name]) for name in COUNTS}
        sums = {name: tuple(data[name]) for name in ("sums", "reject_sums")}
        return cls(**{**data, "shards": shards, "counts": counts, **sums})

    def load_spec(self) -> FeatureSpec:
        """Return the spec the snapshot was made with."""
        return parse_spec(self.spec, name="snapshot", where=f"the spec of snapshot {self.id}")

    def load_splits(self) -> Splits:
        """Return the splits as resolved when the snapshot was made."""
        spec, found = self.load_spec(), self.splits
        boundaries = tuple(found["boundaries"])
        return Splits(spec.split, spec.label, boundaries, found["rows"], found.get("dropped", 0))
