"""Snapshots on disk: paths, manifest, staged write, atomic publication, verification.

.. code-block:: text

    <store>/LATEST                       one line: the id of the newest snapshot
    <store>/catalog.duckdb               views of the newest snapshot, for any DuckDB client
    <store>/ingest.lock                  held (flock) while an ingestion runs
    <store>/staging/<run>/               an ingestion under way; never read
    <store>/snapshots/<id>/manifest.json a snapshot exists when this does
                           examples/part-00000-of-00008.parquet
                           vocabulary/part-00000-of-00006.parquet
                           rejects/part-00000-of-00008.parquet    only of shards that have any

The id is the start of the content digest, so ingesting the same data twice gives one snapshot.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.digest import add_sums, content_digest, file_digest, row_sums
from featurestore.errors import ArtifactError, NotFound, StoreBusy, VersionError, did_you_mean
from featurestore.spec import FeatureSpec, parse_spec
from featurestore.splits import Splits

FORMAT_VERSION = 1
ID_LENGTH = 12
KINDS = ("examples", "vocabulary", "rejects")

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
    """One Parquet file of a snapshot; ``path`` is relative to the snapshot."""

    path: str
    rows: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What makes a folder a snapshot. Counts, shards and digests are checked against the files."""

    id: str
    created: str  # ISO 8601, UTC
    fingerprint: str
    content_digest: str
    spec: Mapping[str, Any]
    source: Mapping[str, Any]  # format, uri, files with bytes and digests
    columns: Mapping[str, str]  # name -> Arrow type, in order
    counts: Mapping[str, int]  # read, examples, rejects
    splits: Mapping[str, Any]
    shards: Mapping[str, list[Shard]]
    versions: Mapping[str, str]
    parent: str | None = None
    format_version: int = FORMAT_VERSION
    sums: tuple[int, int] = field(default=(0, 0))

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse a manifest; ValueError, KeyError or TypeError where it is none."""
        data = json.loads(text)
        shards = {kind: [Shard(**shard) for shard in data["shards"][kind]] for kind in KINDS}
        return cls(**{**data, "shards": shards, "sums": tuple(data["sums"])})

    def load_spec(self) -> FeatureSpec:
        """Return the spec the snapshot was made with."""
        return parse_spec(self.spec, name="snapshot", where=f"the spec of snapshot {self.id}")

    def load_splits(self) -> Splits:
        """Return the splits as resolved when the snapshot was made."""
        rule = self.load_spec().split
        return Splits(rule, tuple(self.splits["boundaries"]), self.splits["rows"])


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    def files(self, kind: str) -> list[Path]:
        """Return the shards of ``kind``, in order."""
        return [self.folder / shard.path for shard in self.manifest.shards[kind]]

    def problems(self, *, deep: bool) -> list[str]:
        """Return what is wrong with the files: presence and size; if ``deep``, every byte and count."""
        shards = [shard for kind in KINDS for shard in self.manifest.shards[kind]]
        found = [problem for shard in shards if (problem := _shard_problem(self.folder, shard, deep=deep))]
        if deep and not found:
            found = _count_problems(self.manifest) + _content_problems(self)
        return found

    def check(self) -> Self:
        """Raise ArtifactError if a shard is missing or of another size; return self."""
        found = self.problems(deep=False)
        if found:
            listed = "\n".join(f"  - {problem}" for problem in found[:5])
            raise ArtifactError(
                f"snapshot {self.manifest.id} is damaged:\n{listed}\nIngest the source again to mend it."
            )
        return self


def _shard_problem(folder: Path, shard: Shard, *, deep: bool) -> str | None:
    path = folder / shard.path
    if not path.is_file():
        return f"{shard.path} is missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{shard.path} has {size:,} bytes, the manifest says {shard.bytes:,}"
    if deep and (digest := file_digest(path)) != shard.digest:
        return f"{shard.path} has digest {digest}, the manifest says {shard.digest}"
    return None


def _count_problems(manifest: Manifest) -> list[str]:
    counts = manifest.counts
    found = []
    if counts["read"] != counts["examples"] + counts["rejects"]:
        found.append(
            f"counts do not balance: {counts['read']:,} read, {counts['examples']:,} examples, {counts['rejects']:,} rejects"
        )
    for kind in ("examples", "rejects"):
        rows = sum(shard.rows for shard in manifest.shards[kind])
        if rows != counts[kind]:
            found.append(f"the shards of {kind} hold {rows:,} rows, the manifest counts {counts[kind]:,}")
    split_rows = sum(manifest.splits["rows"].values())
    if split_rows != counts["examples"]:
        found.append(f"the splits hold {split_rows:,} rows of {counts['examples']:,} examples")
    return found


def _content_problems(snapshot: Snapshot) -> list[str]:
    manifest, sums, rows = snapshot.manifest, (0, 0), 0
    for path in snapshot.files("examples"):
        table = pq.read_table(path)
        sums, rows = add_sums(sums, row_sums(table)), rows + table.num_rows
    digest = content_digest(manifest.fingerprint, rows, sums)
    if digest != manifest.content_digest:
        return [f"the examples have content digest {digest}, the manifest says {manifest.content_digest}"]
    fingerprint = manifest.load_spec().fingerprint
    if fingerprint != manifest.fingerprint:
        return [f"the spec has fingerprint {fingerprint}, the manifest says {manifest.fingerprint}"]
    return []


def list_snapshots(store: Path) -> list[Snapshot]:
    """Return the store's snapshots, oldest first."""
    found = [_read(folder) for folder in store.glob("snapshots/*") if (folder / "manifest.json").is_file()]
    return sorted(found, key=lambda snapshot: (snapshot.manifest.created, snapshot.manifest.id))


