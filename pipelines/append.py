"""An append: what a child snapshot takes over from the one it grows from, its parent.

The parent's shards stay where they are and as they are; only one that holds a superseded rating is
written again, for the child, without it. Its vocabulary is added to that of the new ratings.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.digest import Sums, file_digest, row_sums
from featurestore.errors import FingerprintError, SourceError
from featurestore.manifest import Shard
from featurestore.paths import AnyPath, arrow_file
from featurestore.shards import write_parquet
from featurestore.snapshot import Snapshot
from featurestore.spec import FeatureSpec
from pipelines.counters import StepCounters
from pipelines.duplicates import Superseded, split_rows
from pipelines.movielens import RATING_COLUMNS
from pipelines.read import reject, rejects_table
from pipelines.reports import write_report
from pipelines.source import Source
from pipelines.vocabulary import count_values


def check_parent(parent: Snapshot, spec: FeatureSpec, columns: tuple[str, ...], where: str) -> None:
    """Check that ratings with ``columns`` and a spec can be appended.

    Raises:
        FingerprintError: the parent was made with another spec.
        SourceError: it has other columns, or its split is one by files.
    """
    manifest = parent.manifest
    if spec.fingerprint != manifest.fingerprint:
        raise FingerprintError(
            f"snapshot {manifest.id} has a spec with fingerprint {manifest.fingerprint}, the spec "
            f"{spec.name!r} has {spec.fingerprint}: its slots would not be those of the old examples.\n"
            "Append without --spec, or ingest all ratings again without --append."
        )
    if spec.split.kind == "files":
        raise SourceError(
            f"snapshot {manifest.id} is split by the files {', '.join(spec.split.files)}: ratings of others "
            "would be in no split.\nName them in a spec, and ingest all files again without --append."
        )
    known = [name for name in manifest.columns if name not in spec.slot_columns]
    if set(known) != set(columns):
        raise SourceError(
            f"{where} has the columns {', '.join(columns)}, snapshot {manifest.id} has {', '.join(known)}: "
            "append a source of the same format, or ingest it into another --store"
        )


def appended_before(parent: Snapshot, source: Source) -> bool:
    """Whether the parent, or a snapshot it grew from, was made of these very files."""
    sizes = {name: stamp[0] for name, stamp in source.stamps().items()}
    sources = [parent.manifest.source, *(entry["source"] for entry in parent.manifest.lineage)]
    alike = [
        {file["name"]: file["digest"] for file in each["files"]}
        for each in sources
        if {file["name"]: file["bytes"] for file in each["files"]} == sizes
    ]
    return bool(alike) and {name: file_digest(source.folder / name) for name in sizes} in alike


@dataclass(frozen=True)
class RewriteReport:
    """What became of a shard of the parent: ``shard`` of the rows that stay, the ``sums`` of the others."""

    index: int
    shard: Shard
    rejects: Shard
    sums: Sums

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RewriteReport":
        """Parse a report."""
        shard, rejects = (Shard(**data[name]) for name in ("shard", "rejects"))
        return cls(data["index"], shard, rejects, tuple(data["sums"]))


@dataclass(frozen=True)
class Rewriting:
    """Rewriting the parent's shards, ``paths``, for a child that is staged in ``folder``."""

    paths: tuple[AnyPath, ...]
    superseded: Superseded
    folder: AnyPath


def rewrite_shard(index: int, work: Rewriting) -> pa.Table:
    """Write a shard of the parent without its superseded rows, which are rejected and returned."""
    path, count = work.paths[index], len(work.paths)
    with arrow_file(path) as file:
        table = pq.read_table(file)
    rows = work.superseded.rows("old", index)
    bad, reasons, removed = split_rows(table, rows)
    name = f"part-{index:05d}-of-{count:05d}-rewritten.parquet"
    shard = write_parquet(table.filter(pa.array(~bad)), work.folder, f"examples/{name}")
    rejects = _superseded_rejects(removed, rows, reasons, path)
    written = write_parquet(rejects, work.folder, f"rejects/{name}")
    write_report(
        work.folder, f"rewritten-{index:05d}", RewriteReport(index, shard, written, row_sums(removed))
    )
    return removed


def _superseded_rejects(removed: pa.Table, rows: pa.Table, reasons: list[str], path: AnyPath) -> pa.Table:
    """Return the rejects of rows of a shard: the file is the shard, the offset the row's number in it."""
    file = posixpath.normpath(str(path)).rpartition("/snapshots/")[2]
    records = removed.select(list(RATING_COLUMNS)).to_pylist()
    return rejects_table(
        [
            reject(file, row, "movie_id", "::".join(f"{value}" for value in record.values()), reason)
            for row, record, reason in zip(rows["row"].to_pylist(), records, reasons, strict=True)
        ]
    )


@dataclass
class RewriteShards(beam.PTransform):
    """Numbers of the parent's shards -> the rows removed from each, as negative counts of their values."""

    work: Rewriting
    spec: FeatureSpec

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        """Spread the shards over the workers and rewrite each."""
        return (
            numbers
            | "Spread" >> beam.Reshuffle()
            | "Rewrite" >> beam.ParDo(_RewriteShards(), work=self.work, spec=self.spec)
        )


class _RewriteShards(beam.DoFn):
    def process(self, index: int, work: Rewriting, spec: FeatureSpec) -> Iterator[tuple[str, pa.Table]]:
        with StepCounters("rewrite") as count:
            removed = rewrite_shard(index, work)
            count(rejected=removed.num_rows)
        for feature in spec.features:
            counts = count_values(removed.column(feature.column))
            yield feature.name, counts.set_column(1, "count", pc.negate(counts["count"]))


@dataclass
class ReadVocabulary(beam.PTransform):
    """Vocabulary shards of the parent -> the counts of each feature's values."""

    def expand(self, paths: beam.PCollection) -> beam.PCollection:
        """Read each shard."""
        return paths | "Read" >> beam.FlatMap(_read_vocabulary)


def _read_vocabulary(path: AnyPath) -> Iterator[tuple[str, pa.Table]]:
    with arrow_file(path) as file:
        table = pq.read_table(file, columns=["feature", "value", "count"])
    for feature in table["feature"].unique().to_pylist():
        yield feature, table.filter(pc.equal(table["feature"], feature)).select(["value", "count"])
