"""Ratings joined to users and movies that are broadcast: each worker process loads them once.

The tables are written once, into the staging folder, in an order in which a key is found by bisection;
a worker maps the files into memory, so the processes of one machine share them. `ShuffleJoin` is the
other way, for tables too large for a worker. Both join by `join_entities`, and give the same bytes.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.utils.shared import Shared

from featurestore.digest import bytes_digest
from featurestore.paths import AnyPath, write_whole
from pipelines.counters import StepCounters, add_to
from pipelines.entities import Entities, one_array, read_entities, write_entity_rejects
from pipelines.movielens import SourceFormat
from pipelines.read import ReadRatings, Records, reject_rows

JOINS = ("auto", "broadcast", "shuffle")
BROADCAST_BYTES = 256 << 20
"""Raw bytes of users and movies up to which ``auto`` broadcasts them.

A machine's workers map about twice as much; the one that reads them needs eight times as much for a moment:
2 GB, as a worker of 4 GB has.
"""
ENTITIES_FOLDER = "entities"


def join_entities(records: Records, entities: Sequence[Entities]) -> Records:
    """Append each entity's columns to the ratings; a rating whose user or movie is unknown is rejected.

    A column's dictionary holds the values of the keys in this batch, in the order of the batch's own
    dictionary of keys: it depends on the batch alone, not on what else the tables hold.
    """
    for entity in entities:
        key = entity.format.key
        column = one_array(records.table.column(key))
        codes = column.indices.to_numpy()  # (n,)
        rows = entity.find(column.dictionary)  # (distinct,)
        unknown = (rows < 0)[codes]
        if unknown.any():
            reasons = [
                f"{key} {text!r} is not in {entity.format.file}"
                for text in column.filter(pa.array(unknown)).to_pylist()
            ]
            records = reject_rows(records, unknown, key, reasons)
            codes = codes[~unknown]
        table = _append(records.table, entity, rows, codes)
        records = Records(table, records.rejects, records.place)
    return records


def _append(
    table: pa.Table, entity: Entities, rows: npt.NDArray[np.int64], codes: npt.NDArray[np.int32]
) -> pa.Table:
    """Append the values in ``rows`` (distinct,), of which row i of the table takes that of ``codes[i]``."""
    known = rows >= 0
    taken = entity.table.select(list(entity.format.columns)).take(pa.array(rows[known]))
    codes = (np.cumsum(known) - 1)[codes]
    for name in entity.format.columns:
        values = one_array(taken.column(name)).dictionary_encode()
        indices = pa.array(values.indices.to_numpy().take(codes))
        table = table.append_column(name, pa.DictionaryArray.from_arrays(indices, values.dictionary))
    return table


def count_join(records: Records, entities: Sequence[Entities]) -> Records:
    """Join one batch, with the step's counters."""
    with StepCounters("join") as count:
        joined = join_entities(records, entities)
        count(rows=joined.table.num_rows, rejected=records.table.num_rows - joined.table.num_rows)
    return joined


@dataclass(frozen=True)
class EntityFile:
    """A table of entities on disk; ``number`` says of which of the format's entities."""

    number: int
    path: AnyPath
    digest: str


def write_entities(entities: Entities, number: int, folder: AnyPath) -> EntityFile:
    """Write a table as an Arrow file, whole or not at all."""
    path = folder / ENTITIES_FOLDER / f"{number}.arrow"
    path.parent.mkdir(exist_ok=True)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, entities.table.schema) as writer:
        writer.write_table(entities.table)
    data = sink.getvalue()
    write_whole(path, data)
    return EntityFile(number, path, bytes_digest(data))


def load_entities(file: EntityFile, source: SourceFormat) -> Entities:
    """Map a table into memory, or read it where it is an object."""
    local = isinstance(file.path, Path)
    data = pa.memory_map(str(file.path)) if local else pa.py_buffer(file.path.read_bytes())
    table = pa.ipc.open_file(data).read_all()
    return Entities(source.entities[file.number], table)


@dataclass
class BroadcastJoin(beam.PTransform):
    """`ByteRange` -> `Records` with the columns of users and movies, which every worker holds whole.

    raw: folder of the source's files. folder: staging; tables and rejects are written there.
    """

    raw: AnyPath
    source: SourceFormat
    folder: AnyPath

    def expand(self, ranges: beam.PCollection) -> beam.PCollection:
        """Read users and movies, then join every range to them."""
        entities = (
            ranges.pipeline
            | "Entities" >> beam.Create(range(len(self.source.entities)))
            | "ReadEntities" >> beam.Map(_prepare, raw=self.raw, source=self.source, folder=self.folder)
        )
        return (
            ranges
            | "ReadRatings" >> ReadRatings(self.source)
            | "Join" >> beam.ParDo(_BroadcastJoin(), source=self.source, files=beam.pvalue.AsList(entities))
        )


def _prepare(number: int, raw: AnyPath, source: SourceFormat, folder: AnyPath) -> EntityFile:
    entity = source.entities[number]
    with StepCounters("entities") as count:
        entities, rejects = read_entities(raw / entity.file, entity, source.encoding)
        count(rows=entities.table.num_rows, rejected=rejects.num_rows)
    write_entity_rejects(rejects, entity.file, folder)
    return write_entities(entities, number, folder)


class _Held(list[Entities]):
    """The users and movies of a worker process; `Shared` refers to it weakly, which a list cannot be."""


class _BroadcastJoin(beam.DoFn):
    """Joins to what the process has loaded: one `Shared` for all tables, since Beam keeps one alive."""

    def __init__(self) -> None:
        self._shared = Shared()
        self._held: _Held | None = None

    def start_bundle(self) -> None:
        add_to("join_bundles")

    def process(self, records: Records, source: SourceFormat, files: list[EntityFile]) -> Iterator[Records]:
        files = sorted(files, key=lambda file: file.number)  # users before movies
        digests = tuple(file.digest for file in files)
        self._held = self._shared.acquire(functools.partial(_load, files, source), tag=digests)
        yield count_join(records, self._held)

    def teardown(self) -> None:
        self._held = None


def _load(files: Sequence[EntityFile], source: SourceFormat) -> _Held:
    add_to("join_loads")
    return _Held(load_entities(file, source) for file in files)