def open_snapshot(store: Path, snapshot_id: str | None = None) -> Snapshot:
    """Open a snapshot by its id or a unique start of it, the newest without one.

    Raises:
        NotFound: no such store or snapshot.
        VersionError: it was written by another format version.
        ArtifactError: its manifest or a shard is damaged.
    """
    wanted = snapshot_id or _latest(store)
    folders = sorted(store.glob("snapshots/*"))
    matches = [folder for folder in folders if folder.name == wanted] or [
        folder for folder in folders if wanted and folder.name.startswith(wanted)
    ]
    if len(matches) != 1:
        known = [folder.name for folder in folders]
        raise NotFound(
            f"no snapshot {wanted!r} in {store}{did_you_mean(wanted, known)}: `slotstore snapshots list` shows them"
        )
    return _read(matches[0]).check()


def _latest(store: Path) -> str:
    try:
        return (store / "LATEST").read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise NotFound(
            f"no snapshot in {store}: make one with `slotstore ingest SOURCE --store {store}`"
        ) from error


def _read(folder: Path) -> Snapshot:
    path = folder / "manifest.json"
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text)["format_version"]
        if version != FORMAT_VERSION:
            raise VersionError(
                f"{path} has format version {version}, this slotstore reads {FORMAT_VERSION}: "
                "ingest the source again, or use the slotstore that wrote it"
            )
        return Snapshot(folder, Manifest.from_json(text))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is no manifest ({error!r}): ingest the source again") from error


@dataclass(frozen=True)
class Staging:
    """A folder inside the store that becomes a snapshot when published."""

    store: Path
    folder: Path

    def publish(self, manifest: Manifest) -> Snapshot:
        """Make the staged files the newest snapshot, all at once.

        The rename of the folder is the moment at which the snapshot exists. Where an intact snapshot
        of the same content is there already, that one becomes the newest; a damaged one is replaced.
        """
        _write_durably(self.folder / "manifest.json", manifest.to_json())
        target = self.store / "snapshots" / manifest.id
        target.parent.mkdir(exist_ok=True)
        if not _is_intact(target):
            if target.exists():
                target.rename(self.folder.with_name(f"damaged-{uuid.uuid4().hex}"))
            self.folder.rename(target)
        _write_durably(self.store / "LATEST", manifest.id + "\n")
        return open_snapshot(self.store, manifest.id)


def _is_intact(folder: Path) -> bool:
    try:
        return not _read(folder).problems(deep=True)
    except ArtifactError:
        return False


@contextlib.contextmanager
def staging(store: Path) -> Iterator[Staging]:
    """Lock the store for one ingestion and yield its staging folder, removed when done.

    What a killed ingestion left behind is removed first: whoever holds the lock is the only one at work.

    Raises:
        StoreBusy: another process is ingesting into the store.
        ArtifactError: the store cannot be written.
    """
    try:
        (store / "staging").mkdir(parents=True, exist_ok=True)
        lock = (store / "ingest.lock").open("w")
    except OSError as error:
        raise ArtifactError(f"the store {store} cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusy(
                f"another ingestion into {store} is running: wait for it, or use another --store"
            ) from error
        for left in (store / "staging").iterdir():
            shutil.rmtree(left, ignore_errors=True)
        folder = store / "staging" / uuid.uuid4().hex
        folder.mkdir()
        try:
            yield Staging(store, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _write_durably(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
