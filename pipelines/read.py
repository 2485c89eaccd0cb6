"""Files to byte ranges to Arrow batches of ratings, and the records that could not be read.

A range owns the lines that start in it. Its bytes are parsed by Arrow as one block; a block that Arrow
refuses, or that holds anything but plain digits and separators, is halved, down to a small one that is
read line by line. So a bad line costs little, and the two paths agree on every line. A line ends in LF or
CRLF. The header that some files begin with is in no range: it is neither read nor rejected.
"""

import itertools
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from featurestore.encode import TEXT
from featurestore.manifest import REJECTS_SCHEMA
from featurestore.paths import AnyPath
from featurestore.splits import FILE
from pipelines.counters import StepCounters
from pipelines.movielens import (
    FIRST_TIMESTAMP,
    HEADER_BYTES,
    LAST_TIMESTAMP,
    RATING_COLUMNS,
    BadRecord,
    SourceFormat,
    header_size,
    parse_rating,
    rating_of,
)

MIN_BLOCK_BYTES = 1 << 16
MAX_BLOCK_BYTES = 16 << 20
LINE_BYTES = 1 << 16
"""Read at a time to find the end of a line: a request, where the file is an object."""
MAX_RAW = 4096
"""Characters of a bad line that a reject keeps: a file without line ends is one line."""
RATINGS_SCHEMA = pa.schema(
    [("user_id", TEXT), ("movie_id", TEXT), ("rating", pa.float32()), ("timestamp", pa.int64())]
)
# Arrow's parser strips white space around a number and the slow path does not: such a block is not plain.
_ODD_BYTES = tuple(bytes([byte]) for byte in b" \t\x0b\x0c\x00")

Parsed = tuple[pa.Table, list[dict[str, object]]]
"""Ratings, and the rejects among their lines."""


@dataclass(frozen=True)
class ByteRange:
    """The lines of ``file`` that start at ``start`` or later and before ``end``; the index-th of count."""

    file: AnyPath
    start: int
    end: int
    index: int
    count: int


@dataclass(frozen=True)
class Records:
    """Ratings read from one range, with what has been rejected from it so far.

    table: one row a good record, in the order of the file. rejects: as `REJECTS_SCHEMA`. place: the range,
    without the header.
    """

    table: pa.Table
    rejects: pa.Table
    place: ByteRange


class RecordsCoder(beam.coders.Coder):
    """Pickles `Records`, and knows their size without: Beam asks it of most batches after every step."""

    def encode(self, value: Records) -> bytes:
        """Return the records as bytes."""
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def decode(self, encoded: bytes) -> Records:
        """Return what was encoded."""
        records: Records = pickle.loads(encoded)  # noqa: S301 - from another worker of this pipeline
        return records

    def estimate_size(self, value: Records) -> int:
        """Return about how many bytes they take."""
        size: int = value.table.nbytes
        return size


beam.coders.registry.register_coder(Records, RecordsCoder)


