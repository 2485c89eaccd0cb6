"""A stream of Arrow batches as a table for a person, CSV, JSON or Parquet."""

import contextlib
import datetime
import decimal
import itertools
import json
import math
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

TABLE_ROWS = 50
"""Rows that a table for a person shows; the other formats have all."""


def write_table(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    """Write the first rows as a table, and whether there are more."""
    names = reader.schema.names
    rows = list(itertools.islice(_rows(reader), TABLE_ROWS + 1))
    if names:
        sink.write(table_text(names, rows[:TABLE_ROWS]).encode())
    if len(rows) > TABLE_ROWS:
        sink.write(f"the first {TABLE_ROWS} rows; --format csv, json or parquet gives all\n".encode())


def write_csv(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    """Write CSV with a header; lists, structs and maps as JSON."""
    nested = [number for number, kind in enumerate(reader.schema.types) if pa.types.is_nested(kind)]
    schema = reader.schema
    for number in nested:
        schema = schema.set(number, pa.field(schema.names[number], pa.string()))
    with pa.csv.CSVWriter(sink, schema) as writer:
        for batch in reader:
            columns = batch.columns
            for number in nested:
                columns[number] = pa.array(
                    [_json(value) for value in columns[number].to_pylist()], pa.string()
                )
            writer.write_batch(pa.record_batch(columns, schema=schema))


def write_json(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    """Write a JSON array of objects, a line each."""
    names = reader.schema.names
    before = b"[\n"
    for row in _rows(reader):
        sink.write(before + _json(dict(zip(names, row, strict=True))).encode())
        before = b",\n"
    sink.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def write_parquet(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    """Write a Parquet file."""
    with pq.ParquetWriter(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


WRITERS: Mapping[str, Callable[[pa.RecordBatchReader, IO[bytes]], None]] = {
    "table": write_table,
    "csv": write_csv,
    "json": write_json,
    "parquet": write_parquet,
}
"""By format; they raise pyarrow.ArrowException for a type that the format cannot hold."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears when it is whole; pipes and devices are written directly."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as sink:
            yield sink
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as sink:
            yield sink
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def table_text(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as a table for a person, as wide as it needs where it is not for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 1000)
    with console.capture() as captured:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def progress_bar(err: Console) -> Progress:
    """Return a bar that shows how much of a task is done and how long the rest takes, on a terminal alone."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def moment(seconds: int | None) -> str | None:
    """Return unix seconds as ISO 8601, UTC."""
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.12g}"
    return str(value)


def _rows(reader: pa.RecordBatchReader) -> Iterator[tuple[object, ...]]:
    for batch in reader:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _json(value: object) -> str:
    try:
        return json.dumps(value, default=_json_value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN or infinity, which JSON does not have
        return json.dumps(finite(value), default=_json_value, ensure_ascii=False)


def _json_value(value: object) -> object:
    match value:
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case bytes():
            return value.hex()
    return str(value)


def finite(value: object) -> object:
    """Return ``value`` with a null for each number that is none."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
    return value
