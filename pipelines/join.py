"""Users and movies: read whole, broadcast, and joined to the ratings by index."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.manifest import Shard
from featurestore.paths import AnyPath
from pipelines.counters import StepCounters
from pipelines.movielens import BadRecord, EntityFormat, Fields, SourceFormat, header_size
from pipelines.read import Records, reject, reject_rows, rejects_table
from pipelines.shards import write_parquet, write_report


@dataclass(frozen=True)
class Entities:
    """The users or movies of a source: ``columns`` of dictionary text, a row for each of ``keys``."""

    key: str
    file: str
    keys: pa.Array  # string (m,)
    columns: dict[str, pa.Array]  # name -> dictionary text (m,)
    rejects: pa.Table


def read_entities(file: AnyPath, entity: EntityFormat, encoding: str) -> Entities:
    """Read one file of users or movies, line by line: it is small beside the ratings."""
    found: dict[str, Fields] = {}
    rejects = []
    data = file.read_bytes()
    offset = header_size(data, entity.header)
    for raw in data[offset:].splitlines(keepends=True):
        line = raw.rstrip(b"\r\n").decode(encoding, errors="backslashreplace")
        try:
            if line:
                _add_entity(found, entity, line)
        except BadRecord as error:
            rejects.append(reject(file.name, offset, error.column, line, error.reason))
        offset += len(raw)
    columns = {
        column: pa.array([fields[column] for fields in found.values()], pa.string()).dictionary_encode()
        for column in entity.columns
    }
    return Entities(
        entity.key, entity.file, pa.array(list(found), pa.string()), columns, rejects_table(rejects)
    )


def _add_entity(found: dict[str, Fields], entity: EntityFormat, line: str) -> None:
    fields = entity.divide(line)
    key = fields[entity.key]
    if key in found:
        raise BadRecord(entity.key, f"{entity.key} {key!r} stands on an earlier line too; the first is kept")
    found[key] = fields


def join_entities(records: Records, entities: Sequence[Entities]) -> Records:
    """Append each entity's columns to the ratings; a rating whose user or movie is unknown is rejected."""
    for entity in entities:
        column = records.table.column(entity.key).combine_chunks()
        rows = _entity_rows(column, entity)
        unknown = rows < 0
        if unknown.any():
            reasons = [
                f"{entity.key} {key!r} is not in {entity.file}"
                for key in column.filter(pa.array(unknown)).to_pylist()
            ]
            records = reject_rows(records, unknown, entity.key, reasons)
            rows = rows[~unknown]
        table = records.table
        for name, values in entity.columns.items():
            codes = values.indices.to_numpy()[rows]
            table = table.append_column(
                name, pa.DictionaryArray.from_arrays(pa.array(codes), values.dictionary)
            )
        records = Records(table, records.rejects, records.place)
    return records


def _entity_rows(column: pa.Array, entity: Entities) -> npt.NDArray[np.int32]:
    """Return the entity's row for each value of a dictionary column, -1 where there is none: (n,)."""
    known = pc.fill_null(pc.index_in(column.dictionary, value_set=entity.keys), -1).to_numpy()
    taken: npt.NDArray[np.int32] = known[column.indices.to_numpy()]
    return taken


@dataclass
class ReadEntities(beam.PTransform):
    """The source's users and movies, one `Entities` a file."""

    folder: AnyPath
    source: SourceFormat

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Read each file once."""
        return (
            pipeline
            | "Files" >> beam.Create(range(len(self.source.entities)))
            | "Read" >> beam.Map(_read_entity, folder=self.folder, source=self.source)
        )


def _read_entity(number: int, folder: AnyPath, source: SourceFormat) -> Entities:
    entity = source.entities[number]
    return read_entities(folder / entity.file, entity, source.encoding)


@dataclass
class JoinEntities(beam.PTransform):
    """`Records` -> `Records` with the columns of users and movies, which are broadcast."""

    entities: beam.PCollection

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Join every batch to the broadcast entities."""
        return records | "Join" >> beam.ParDo(_JoinEntities(), entities=beam.pvalue.AsList(self.entities))


class _JoinEntities(beam.DoFn):
    def process(self, records: Records, entities: list[Entities]) -> Iterator[Records]:
        ordered = sorted(entities, key=lambda entity: entity.file, reverse=True)  # users before movies
        with StepCounters("join") as count:
            joined = join_entities(records, ordered)
            count(rows=joined.table.num_rows, rejected=records.table.num_rows - joined.table.num_rows)
        yield joined


@dataclass
class WriteEntityRejects(beam.PTransform):
    """`Entities` -> a shard of rejects for each file that has bad lines, with a report."""

    folder: AnyPath

    def expand(self, entities: beam.PCollection) -> beam.PCollection:
        """Write what could not be read."""
        return entities | "Write" >> beam.FlatMap(_write_rejects, folder=self.folder)


def _write_rejects(entities: Entities, folder: AnyPath) -> Iterator[Shard]:
    if entities.rejects.num_rows:
        shard = write_parquet(entities.rejects, folder, f"rejects/{entities.file}.parquet")
        write_report(folder, f"entities-{entities.file}", shard)
        yield shard
