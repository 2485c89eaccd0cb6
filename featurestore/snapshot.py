"""Snapshots on disk: paths, and reading and verifying what was published.

.. code-block:: text

    <store>/LATEST                       one line: the id of the newest snapshot
    <store>/catalog.duckdb               views of the newest snapshot, for any DuckDB client (local stores)
    <store>/ingest.lock                  held (flock) while the store is written to (local stores)
    <store>/staging/<run>/               an ingestion under way; never read
    <store>/snapshots/<id>/manifest.json a snapshot exists when this does
                           examples/part-00000-of-00008.parquet
                           vocabulary/part-00000-of-00006.parquet
                           rejects/part-00000-of-00008.parquet    only of shards that have any

The id is a digest of the examples and the rejects, so ingesting the same data twice gives one snapshot.
A snapshot made of another, by an append or a re-slotting, lists shards of that one, which stay where they
are. On an object store, and beside remains of the same id, the three folders lie in one more, named after
the run.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.digest import Sums, add_sums, bytes_digest, file_digest, row_sums
from featurestore.errors import ArtifactError, NotFound, SpecError, VersionError, did_you_mean
from featurestore.manifest import COUNTS, FORMAT_VERSION, KINDS, Manifest, Shard
from featurestore.paths import AnyPath, arrow_file, sizes, typed

MANIFEST = "manifest.json"
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot: its folder and its manifest."""

    folder: AnyPath
    manifest: Manifest

    def files(self, kind: str) -> list[AnyPath]:
        """Return the shards of ``kind``, in order."""
        return [self.folder / shard.path for shard in self.manifest.shards[kind]]

    def vocabulary(self) -> list[AnyPath]:
        """Return the shards of the vocabulary; NotFound where there are none."""
        if files := self.files("vocabulary"):
            return files
        raise NotFound(
            f"snapshot {self.manifest.id} has no vocabulary, over which values and collisions are counted: "
            f"an ingestion builds one. {self._remedy()}"
        )

    def problems(self, *, deep: bool) -> list[str]:
        """Return what is wrong with the files: presence and size; if ``deep``, every byte and count."""
        shards = [shard for kind in KINDS for shard in self.manifest.shards[kind]]
        found = _size_problems(self.folder, shards)
        if deep and not found:
            found = [problem for shard in shards if (problem := _byte_problem(self.folder, shard))]
        if deep and not found:
            found = [*_count_problems(self.manifest), *_content_problems(self), *_vocabulary_problems(self)]
        return found

    def check(self, *, deep: bool = False) -> Self:
        """Raise ArtifactError with the first few `problems` if there are any; return self."""
        if found := self.problems(deep=deep):
            raise self.damaged(found)
        return self

    def read(self, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a shard's rows, once its bytes are seen to be those of the manifest.

        ``columns``: all by default.

        Raises:
            ArtifactError: they are not.
            OSError: they cannot be read.
        """
        try:
            data = (self.folder / shard.path).read_bytes()
        except FileNotFoundError as error:
            raise self.damaged([f"{shard.path} is missing"]) from error
        if (digest := bytes_digest(data)) != shard.digest:
            raise self.damaged([f"{shard.path} has digest {digest}, the manifest says {shard.digest}"])
        # `read_table` would load pyarrow.dataset for it.
        return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)

    def damaged(self, found: Sequence[str]) -> ArtifactError:
        """Return the error that tells the first few of some problems, and what mends them."""
        more = [f"and {len(found) - SHOWN_PROBLEMS} more"] if len(found) > SHOWN_PROBLEMS else []
        listed = "\n".join(f"  - {problem}" for problem in [*found[:SHOWN_PROBLEMS], *more])
        return ArtifactError(f"snapshot {self.manifest.id} is damaged:\n{listed}\n{self._remedy()}")

    def _remedy(self) -> str:
        """Return what makes the snapshot again: each source it was made of, in order, or its parent."""
        if self.manifest.is_reslotted:
            return f"Make it again from snapshot {self.manifest.parent}: {self._reslot_command()}"
        sources = [entry["source"] for entry in self.manifest.lineage] + [self.manifest.source]
        first, *rest = (source.get("uri") for source in sources)
        again = "".join(f", then {uri} with --append" for uri in rest)
        return f"Ingest the source again to mend it: {first}{again}."

    def _reslot_command(self) -> str:
        store = self.folder.parent.parent
        return (
            f"slotstore reslot --store {typed(store)} --snapshot {self.manifest.parent} "
            f"--spec {typed(self.folder / MANIFEST)}"
        )


def _size_problems(folder: AnyPath, shards: Sequence[Shard]) -> list[str]:
    found = []
    for shard, size in zip(shards, sizes([folder / shard.path for shard in shards]), strict=True):
        if size is None:
            found.append(f"{shard.path} is missing")
        elif size != shard.bytes:
            found.append(f"{shard.path} has {size:,} bytes, the manifest says {shard.bytes:,}")
    return found


def _byte_problem(folder: AnyPath, shard: Shard) -> str | None:
    path = folder / shard.path
    if (digest := file_digest(path)) != shard.digest:
        return f"{shard.path} has digest {digest}, the manifest says {shard.digest}"
    with arrow_file(path) as file:
        rows = pq.read_metadata(file).num_rows
    if rows != shard.rows:
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
    splits = manifest.load_splits()
    split_rows = sum(splits.rows.values())
    if split_rows + splits.dropped != examples:
        without = f", {splits.dropped:,} of which the label drops" if splits.dropped else ""
        yield f"the splits hold {split_rows:,} rows of {examples:,} examples{without}"


def _content_problems(snapshot: Snapshot) -> Iterator[str]:
    manifest = snapshot.manifest
    fingerprint = manifest.load_spec().fingerprint
    if fingerprint != manifest.fingerprint:
        yield f"the spec has fingerprint {fingerprint}, the manifest says {manifest.fingerprint}"
    for kind, said in (("examples", manifest.sums), ("rejects", manifest.reject_sums)):
        if (sums := table_sums(snapshot.files(kind))) != said:
            yield f"the {kind} have sums {sums}, the manifest says {said}"
    named = manifest.named()
    if named.content_digest != manifest.content_digest:
        yield (
            f"the examples have content digest {named.content_digest}, "
            f"the manifest says {manifest.content_digest}"
        )
    elif named.id != manifest.id:
        yield f"the contents have id {named.id}, the manifest says {manifest.id}"


def _vocabulary_problems(snapshot: Snapshot) -> Iterator[str]:
    examples, counts = snapshot.manifest.counts["examples"], dict[str, int]()
    for path in snapshot.files("vocabulary"):
        with arrow_file(path) as file:
            table = pq.read_table(file, columns=["feature", "count"])
        for row in table.group_by("feature").aggregate([("count", "sum")]).to_pylist():
            counts[row["feature"]] = counts.get(row["feature"], 0) + row["count_sum"]
    for feature, count in counts.items():
        if count != examples:
            yield f"the vocabulary of {feature} counts {count:,} examples of {examples:,}"


def table_sums(files: Sequence[AnyPath]) -> Sums:
    """Return the sums of all rows of the Parquet files."""
    return functools.reduce(add_sums, map(_file_sums, files), (0, 0))


def _file_sums(path: AnyPath) -> Sums:
    with arrow_file(path) as file:
        return row_sums(pq.read_table(file))


def list_snapshots(store: AnyPath) -> list[Snapshot]:
    """Return the store's snapshots, oldest first, without those of `unreadable_snapshots`."""
    return read_snapshots(store)[0]


def unreadable_snapshots(store: AnyPath) -> dict[str, str]:
    """Return what is wrong with the manifests that are damaged or of another version, by snapshot id."""
    return read_snapshots(store)[1]


def read_snapshots(store: AnyPath) -> tuple[list[Snapshot], dict[str, str]]:
    """Return what `list_snapshots` and `unreadable_snapshots` do, of one reading."""
    found, unreadable = [], {}
    for folder in _folders(store):
        try:
            found.append(read_snapshot(folder))
        except ArtifactError as error:
            unreadable[folder.name] = str(error)
    return sorted(found, key=lambda one: (one.manifest.created, one.manifest.id)), unreadable


def open_snapshot(store: AnyPath, snapshot_id: str | None = None, *, check: bool = True) -> Snapshot:
    """Open a snapshot by its id or a unique start of it, the newest without one.

    ``check``: see that its shards are there.

    Raises:
        NotFound: no such store or snapshot.
        VersionError: it was written by another format version.
        ArtifactError: its manifest or a shard is damaged.
    """
    found = read_snapshot(snapshot_folder(store, snapshot_id))
    return found.check() if check else found


def snapshot_folder(store: AnyPath, snapshot_id: str | None = None) -> AnyPath:
    """Return the folder of a snapshot named as `open_snapshot` takes it; NotFound if there is none."""
    wanted = snapshot_id if snapshot_id and snapshot_id != "latest" else latest(store)
    folders = {folder.name: folder for folder in _folders(store)}
    matches = [wanted] if wanted in folders else [name for name in folders if name.startswith(wanted)]
    if len(matches) == 1:
        return folders[matches[0]]
    if matches:
        raise NotFound(f"{len(matches)} snapshots in {store} begin with {wanted!r}: {', '.join(matches)}")
    raise NotFound(
        f"no snapshot {wanted!r} in {store}{did_you_mean(wanted, folders)}: "
        f"`slotstore snapshots list --store {typed(store)}` shows them"
    )


def _folders(store: AnyPath) -> list[AnyPath]:
    """Return the folders that are snapshots, for they hold a manifest."""
    try:
        folders: list[AnyPath] = list((store / "snapshots").iterdir())
        folders.sort(key=str)
        present = sizes([folder / MANIFEST for folder in folders])
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ArtifactError(f"the store {store} cannot be read: {error}") from error
    return [folder for folder, size in zip(folders, present, strict=True) if size is not None]


def latest(store: AnyPath) -> str:
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
            f"{store / 'LATEST'} cannot be read ({error}).\n"
            "If it is damaged ingest the source again, or name a --snapshot."
        ) from error


def no_snapshot(store: AnyPath) -> NotFound:
    """Return the error of a store that has no snapshot yet."""
    return NotFound(f"no snapshot in {store}: make one with `slotstore ingest SOURCE --store {typed(store)}`")


def read_snapshot(folder: AnyPath) -> Snapshot:
    """Read a snapshot's manifest; ArtifactError, or VersionError, where it cannot be understood."""
    path = folder / MANIFEST
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
