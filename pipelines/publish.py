"""What a finished pipeline left in staging -> a checked manifest -> a published snapshot."""

import contextlib
import datetime
import functools
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.database import resolve_splits, write_catalog
from featurestore.digest import Sums, add_sums
from featurestore.errors import ArtifactError, SourceError, TooManyRejects
from featurestore.manifest import PACKAGES, REJECTS_SCHEMA, Manifest, Shard
from featurestore.paths import REQUESTS, AnyPath, arrow_file, files_below, remove_tree
from featurestore.retention import sweep
from featurestore.snapshot import Snapshot, table_sums
from featurestore.spec import FeatureSpec
from featurestore.splits import Splits
from featurestore.staging import Staging
from pipelines.append import RewriteReport
from pipelines.describe import SourceFile
from pipelines.duplicates import KEYS_FOLDER, SUPERSEDED, SUPERSEDED_FOLDER
from pipelines.join import ENTITIES_FOLDER
from pipelines.reports import REPORTS
from pipelines.source import Source
from pipelines.vocabulary import VocabularyReport
from pipelines.write import ShardReport

SHOWN_REJECTS = 5


@dataclass(frozen=True)
class Reports:
    """All that the pipeline's steps said of what they wrote, in the order of the shards."""

    shards: list[ShardReport]
    vocabulary: list[VocabularyReport]
    entity_rejects: list[Shard]
    sources: list[SourceFile]
    rewritten: list[RewriteReport]

    @property
    def examples(self) -> int:
        """Number of examples made of the source."""
        return sum(report.shard.rows for report in self.shards)

    @property
    def reject_shards(self) -> list[Shard]:
        """The shards of rejects of the source."""
        return self.entity_rejects + [report.rejects for report in self.shards if report.rejects]

    @property
    def rejects(self) -> int:
        """Number of the source's records rejected: ratings, users and movies."""
        return sum(shard.rows for shard in self.reject_shards)

    @property
    def superseded(self) -> int:
        """Number of those rejects that are ratings which an earlier snapshot has, or has a later one for."""
        return sum(report.superseded for report in self.shards)

    @property
    def replaced(self) -> int:
        """Number of examples of the parent that the source has a later rating for."""
        return sum(report.rejects.rows for report in self.rewritten)

    @property
    def read(self) -> int:
        """Number of ratings read, and of users and movies rejected."""
        return self.examples + self.rejects


def read_reports(folder: AnyPath) -> Reports:
    """Read the reports of a pipeline that ended well."""
    names = files_below(folder / REPORTS)

    def load(kind: str) -> list[Any]:
        paths = [folder / REPORTS / name for name in names if name.startswith(f"{kind}-")]
        return [json.loads(text) for text in pool.map(lambda path: path.read_text(encoding="utf-8"), paths)]

    with ThreadPoolExecutor(REQUESTS) as pool:
        return Reports(
            shards=[ShardReport.from_json(data) for data in load("examples")],
            vocabulary=[VocabularyReport.from_json(data) for data in load("vocabulary")],
            entity_rejects=[Shard(**data) for data in load("entities")],
            sources=[SourceFile(**data) for data in load("source")],
            rewritten=[RewriteReport.from_json(data) for data in load("rewritten")],
        )


def check_complete(reports: Reports, shards: int, features: int, parent: Snapshot | None) -> None:
    """Raise ArtifactError if anything that the runner was given did not arrive: it must not lose data."""
    kept = parent.manifest.counts["examples"] - reports.replaced if parent else 0
    expected = [reports.examples + kept] * features
    counted = [report.examples for report in reports.vocabulary]
    if len(reports.shards) != shards or counted != expected:
        raise ArtifactError(
            f"the runner lost data, nothing was published: {len(reports.shards):,} of {shards:,} shards, and "
            f"vocabularies of {counted} examples where {expected} were expected.\n"
            "Run again, and if it happens again with --direct_num_workers 1 or another --runner."
        )


def check_rejects(folder: AnyPath, reports: Reports, limit: float) -> None:
    """Raise TooManyRejects, naming the first few, if more than ``limit`` of the records are bad.

    A rating that an earlier snapshot supersedes is a reject, but not bad.
    """
    bad, read = reports.rejects - reports.superseded, reports.read
    if bad <= limit * read:
        return
    ratio = bad / read
    shown = _first_bad(folder, reports.reject_shards)
    head = f"{bad:,} of {read:,} records are bad ({ratio:.4%}), --max-reject-ratio allows {limit:g}"
    more = [f"  - and {bad - len(shown):,} more"] if bad > len(shown) else []
    remedy = f"Mend the source, or keep them apart as rejects with --max-reject-ratio {_enough(ratio)}."
    lines = [f"{head}; nothing was published:", *map(_reject_line, shown), *more, remedy]
    raise TooManyRejects("\n".join(lines))


def _reject_line(row: Mapping[str, str]) -> str:
    return f"  - {row['file']}, byte {row['byte_offset']:,}: {row['reason']}: {row['raw'][:80]!r}"


