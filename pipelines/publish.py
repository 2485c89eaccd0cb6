"""What a finished pipeline left in staging -> a checked manifest -> a published snapshot."""

import datetime
import functools
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.database import resolve_splits, write_catalog
from featurestore.digest import add_sums, content_digest
from featurestore.errors import TooManyRejects
from featurestore.snapshot import REJECTS_SCHEMA, Manifest, Shard, Snapshot, Staging
from featurestore.spec import FeatureSpec
from pipelines.describe import SourceFile
from pipelines.duplicates import KEYS_FOLDER
from pipelines.join import ENTITIES_FOLDER
from pipelines.shards import REPORTS
from pipelines.source import Source
from pipelines.write import ShardReport

PACKAGES = ("slotstore", "apache-beam", "pyarrow", "duckdb", "xxhash", "numpy")
SHOWN_REJECTS = 5


@dataclass(frozen=True)
class Reports:
    """All that the pipeline's steps said of what they wrote, in the order of the shards."""

    shards: list[ShardReport]
    vocabulary: list[Shard]
    entity_rejects: list[Shard]
    sources: list[SourceFile]

    @property
    def examples(self) -> int:
        """Number of examples written."""
        return sum(report.shard.rows for report in self.shards)

    @property
    def reject_shards(self) -> list[Shard]:
        """The shards of rejects."""
        return self.entity_rejects + [report.rejects for report in self.shards if report.rejects]

    @property
    def rejects(self) -> int:
        """Number of records rejected: ratings, users and movies."""
        return sum(shard.rows for shard in self.reject_shards)

    @property
    def read(self) -> int:
        """Number of ratings read, and of users and movies rejected."""
        return self.examples + self.rejects


def read_reports(folder: Path) -> Reports:
    """Read the reports of a pipeline that ended well."""

    def load(kind: str) -> list[str]:
        return [
            path.read_text(encoding="utf-8") for path in sorted((folder / REPORTS).glob(f"{kind}-*.json"))
        ]

    return Reports(
        shards=[ShardReport.from_json(text) for text in load("examples")],
        vocabulary=[Shard(**json.loads(text)) for text in load("vocabulary")],
        entity_rejects=[Shard(**json.loads(text)) for text in load("entities")],
        sources=[SourceFile(**json.loads(text)) for text in load("source")],
    )


def check_rejects(folder: Path, shards: Sequence[Shard], read: int, limit: float) -> None:
    """Raise TooManyRejects, naming the first few, if more than ``limit`` of the records were rejected."""
    rejects = sum(shard.rows for shard in shards)
    if rejects <= limit * read:
        return
    ratio = rejects / read
    shown = _first_rejects(folder, shards)
    head = f"{rejects:,} of {read:,} records are bad ({ratio:.4%}), --max-reject-ratio allows {limit:g}"
    more = [f"  - and {rejects - len(shown):,} more"] if rejects > len(shown) else []
    remedy = f"Mend the source, or keep them apart as rejects with --max-reject-ratio {_enough(ratio)}."
    lines = [f"{head}; nothing was published:", *map(_reject_line, shown), *more, remedy]
    raise TooManyRejects("\n".join(lines))


def _reject_line(row: Mapping[str, str]) -> str:
    return f"  - {row['file']}, byte {row['byte_offset']:,}: {row['reason']}: {row['raw'][:80]!r}"


def _first_rejects(folder: Path, shards: Sequence[Shard]) -> list[dict[str, str]]:
    table = REJECTS_SCHEMA.empty_table()
    for shard in shards:
        if table.num_rows < SHOWN_REJECTS:
            table = pa.concat_tables([table, pq.read_table(folder / shard.path)])
    rows: list[dict[str, str]] = table.slice(0, SHOWN_REJECTS).to_pylist()
    return rows


def _enough(ratio: float) -> str:
    """Return a ratio just above ``ratio`` with two digits."""
    return f"{min(1.0, ratio * 1.05 + 1e-9):.2g}"


def publish(staging: Staging, spec: FeatureSpec, source: Source, reports: Reports) -> Snapshot:
    """Resolve the splits, write the manifest and make the staged files the newest snapshot."""
    examples = [report.shard for report in reports.shards]
    splits = resolve_splits([staging.folder / shard.path for shard in examples], spec.split)
    sums = functools.reduce(add_sums, (report.sums for report in reports.shards), (0, 0))
    digest = content_digest(spec.fingerprint, reports.examples, sums)
    for scratch in (REPORTS, KEYS_FOLDER, ENTITIES_FOLDER):
        shutil.rmtree(staging.folder / scratch, ignore_errors=True)
    return staging.publish(
        Manifest(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            fingerprint=spec.fingerprint,
            content_digest=digest,
            sums=sums,
            spec=spec.to_dict(),
            source={
                "format": source.format.name,
                "uri": source.uri,
                "files": [vars(file) for file in reports.sources],
            },
            columns=reports.shards[0].columns,
            counts={"read": reports.read, "examples": reports.examples, "rejects": reports.rejects},
            splits=splits.to_dict(),
            shards={"examples": examples, "vocabulary": reports.vocabulary, "rejects": reports.reject_shards},
            versions={name: importlib.metadata.version(name) for name in PACKAGES},
        ),
        prepare=lambda snapshot: write_catalog(staging.store, snapshot),
    )
