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

The id is a digest of the examples and the rejects, so ingesting the same data twice gives one snapshot.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.digest import Sums, add_sums, content_digest, file_digest, row_sums
from featurestore.errors import ArtifactError, NotFound, SpecError, StoreBusy, VersionError, did_you_mean
from featurestore.spec import FeatureSpec, parse_spec
from featurestore.splits import Splits

FORMAT_VERSION = 1
ID_LENGTH = 12
SHOWN_PROBLEMS = 5
KINDS = ("examples", "vocabulary", "rejects")
COUNTS = ("read", "examples", "rejects")

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


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What makes a folder a snapshot. Counts, shards and digests are checked against the files."""

    id: str = ""  # given when it is published
    created: str  # ISO 8601, UTC
    fingerprint: str
    content_digest: str
    spec: Mapping[str, Any]
    source: Mapping[str, Any]  # format, uri, files with bytes and digests
    columns: Mapping[str, str]  # name -> Arrow type, in order
    counts: Mapping[str, int]  # as `COUNTS`
    splits: Mapping[str, Any]
    shards: Mapping[str, list[Shard]]
    versions: Mapping[str, str]
    parent: str | None = None
    format_version: int = FORMAT_VERSION
    sums: Sums  # of the examples' rows

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse a manifest; ValueError, KeyError or TypeError where it is none."""
        data = json.loads(text)
        shards = {kind: [Shard(**shard) for shard in data["shards"][kind]] for kind in KINDS}
        counts = {name: int(data["counts"][name]) for name in COUNTS}
        return cls(**{**data, "shards": shards, "counts": counts, "sums": tuple(data["sums"])})

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
            found = [*_count_problems(self.manifest), *_content_problems(self)]
        return found

    def check(self, *, deep: bool = False) -> Self:
        """Raise ArtifactError with the first few `problems` if there are any; return self."""
        found = self.problems(deep=deep)
        if not found:
            return self
        more = [f"and {len(found) - SHOWN_PROBLEMS} more"] if len(found) > SHOWN_PROBLEMS else []
        listed = "\n".join(f"  - {problem}" for problem in [*found[:SHOWN_PROBLEMS], *more])
        raise ArtifactError(
            f"snapshot {self.manifest.id} is damaged:\n{listed}\nIngest the source again to mend it."
        )


def _shard_problem(folder: Path, shard: Shard, *, deep: bool) -> str | None:
    path = folder / shard.path
    if not path.is_file():
        return f"{shard.path} is missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{shard.path} has {size:,} bytes, the manifest says {shard.bytes:,}"
    if deep and (digest := file_digest(path)) != shard.digest:
        return f"{shard.path} has digest {digest}, the manifest says {shard.digest}"
    if deep and (rows := pq.read_metadata(path).num_rows) != shard.rows:
        return f"{shard.path} has {rows:,} rows, the manifest says {shard.rows:,}"
    return None


def _count_problems(manifest: Manifest) -> Iterator[str]:
    read, examples, rejects = (manifest.counts[name] for name in COUNTS)
    if read != examples + rejects:
        yield f"counts do not balance: {read:,} read, {examples:,} examples, {rejects:,} rejects"
    for kind in ("examples", "rejects"):
        rows = sum(shard.rows for shard in manifest.shards[kind])
        if rows != manifest.counts[kind]:
            yield f"the shards of {kind} hold {rows:,} rows, the manifest counts {manifest.counts[kind]:,}"
    split_rows = sum(manifest.splits["rows"].values())
    if split_rows != examples:
        yield f"the splits hold {split_rows:,} rows of {examples:,} examples"


def _content_problems(snapshot: Snapshot) -> Iterator[str]:
    manifest = snapshot.manifest
    fingerprint, sums = manifest.load_spec().fingerprint, _sums(snapshot.files("examples"))
    digest = content_digest(fingerprint, manifest.counts["examples"], sums)
    if fingerprint != manifest.fingerprint:
        yield f"the spec has fingerprint {fingerprint}, the manifest says {manifest.fingerprint}"
    elif sums != manifest.sums:
        yield f"the examples have sums {sums}, the manifest says {manifest.sums}"
    elif digest != manifest.content_digest:
        yield f"the examples have content digest {digest}, the manifest says {manifest.content_digest}"
    elif (expected := _id(snapshot.folder, manifest)) != manifest.id:
        yield f"the contents have id {expected}, the manifest says {manifest.id}"


def _sums(files: Sequence[Path]) -> Sums:
    return functools.reduce(add_sums, (row_sums(pq.read_table(path)) for path in files), (0, 0))


def _id(folder: Path, manifest: Manifest) -> str:
    """Return the id of a snapshot: of its examples and, where it has some, of its rejects."""
    digest, rejects = manifest.content_digest, manifest.counts["rejects"]
    if rejects:
        sums = _sums([folder / shard.path for shard in manifest.shards["rejects"]])
        digest = content_digest(digest, rejects, sums)
    return digest[:ID_LENGTH]