def plan_ranges(file: AnyPath, size: int, target: int) -> list[ByteRange]:
    """Divide a file into ranges of about ``target`` bytes; depends on nothing but the two sizes."""
    count = max(1, -(-size // target))
    edges = [size * index // count for index in range(count + 1)]
    return [
        ByteRange(file, start, end, index, count)
        for index, (start, end) in enumerate(itertools.pairwise(edges))
    ]


def plan_files(files: Sequence[AnyPath], target: int) -> list[ByteRange]:
    """Divide files, one after the other, into ranges of about ``target`` bytes that are numbered through."""
    places = [place for file in files for place in plan_ranges(file, file.stat().st_size, target)]
    return [replace(place, index=index, count=len(places)) for index, place in enumerate(places)]


def read_bytes(place: ByteRange) -> tuple[bytes, int]:
    """Return the range's whole lines and the offset at which they begin."""
    with place.file.open("rb") as file:
        begin = _line_start(file, place.start)
        end = _line_start(file, place.end)
        file.seek(begin)
        return file.read(max(0, end - begin)), begin


def past_header(place: ByteRange, header: str | None) -> ByteRange:
    """Return the range without the header, which only the one that begins the file holds.

    A first line that is another one than ``header`` stays: it is a record, good or bad.
    """
    if header is None or place.start > 0:
        return place
    with place.file.open("rb") as file:
        return replace(place, start=header_size(file.read(HEADER_BYTES), header))


def _line_start(file: IO[bytes], offset: int) -> int:
    """Return where the first line that starts at ``offset`` or later begins."""
    if offset == 0:
        return 0
    at = offset - 1
    file.seek(at)
    while block := file.read(LINE_BYTES):
        end = block.find(b"\n")
        if end >= 0:
            return at + end + 1
        at += len(block)
    return at


def read_ratings(place: ByteRange, source: SourceFormat) -> Records:
    """Read the ratings of one range: shapes as `RATINGS_SCHEMA`, rows in the order of the file.

    Where the format has several files of ratings there is also the column `FILE`, its name.
    """
    place = past_header(place, source.header)
    parsed = list(_parse(*read_bytes(place), place.file.name, source.separator))
    table = pa.concat_tables(table for table, _ in parsed).unify_dictionaries().combine_chunks()
    if source.rating_files:
        name = pa.array(np.zeros(table.num_rows, np.int32))
        table = table.append_column(FILE, pa.DictionaryArray.from_arrays(name, pa.array([place.file.name])))
    rejects = itertools.chain.from_iterable(rejected for _, rejected in parsed)
    return Records(table, rejects_table(list(rejects)), place)


def _parse(block: bytes, offset: int, file: str, separator: str) -> Iterator[Parsed]:
    """Parse whole lines at once if they allow it, else in halves, and line by line what is small and odd."""
    table = _parse_block(block, separator) if 0 < len(block) <= MAX_BLOCK_BYTES else None
    middle = block.find(b"\n", len(block) // 2) + 1
    if table is not None:
        yield table, []
    elif len(block) <= MIN_BLOCK_BYTES or middle in (0, len(block)):
        yield _parse_lines(block, offset, file, separator)
    else:
        yield from _parse(block[:middle], offset, file, separator)
        yield from _parse(block[middle:], offset + middle, file, separator)


def _parse_block(block: bytes, separator: str) -> pa.Table | None:
    """Parse a block of plain, well-formed lines; None if it is not one, and must be read line by line."""
    codes = np.frombuffer(block, np.uint8)
    lines = int(np.count_nonzero(codes == ord("\n"))) + (not block.endswith(b"\n"))
    if not _is_plain(block, codes, separator, lines):
        return None
    try:
        table = _read_csv(block, separator)
    except pa.ArrowInvalid:
        return None
    if table.num_rows != lines or not _is_valid(table):
        return None
    ratings = table.column("rating").combine_chunks()
    stars = pa.array([rating_of(text) for text in ratings.dictionary.to_pylist()], pa.float32())
    return table.set_column(2, "rating", stars.take(ratings.indices))


def _is_plain(block: bytes, codes: npt.NDArray[np.uint8], separator: str, lines: int) -> bool:
    """Whether no byte is above ':' or odd, and doubled separators stand where they should.

    codes: the bytes of ``block``. In each of ``lines`` Arrow will find seven columns, of which it matters
    that three are empty; that the others are not is seen from their values.
    """
    if codes.max() > ord(":") or any(byte in block for byte in _ODD_BYTES if byte != separator.encode()):
        return False
    if b"\r" in block and not _all_crlf(codes):
        return False
    if len(separator) == 1:
        return True
    single = codes == ord(separator[0])
    return bool(np.count_nonzero(single[1:] & single[:-1]) == lines * (len(RATING_COLUMNS) - 1))


def _all_crlf(codes: npt.NDArray[np.uint8]) -> bool:
    """Whether every CR stands before an LF: Arrow would end a line at any."""
    after = np.flatnonzero(codes == ord("\r")) + 1
    return bool(after[-1] < len(codes) and (codes[after] == ord("\n")).all())


def _read_csv(block: bytes, separator: str) -> pa.Table:
    """Parse with a one-byte delimiter: ``1::2`` is then 1, an empty column and 2."""
    names: list[str] = []
    for column in RATING_COLUMNS:
        names += [column, *(f"{column}{gap}" for gap in range(1, len(separator)))]
    names = names[: len(names) - len(separator) + 1]
    types = {"user_id": TEXT, "movie_id": TEXT, "rating": TEXT, "timestamp": pa.int64()}
    return pa.csv.read_csv(
        pa.BufferReader(block),
        read_options=pa.csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
        parse_options=pa.csv.ParseOptions(delimiter=separator[0], quote_char=False, escape_char=False),
        convert_options=pa.csv.ConvertOptions(
            column_types=types,
            include_columns=list(RATING_COLUMNS),
            check_utf8=False,  # no byte is above ':'
            null_values=[],
            strings_can_be_null=False,
        ),
    )


def _is_valid(table: pa.Table) -> bool:
    """Whether ids are digits, ratings are ratings and timestamps times; checked on distinct values."""
    ids = all(pc.all(pc.ascii_is_decimal(_dictionary(table, key))).as_py() for key in ("user_id", "movie_id"))
    times = pc.min_max(table.column("timestamp")).as_py()
    if not ids or times["min"] < FIRST_TIMESTAMP or times["max"] > LAST_TIMESTAMP:
        return False
    try:
        return all(rating_of(text) for text in _dictionary(table, "rating").to_pylist())
    except BadRecord:
        return False


def _dictionary(table: pa.Table, column: str) -> pa.Array:
    return table.column(column).chunk(0).dictionary


def _parse_lines(block: bytes, offset: int, file: str, separator: str) -> Parsed:
    """Read a block line by line: the reference for `_parse_block`, and the source of rejects."""
    rows, rejects = [], []
    for line_offset, raw in _lines(block, offset):
        line = raw.decode("utf-8", errors="backslashreplace")
        try:
            rows.append(parse_rating(line, separator))
        except BadRecord as error:
            rejects.append(reject(file, line_offset, error.column, line, error.reason))
    columns = list(zip(*rows, strict=True)) or [()] * len(RATING_COLUMNS)
    arrays = [_column(values, kind) for values, kind in zip(columns, RATINGS_SCHEMA.types, strict=True)]
    return pa.table(arrays, schema=RATINGS_SCHEMA), rejects


def _column(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).dictionary_encode() if kind == TEXT else pa.array(values, kind)


def _lines(block: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the bytes of each line that is not empty, without its end."""
    for match in re.finditer(rb"[^\n]+", block):
        line = match.group().removesuffix(b"\r")
        if line:
            yield offset + match.start(), line


def reject(file: str, offset: int, column: str, raw: str, reason: str) -> dict[str, object]:
    """Return one row of a rejects table."""
    return {
        "file": file,
        "byte_offset": offset,
        "source_column": column,
        "raw": raw[:MAX_RAW],
        "reason": reason[:MAX_RAW],
    }


def rejects_table(rows: Sequence[dict[str, object]]) -> pa.Table:
    """Return rejects as a table of `REJECTS_SCHEMA`."""
    return pa.Table.from_pylist(list(rows), schema=REJECTS_SCHEMA)


def reject_rows(records: Records, bad: npt.NDArray[np.bool_], column: str, reasons: Sequence[str]) -> Records:
    """Move the rows marked in ``bad`` (n,) from the table to the rejects, one reason for each.

    Where a row came from is not carried along: the range is read again, for the few that need it.
    """
    if not bad.any():
        return records
    data, offset = read_bytes(records.place)
    earlier = set(records.rejects.column("byte_offset").to_pylist())
    lines = [(at, raw) for at, raw in _lines(data, offset) if at not in earlier]
    rows = [
        reject(
            records.place.file.name,
            lines[row][0],
            column,
            lines[row][1].decode("utf-8", "backslashreplace"),
            reason,
        )
        for row, reason in zip(np.flatnonzero(bad).tolist(), reasons, strict=True)
    ]
    rejects = pa.concat_tables([records.rejects, rejects_table(rows)]).sort_by("byte_offset")
    return Records(records.table.filter(pa.array(~bad)), rejects, records.place)


@dataclass
class ReadRatings(beam.PTransform):
    """Byte ranges -> `Records`."""

    source: SourceFormat

    def expand(self, ranges: beam.PCollection) -> beam.PCollection:
        """Spread the ranges over the workers and read each."""
        return (
            ranges | "Spread" >> beam.Reshuffle() | "Parse" >> beam.ParDo(_ReadRatings(), source=self.source)
        )


class _ReadRatings(beam.DoFn):
    def process(self, place: ByteRange, source: SourceFormat) -> Iterator[Records]:
        yield count_read(place, source)


def count_read(place: ByteRange, source: SourceFormat) -> Records:
    """Read one range, with the step's counters."""
    with StepCounters("read") as count:
        records = read_ratings(place, source)
        count(rows=records.table.num_rows, rejected=records.rejects.num_rows, nbytes=place.end - place.start)
    return records