def _first_bad(folder: AnyPath, shards: Sequence[Shard]) -> list[dict[str, str]]:
    table = REJECTS_SCHEMA.empty_table()
    for shard in shards:
        if table.num_rows < SHOWN_REJECTS:
            with arrow_file(folder / shard.path) as file:
                rejects = pq.read_table(file)
            bad = rejects.filter(pc.invert(pc.starts_with(rejects["reason"], SUPERSEDED)))
            table = pa.concat_tables([table, bad])
    rows: list[dict[str, str]] = table.slice(0, SHOWN_REJECTS).to_pylist()
    return rows


def _enough(ratio: float) -> str:
    """Return a ratio just above ``ratio`` with two digits."""
    return f"{min(1.0, ratio * 1.05 + 1e-9):.2g}"


def publish(
    staging: Staging, spec: FeatureSpec, source: Source, reports: Reports, parent: Snapshot | None = None
) -> Snapshot:
    """Resolve the splits, write the manifest and make the staged files the newest snapshot.

    With a ``parent`` the snapshot holds its examples too, but for those that were replaced.
    """
    examples, rejects = _example_shards(reports, parent), _reject_shards(reports, parent)
    root = staging.folder if parent is None else parent.folder
    files = [(root if shard.is_inherited else staging.folder) / shard.path for shard in examples]
    splits = _resolve(files, spec)
    own_rejects = [staging.folder / shard.path for shard in rejects if not shard.is_inherited]
    reject_sums = table_sums(own_rejects)
    for scratch in (REPORTS, KEYS_FOLDER, SUPERSEDED_FOLDER, ENTITIES_FOLDER):
        remove_tree(staging.folder / scratch)
    vocabulary = [report.shard for report in reports.vocabulary]
    counts = {"examples": _rows(examples), "rejects": _rows(rejects)}
    published = staging.publish(
        Manifest(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            fingerprint=spec.fingerprint,
            sums=_example_sums(reports, parent),
            reject_sums=add_sums(reject_sums, parent.manifest.reject_sums) if parent else reject_sums,
            spec=spec.to_dict(),
            source={
                "format": source.format.name,
                "uri": source.uri,
                "files": [vars(file) for file in reports.sources],
            },
            columns=reports.shards[0].columns,
            counts={"read": sum(counts.values()), **counts},
            splits=splits.to_dict(),
            shards={"examples": examples, "vocabulary": vocabulary, "rejects": rejects},
            versions={name: importlib.metadata.version(name) for name in (*PACKAGES, "apache-beam")},
            parent=parent.manifest.id if parent else None,
            lineage=_lineage(parent.manifest) if parent else [],
        ),
        prepare=functools.partial(write_catalog, staging.store),
    )
    with contextlib.suppress(OSError):  # it is published; what could not be removed is when next it is tried
        sweep(staging.store)
    return published


def _resolve(files: Sequence[AnyPath], spec: FeatureSpec) -> Splits:
    splits = resolve_splits(files, spec.split, spec.label)
    if splits.dropped and not any(splits.rows.values()):
        raise SourceError(
            f"all {splits.dropped:,} examples have a {spec.label.column} that the spec {spec.name!r} drops "
            f"(label.drop = {list(spec.label.drop)}), nothing was published: drop fewer"
        )
    return splits


def _rows(shards: Sequence[Shard]) -> int:
    return sum(shard.rows for shard in shards)


def _inherited(parent: Snapshot, kind: str) -> list[Shard]:
    manifest = parent.manifest
    return [shard.seen_from_child(manifest.id) for shard in manifest.shards[kind]]


def _example_shards(reports: Reports, parent: Snapshot | None) -> list[Shard]:
    """Return the parent's shards, rewritten ones in the place of the old, then the new ones."""
    shards = _inherited(parent, "examples") if parent else []
    for report in reports.rewritten:
        shards[report.index] = report.shard
    return [shard for shard in (*shards, *(report.shard for report in reports.shards)) if shard.rows]


def _reject_shards(reports: Reports, parent: Snapshot | None) -> list[Shard]:
    shards = _inherited(parent, "rejects") if parent else []
    return shards + [report.rejects for report in reports.rewritten] + reports.reject_shards


def _example_sums(reports: Reports, parent: Snapshot | None) -> Sums:
    sums = functools.reduce(add_sums, (report.sums for report in reports.shards), (0, 0))
    if parent is None:
        return sums
    removed = functools.reduce(add_sums, (report.sums for report in reports.rewritten), (0, 0))
    return add_sums(add_sums(parent.manifest.sums, sums), (-removed[0], -removed[1]))


def _lineage(parent: Manifest) -> list[dict[str, object]]:
    """Return what a child tells of the snapshots it grew from, which may be removed one day."""
    told = {
        "snapshot": parent.id,
        "created": parent.created,
        "source": parent.source,
        "counts": parent.counts,
    }
    return [*map(dict, parent.lineage), told]
