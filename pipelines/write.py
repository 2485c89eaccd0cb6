"""Encoded batches to shards, and what each shard reports about itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.digest import Sums, row_sums
from featurestore.encode import encode
from featurestore.manifest import Shard
from featurestore.paths import AnyPath
from featurestore.shards import shard_name, write_parquet
from featurestore.spec import FeatureSpec
from pipelines.counters import StepCounters
from pipelines.duplicates import SUPERSEDED, write_keys
from pipelines.read import Records
from pipelines.reports import write_report


@dataclass(frozen=True)
class ShardReport:
    """What was written of one range: the next step reads these, not the shards."""

    index: int
    shard: Shard
    rejects: Shard | None
    sums: Sums
    columns: dict[str, str]
    superseded: int  # of the rejects: by what an earlier snapshot has

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ShardReport":
        """Parse a report."""
        rejects = Shard(**data["rejects"]) if data["rejects"] else None
        return cls(
            **{**data, "shard": Shard(**data["shard"]), "rejects": rejects, "sums": tuple(data["sums"])}
        )


def write_shard(records: Records, folder: AnyPath) -> ShardReport:
    """Write a range's examples, rejects and row keys; the report is written last and says it is done."""
    place = records.place
    shard = write_parquet(records.table, folder, shard_name("examples", place.index, place.count))
    rejects = None
    if records.rejects.num_rows:
        rejects = write_parquet(records.rejects, folder, shard_name("rejects", place.index, place.count))
    write_keys(folder, place.index, records.table)
    columns = {field.name: str(_plain(field.type)) for field in records.table.schema}
    superseded = pc.sum(pc.starts_with(records.rejects["reason"], SUPERSEDED)).as_py() or 0
    report = ShardReport(place.index, shard, rejects, row_sums(records.table), columns, superseded)
    write_report(folder, f"examples-{place.index:05d}", report)
    return report


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


@dataclass
class EncodeSlots(beam.PTransform):
    """`Records` -> `Records` with a slot column for each lookup, by the one `encode`."""

    spec: FeatureSpec

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Encode every batch."""
        return records | "Encode" >> beam.ParDo(_EncodeSlots(), spec=self.spec)


class _EncodeSlots(beam.DoFn):
    def process(self, records: Records, spec: FeatureSpec) -> Iterator[Records]:
        with StepCounters("encode") as count:
            table = encode(records.table, spec)
            count(rows=table.num_rows, nbytes=table.num_rows * len(spec.slot_columns) * 4)
        yield Records(table, records.rejects, records.place)


@dataclass
class WriteShards(beam.PTransform):
    """`Records` -> `Records`, each written to its shard with a report on the way."""

    folder: AnyPath

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Write every batch."""
        return records | "Write" >> beam.ParDo(_WriteShards(), folder=self.folder)


class _WriteShards(beam.DoFn):
    def process(self, records: Records, folder: AnyPath) -> Iterator[Records]:
        with StepCounters("write") as count:
            report = write_shard(records, folder)
            count(rows=report.shard.rows, nbytes=report.shard.bytes)
        yield records
