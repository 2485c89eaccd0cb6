"""The vocabulary: each feature's distinct values with their counts and hashes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.encode import as_text
from featurestore.manifest import Shard
from featurestore.paths import AnyPath
from featurestore.shards import shard_name, write_parquet
from featurestore.spec import Feature, FeatureSpec
from featurestore.vocabulary import Vocabulary
from pipelines.read import Records
from pipelines.reports import write_report

COMPACT_AT = 16
"""How many partial counts are kept before they are added up."""


def count_values(column: pa.ChunkedArray) -> pa.Table:
    """Return the distinct values of a column and how often each occurs: value (string), count (int64)."""
    text = as_text(column)
    counts = np.bincount(text.indices.to_numpy(), minlength=len(text.dictionary))
    used = np.flatnonzero(counts)
    return pa.table(
        {"value": text.dictionary.take(pa.array(used)), "count": pa.array(counts[used], pa.int64())}
    )


def add_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """Add partial counts of the same feature."""
    summed = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
    # Sums come as chunks of 32,768 rows that share their buffers: each would be pickled with all of them.
    return summed.rename_columns({"count_sum": "count"}).combine_chunks()


def vocabulary_table(counts: pa.Table, feature: Feature) -> pa.Table:
    """Return the feature's vocabulary, most frequent value first: rows as `VOCABULARY_SCHEMA`."""
    counts = counts.filter(pc.greater(counts["count"], 0))  # an append may take a value's last example away
    ordered = counts.sort_by([("count", "descending"), ("value", "ascending")])
    values = ordered.column("value").combine_chunks()
    return Vocabulary.of(feature, values, ordered.column("count").combine_chunks()).to_table()


class _AddCounts(beam.CombineFn):
    """Adds partial counts; keeps a few side by side, since adding them up costs more than holding them."""

    def create_accumulator(self) -> list[pa.Table]:
        return []

    def add_input(self, accumulator: list[pa.Table], counts: pa.Table) -> list[pa.Table]:
        accumulator.append(counts)
        return [add_counts(accumulator)] if len(accumulator) >= COMPACT_AT else accumulator

    def merge_accumulators(self, accumulators: Iterable[list[pa.Table]]) -> list[pa.Table]:
        merged = [table for accumulator in accumulators for table in accumulator]
        return [add_counts(merged)] if merged else []

    def extract_output(self, accumulator: list[pa.Table]) -> pa.Table:
        return add_counts(accumulator)


@dataclass
class CountValues(beam.PTransform):
    """`Records` -> the counts of each feature's values, by feature."""

    spec: FeatureSpec

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Count in each batch."""
        return records | "Count" >> beam.FlatMap(_count_features, spec=self.spec)


@dataclass
class BuildVocabulary(beam.PTransform):
    """Counts of values by feature -> one vocabulary shard a feature, each with a report."""

    spec: FeatureSpec
    folder: AnyPath

    def expand(self, counts: beam.PCollection) -> beam.PCollection:
        """Add up by feature, hash and write."""
        return (
            counts
            | "Add" >> beam.CombinePerKey(_AddCounts())
            | "Write" >> beam.Map(_write_vocabulary, spec=self.spec, folder=self.folder)
        )


def _count_features(records: Records, spec: FeatureSpec) -> Iterator[tuple[str, pa.Table]]:
    for feature in spec.features:
        yield feature.name, count_values(records.table.column(feature.column))


@dataclass(frozen=True)
class VocabularyReport:
    """What was written of one feature, and how many examples its counts add up to."""

    shard: Shard
    examples: int

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "VocabularyReport":
        """Parse a report."""
        return cls(Shard(**data["shard"]), data["examples"])


def _write_vocabulary(counted: tuple[str, pa.Table], spec: FeatureSpec, folder: AnyPath) -> VocabularyReport:
    name, counts = counted
    names = [feature.name for feature in spec.features]
    index = names.index(name)
    table = vocabulary_table(counts, spec.features[index])
    shard = write_parquet(table, folder, shard_name("vocabulary", index, len(names)))
    report = VocabularyReport(shard, pc.sum(counts["count"]).as_py() or 0)
    write_report(folder, f"vocabulary-{index:05d}", report)
    return report
