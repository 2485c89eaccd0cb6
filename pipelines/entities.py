"""Users and movies: their lines, and tables of them in which a key is found by bisection.

Lines are read range by range, so that a large file is read by many workers; a table of lines has

    key_word     uint64, 64-bit hash of the key
    byte_offset  int64, where the line begins: of several lines with one key the first counts
    <key>, <columns of the `EntityFormat`>   text, not null

`Entities` has the same columns but the offset, one row a key, in the order of the words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from featurestore.manifest import Shard
from featurestore.paths import AnyPath
from featurestore.shards import write_parquet
from pipelines.movielens import BadRecord, EntityFormat, Fields
from pipelines.read import ByteRange, past_header, plan_ranges, read_bytes, reject, rejects_table
from pipelines.reports import write_report

WORD = "key_word"
OFFSET = "byte_offset"
RANGE_BYTES = 4 << 20
"""Raw bytes of users or movies that are read at a time: lines are Python objects until the range ends."""

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Entities:
    """The users or movies of a source, or some of them: one row a key, in the order of the keys' words.

    table: `key_word`, the key and the columns of ``format``, each in one chunk.
    """

    format: EntityFormat
    table: pa.Table

    def find(self, keys: pa.Array) -> npt.NDArray[np.int64]:
        """Return each key's row (n,), -1 where it is unknown.

        The cost is n * log2(rows) and nothing is built beforehand: batches may be small and entities many.
        """
        words, wanted = one_array(self.table.column(WORD)).to_numpy(), key_words(keys)
        rows = np.searchsorted(words, wanted)
        found = np.full(len(keys), -1, np.int64)
        left = np.arange(len(keys))
        while len(left := left[_equal_at(words, rows[left], wanted[left])]):
            known = self.table.column(self.format.key).take(pa.array(rows[left]))
            same = pc.equal(one_array(known), keys.take(pa.array(left))).to_numpy(zero_copy_only=False)
            found[left[same]] = rows[left[same]]
            left = left[~same]
            rows[left] += 1  # another key with the same word: one in 2**64 pairs
        return found


def _equal_at(words: Words, rows: npt.NDArray[np.int64], wanted: Words) -> npt.NDArray[np.bool_]:
    inside = rows < len(words)
    inside[inside] = words[rows[inside]] == wanted[inside]
    return inside


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, without a copy if it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def key_words(keys: pa.Array) -> Words:
    """Return the 64-bit word of each key (n,): it orders a table and says which partition has the key."""
    values = keys.cast(pa.binary()).to_pylist()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, values), np.uint64, len(values))


def entities_of(entity: EntityFormat, tables: Sequence[pa.Table]) -> Entities:
    """Return tables without common keys as one."""
    table = pa.concat_tables([entities_schema(entity).empty_table(), *tables])
    return Entities(entity, table.sort_by([(WORD, "ascending"), (entity.key, "ascending")]).combine_chunks())


def entities_schema(entity: EntityFormat) -> pa.Schema:
    """Return the columns of `Entities`."""
    texts = [(name, pa.string()) for name in (entity.key, *entity.columns)]
    return pa.schema([(WORD, pa.uint64()), *texts])


@dataclass(frozen=True)
class EntityLines:
    """What was read of one range: the good lines, in the order of the file, and the bad ones."""

    table: pa.Table
    rejects: pa.Table


def plan_entity_ranges(file: AnyPath, target: int) -> list[ByteRange]:
    """Divide a file of users or movies into ranges of about ``target`` bytes."""
    return plan_ranges(file, file.stat().st_size, target)


def read_entity_lines(place: ByteRange, entity: EntityFormat, encoding: str) -> EntityLines:
    """Read the users or movies of one range, line by line."""
    found: list[Fields] = []
    offsets, rejects = [], []
    for offset, line in _lines(*read_bytes(past_header(place, entity.header)), encoding):
        try:
            found.append(entity.divide(line))
            offsets.append(offset)
        except BadRecord as error:
            rejects.append(reject(place.file.name, offset, error.column, line, error.reason))
    texts = [
        pa.array([fields[name] for fields in found], pa.string()) for name in (entity.key, *entity.columns)
    ]
    table = pa.table([key_words(texts[0]), *texts], schema=entities_schema(entity))
    return EntityLines(
        table.append_column(OFFSET, pa.array(offsets, pa.int64())),
        rejects_table(rejects),
    )


def _lines(data: bytes, offset: int, encoding: str) -> Iterator[tuple[int, str]]:
    """Yield the offset and the text of each line that is not empty."""
    for raw in data.splitlines(keepends=True):
        line = raw.rstrip(b"\r\n").decode(encoding, errors="backslashreplace")
        if line:
            yield offset, line
        offset += len(raw)


def keep_first(lines: pa.Table, key: str) -> tuple[pa.Table, pa.Table]:
    """Return, of several lines with one key, the first in the file; and the others.

    lines: in any order, all those of any key they have. The first table is in the order of the words,
    as `Entities` needs it; the second in the order of the file.
    """
    ordered = lines.sort_by([(WORD, "ascending"), (key, "ascending"), (OFFSET, "ascending")])
    keys = one_array(ordered.column(key))
    again = np.zeros(len(keys), np.bool_)
    again[1:] = pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    first = ordered.filter(pa.array(~again)).drop_columns([OFFSET])
    return first, ordered.filter(pa.array(again)).sort_by(OFFSET)


def repeated_rejects(repeated: pa.Table, file: AnyPath, entity: EntityFormat, encoding: str) -> pa.Table:
    """Return the rejects of lines whose key stands on an earlier line; their text is read again."""
    rows = []
    offsets, keys = repeated.column(OFFSET).to_pylist(), repeated.column(entity.key).to_pylist()
    for offset, key in zip(offsets, keys, strict=True):
        alone = ByteRange(file, offset, offset + 1, 0, 1)  # the line that begins here
        _, line = next(_lines(*read_bytes(alone), encoding))
        reason = f"{entity.key} {key!r} stands on an earlier line too; the first is kept"
        rows.append(reject(file.name, offset, entity.key, line, reason))
    return rejects_table(rows)


def read_entities(
    file: AnyPath, entity: EntityFormat, encoding: str, target: int = RANGE_BYTES
) -> tuple[Entities, pa.Table]:
    """Read one file of users or movies, about ``target`` bytes at a time; also return its rejects."""
    parts = [read_entity_lines(place, entity, encoding) for place in plan_entity_ranges(file, target)]
    first, repeated = keep_first(pa.concat_tables([part.table for part in parts]), entity.key)
    rejects = [*(part.rejects for part in parts), repeated_rejects(repeated, file, entity, encoding)]
    return Entities(entity, first.combine_chunks()), pa.concat_tables(rejects)


def write_entity_rejects(rejects: pa.Table, file: str, folder: AnyPath) -> list[Shard]:
    """Write the bad lines of a file of users or movies, in its order, with a report; or nothing."""
    if not rejects.num_rows:
        return []
    shard = write_parquet(rejects.sort_by(OFFSET).combine_chunks(), folder, f"rejects/{file}.parquet")
    write_report(folder, f"entities-{file}", shard)
    return [shard]
