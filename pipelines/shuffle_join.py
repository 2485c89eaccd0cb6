"""Ratings joined to users and movies too large for one worker: keys travel, ratings never.

.. code-block:: text

    ranges -> distinct keys of each -----v
    files of entities -> lines -> CoGroupByKey by (entity, partition) -> the rows each range needs
                                                                                   v
    ranges ------------------------------------------------> CoGroupByKey by range -> read again, join

However often a key occurs in a range it is sent once, so a hot key weighs no more than another. A range
is read twice: parsing it again costs less than sending its ratings there and back, and no worker ever
holds more ratings than the range it works on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa

from featurestore.manifest import REJECTS_SCHEMA, Shard
from featurestore.paths import AnyPath
from pipelines.counters import StepCounters
from pipelines.entities import (
    OFFSET,
    RANGE_BYTES,
    WORD,
    Entities,
    Words,
    entities_of,
    entities_schema,
    keep_first,
    key_words,
    one_array,
    plan_entity_ranges,
    read_entity_lines,
    repeated_rejects,
    write_entity_rejects,
)
from pipelines.join import count_join
from pipelines.movielens import SourceFormat
from pipelines.read import ByteRange, Records, count_read, read_ratings

PARTITION_BYTES = 32 << 20
"""Raw bytes of users or movies in a partition, which one worker holds at a time."""
LEAST_PARTITIONS = 8
"""Small tables are divided too, so that several workers take part."""

Partition = tuple[int, int]
"""Number of the entity in its source, number of the partition."""
Need = tuple[int, pa.Array]
"""Index of a range, distinct keys that it has in a partition."""
Found = tuple[int, pa.Table]
"""Number of an entity, rows as `Entities`."""
Groups = dict[str, Iterable[Any]]
"""What `CoGroupByKey` brings together, by tag."""


def count_partitions(size: int) -> int:
    """Return into how many partitions ``size`` raw bytes of users or movies are divided."""
    return max(LEAST_PARTITIONS, -(-size // PARTITION_BYTES))


def partition_rows(words: Words, count: int) -> Iterator[tuple[int, pa.Array]]:
    """Yield each partition that has any of ``words`` (n,), with their rows in order."""
    numbers = words % np.uint64(count)
    for number in np.unique(numbers).tolist():
        yield number, pa.array(np.flatnonzero(numbers == number))


def find_needed(entities: Entities, needs: Iterable[Need]) -> Iterator[tuple[int, pa.Table]]:
    """Yield for each range the rows of a partition that it needs; unknown keys have none."""
    for index, keys in needs:
        rows = entities.find(keys)
        if (known := rows >= 0).any():
            yield index, entities.table.take(pa.array(rows[known]))


@dataclass
class ShuffleJoin(beam.PTransform):
    """`ByteRange` -> `Records` with the columns of users and movies, of which no worker holds all.

    raw: folder of the source's files. folder: staging; rejects are written there. range_bytes: of users and
    movies that are read at a time.
    """

    raw: AnyPath
    source: SourceFormat
    folder: AnyPath
    range_bytes: int = RANGE_BYTES

    def expand(self, ranges: beam.PCollection) -> beam.PCollection:
        """Bring each range the rows it needs, then read it again and join."""
        files = [self.raw / entity.file for entity in self.source.entities]
        counts = [count_partitions(file.stat().st_size) for file in files]
        spread = ranges | "Spread" >> beam.Reshuffle()
        needs = spread | "FindKeys" >> beam.ParDo(_FindKeys(), source=self.source, counts=counts)
        lines, bad = self._read_entities(ranges.pipeline, files, counts)
        found, repeated = (
            {"needs": needs, "lines": lines}
            | "ByPartition" >> beam.CoGroupByKey()
            | "FindRows"
            >> beam.ParDo(_FindRows(), source=self.source, raw=self.raw).with_outputs(
                "repeated", main="found"
            )
        )
        _ = (
            (bad, repeated)
            | "Rejects" >> beam.Flatten()
            | "ByFile" >> beam.GroupByKey()
            | "WriteRejects" >> beam.FlatMap(_write_rejects, source=self.source, folder=self.folder)
        )
        places = spread | "Index" >> beam.Map(lambda place: (place.index, place))
        return (
            {"places": places, "found": found}
            | "ByRange" >> beam.CoGroupByKey()
            | "Join" >> beam.ParDo(_JoinFound(), source=self.source)
        )

    def _read_entities(
        self, pipeline: beam.Pipeline, files: list[AnyPath], counts: list[int]
    ) -> tuple[beam.PCollection, beam.PCollection]:
        """Return lines by partition, and rejects by the number of their entity."""
        ranges = [
            (number, place)
            for number, file in enumerate(files)
            for place in plan_entity_ranges(file, self.range_bytes)
        ]
        lines, bad = (
            pipeline
            | "EntityRanges" >> beam.Create(ranges)
            | "SpreadEntities" >> beam.Reshuffle()
            | "ReadEntities"
            >> beam.ParDo(_ReadEntities(), source=self.source, counts=counts).with_outputs(
                "bad", main="lines"
            )
        )
        return lines, bad


class _FindKeys(beam.DoFn):
    def process(
        self,
        place: ByteRange,
        source: SourceFormat,
        counts: list[int],
    ) -> Iterator[tuple[Partition, Need]]:
        with StepCounters("keys") as count:
            table = read_ratings(place, source).table
            found = [one_array(table.column(entity.key)).dictionary for entity in source.entities]
            count(rows=sum(map(len, found)), nbytes=place.end - place.start)
        for number, (keys, partitions) in enumerate(zip(found, counts, strict=True)):
            for partition, rows in partition_rows(key_words(keys), partitions):
                yield (number, partition), (place.index, keys.take(rows))


class _ReadEntities(beam.DoFn):
    def process(
        self,
        placed: tuple[int, ByteRange],
        source: SourceFormat,
        counts: list[int],
    ) -> Iterator[
        tuple[Partition, pa.Table] | beam.pvalue.TaggedOutput[Literal["bad"], tuple[int, pa.Table]]
    ]:
        number, place = placed
        with StepCounters("entities") as count:
            lines = read_entity_lines(place, source.entities[number], source.encoding)
            count(rows=lines.table.num_rows, rejected=lines.rejects.num_rows, nbytes=place.end - place.start)
        if lines.rejects.num_rows:
            yield beam.pvalue.TaggedOutput("bad", (number, lines.rejects))
        words = one_array(lines.table.column(WORD)).to_numpy()
        for partition, rows in partition_rows(words, counts[number]):
            yield (number, partition), lines.table.take(rows)


class _FindRows(beam.DoFn):
    def process(
        self,
        group: tuple[Partition, Groups],
        source: SourceFormat,
        raw: AnyPath,
    ) -> Iterator[tuple[int, Found] | beam.pvalue.TaggedOutput[Literal["repeated"], tuple[int, pa.Table]]]:
        (number, _), values = group
        entity = source.entities[number]
        empty = entities_schema(entity).append(pa.field(OFFSET, pa.int64())).empty_table()
        first, repeated = keep_first(pa.concat_tables([empty, *values["lines"]]), entity.key)
        if repeated.num_rows:
            rejects = repeated_rejects(repeated, raw / entity.file, entity, source.encoding)
            yield beam.pvalue.TaggedOutput("repeated", (number, rejects))
        for index, rows in find_needed(Entities(entity, first.combine_chunks()), values["needs"]):
            yield index, (number, rows)


def _write_rejects(
    group: tuple[int, Iterable[pa.Table]],
    source: SourceFormat,
    folder: AnyPath,
) -> list[Shard]:
    number, tables = group
    rejects = pa.concat_tables([REJECTS_SCHEMA.empty_table(), *tables])
    return write_entity_rejects(rejects, source.entities[number].file, folder)


class _JoinFound(beam.DoFn):
    def process(
        self,
        group: tuple[int, Groups],
        source: SourceFormat,
    ) -> Iterator[Records]:
        _, values = group
        (place,) = values["places"]
        found = list(values["found"])
        entities = [
            entities_of(entity, [rows for of, rows in found if of == number])
            for number, entity in enumerate(source.entities)
        ]
        yield count_join(count_read(place, source), entities)