def list_snapshots(store: Path) -> list[Snapshot]:
    """Return the store's snapshots, oldest first, without those of `unreadable_snapshots`."""
    unreadable = unreadable_snapshots(store)
    found = [_read(folder) for folder in _folders(store) if folder.name not in unreadable]
    return sorted(found, key=lambda snapshot: (snapshot.manifest.created, snapshot.manifest.id))


def unreadable_snapshots(store: Path) -> dict[str, str]:
    """Return what is wrong with the manifests that are damaged or of another version, by snapshot id."""
    found = {}
    for folder in _folders(store):
        try:
            _read(folder)
        except ArtifactError as error:
            found[folder.name] = str(error)
    return found


def open_snapshot(store: Path, snapshot_id: str | None = None) -> Snapshot:
    """Open a snapshot by its id or a unique start of it, the newest without one.

    Raises:
        NotFound: no such store or snapshot.
        VersionError: it was written by another format version.
        ArtifactError: its manifest or a shard is damaged.
    """
    wanted = snapshot_id if snapshot_id and snapshot_id != "latest" else latest(store)
    folders = {folder.name: folder for folder in _folders(store)}
    matches = [wanted] if wanted in folders else [name for name in folders if name.startswith(wanted)]
    if len(matches) == 1:
        return _read(folders[matches[0]]).check()
    if matches:
        raise NotFound(f"{len(matches)} snapshots in {store} begin with {wanted!r}: {', '.join(matches)}")
    raise NotFound(
        f"no snapshot {wanted!r} in {store}{did_you_mean(wanted, folders)}: "
        f"`slotstore snapshots list --store {store}` shows them"
    )


def _folders(store: Path) -> list[Path]:
    """Return the folders that are snapshots, for they hold a manifest."""
    return sorted(path.parent for path in store.glob("snapshots/*/manifest.json"))


def latest(store: Path) -> str:
    """Return the id of the newest snapshot; NotFound where the store has none.

    A first ingestion that was killed before it could write LATEST left a snapshot all the same.
    """
    try:
        return (store / "LATEST").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not (found := list_snapshots(store)):
            raise no_snapshot(store) from error
        return found[-1].manifest.id
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{store / 'LATEST'} cannot be read ({error}): ingest the source again, or name a --snapshot"
        ) from error


def no_snapshot(store: Path) -> NotFound:
    """Return the error of a store that has no snapshot yet."""
    return NotFound(f"no snapshot in {store}: make one with `slotstore ingest SOURCE --store {store}`")


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
        manifest = Manifest.from_json(text)
        manifest.load_splits()  # and the spec with them
        return Snapshot(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
        raise ArtifactError(f"{path} is no manifest ({error!r}): ingest the source again") from error


@dataclass(frozen=True)
class Staging:
    """A folder inside the store that becomes a snapshot when published."""

    store: Path
    folder: Path

    def publish(self, manifest: Manifest, prepare: Callable[[Snapshot], object] | None = None) -> Snapshot:
        """Make the staged files the newest snapshot, all at once.

        The rename of the folder is the moment at which the snapshot exists; by then its bytes are on
        the disk. Where an intact snapshot of the same content is there already, that one becomes the
        newest; a damaged one is replaced. ``prepare`` is called before it becomes the newest: if it
        fails, the last one stays.
        """
        manifest = dataclasses.replace(manifest, id=_id(self.folder, manifest))
        _write_durably(self.folder / "manifest.json", manifest.to_json())
        target = self.store / "snapshots" / manifest.id
        target.parent.mkdir(exist_ok=True)
        if not _is_intact(target):
            for path in [*self.folder.rglob("*"), self.folder]:
                _sync(path)
            if target.exists():
                target.rename(self.folder.with_name(f"damaged-{uuid.uuid4().hex}"))
            self.folder.rename(target)
            _sync(target.parent)
        if prepare:
            prepare(open_snapshot(self.store, manifest.id))
        _write_durably(self.store / "LATEST", manifest.id + "\n")
        return open_snapshot(self.store, manifest.id)


def _is_intact(folder: Path) -> bool:
    try:
        return not _read(folder).problems(deep=True)
    except (ArtifactError, pa.ArrowException):
        return False


@contextlib.contextmanager
def staging(store: Path) -> Iterator[Staging]:
    """Lock the store for one ingestion and yield its staging folder, removed when done.

    What a killed ingestion left behind is removed first: whoever holds the lock is the only one at work.

    Raises:
        StoreBusy: another process is ingesting into the store.
        ArtifactError: the store cannot be written.
    """
    scratch = store / "staging"
    with _lock(store):
        _clear(scratch)
        folder = scratch / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield Staging(store, folder)
        finally:
            _clear(scratch)


@contextlib.contextmanager
def _lock(store: Path) -> Iterator[None]:
    try:
        store.mkdir(parents=True, exist_ok=True)
        file = (store / "ingest.lock").open("w")
    except OSError as error:
        raise ArtifactError(f"the store {store} cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusy(
                f"another ingestion into {store} is running: wait for it, or use another --store"
            ) from error
        yield


def _clear(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _write_durably(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
