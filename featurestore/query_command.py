"""The commands that ask: `slotstore query`, `features`, `splits` and `snapshots`."""

import datetime
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import click
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featurestore.errors import ArtifactError, NotFound
from featurestore.snapshot import KINDS, Snapshot, list_snapshots, open_snapshot
from featurestore.store import FeatureStore

TABLE_ROWS = 50
"""Rows that a table for a person shows; the other formats have all."""

store_option = click.option(
    "--store", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the store."
)
snapshot_option = click.option(
    "--snapshot", "snapshot_id", metavar="ID", help="A snapshot, or the start of its id. Default: the newest."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")

QUERY_EPILOG = """\b
Views: examples, train, validation, test, vocabulary, slots, lookups, rejects.
Functions: slot(feature, value, lookup), xxh32(value, seed).

\b
Examples:
  slotstore query "SELECT * FROM examples LIMIT 5" --store store
  slotstore query "SELECT slot('user_id', '1193', 0)" --store store
  slotstore query "SELECT title, count(*) n FROM train GROUP BY ALL ORDER BY n DESC LIMIT 10" --store store
  slotstore query "FROM slots WHERE slot = 17" --store store --format csv
  slotstore query "FROM train" --store store --format parquet --output train.parquet"""


@click.command(epilog=QUERY_EPILOG)
@click.argument("sql")
@store_option
@snapshot_option
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True,
    help=f"table shows the first {TABLE_ROWS} rows to a person, the others stream all.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
def query(sql: str, store: Path, snapshot_id: str | None, form: str, output: Path | None) -> None:
    """Ask a snapshot in DuckDB's SQL."""
    with FeatureStore(store, snapshot_id) as features:
        reader = features.read(sql)
        write = WRITERS[form]
        if output is None:
            write(reader, sys.stdout.buffer)
        else:
            with output.open("wb") as sink:
                write(reader, sink)


def _write_csv(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    with pa.csv.CSVWriter(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _write_json(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    """Write a JSON array of objects, a line each."""
    sink.write(b"[")
    before = b"\n"
    for batch in reader:
        for row in batch.to_pylist():
            sink.write(before + json.dumps(row, default=_json_value).encode())
            before = b",\n"
    sink.write(b"\n]\n")


def _json_value(value: object) -> str:
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


def _write_parquet(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    with pq.ParquetWriter(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _write_table(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    rows: list[dict[str, Any]] = []
    for batch in reader:
        rows += batch.slice(0, TABLE_ROWS + 1 - len(rows)).to_pylist()
        if len(rows) > TABLE_ROWS:
            break
    text = table_text(reader.schema.names, [list(row.values()) for row in rows[:TABLE_ROWS]])
    sink.write(text.encode())
    if len(rows) > TABLE_ROWS:
        sink.write(f"the first {TABLE_ROWS} rows; --format csv, json or parquet gives all\n".encode())


WRITERS: Mapping[str, Callable[[pa.RecordBatchReader, IO[bytes]], None]] = {
    "table": _write_table, "csv": _write_csv, "json": _write_json, "parquet": _write_parquet,
}


def table_text(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as a table for a person, as wide as it needs where it is not for a terminal."""
    table = Table(*map(escape, names), box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 1000)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _cell(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _show(names: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
    else:
        click.echo(table_text(names, rows), nl=False)


@click.command()
@store_option
@snapshot_option
@json_option
def features(store: Path, snapshot_id: str | None, *, as_json: bool) -> None:
    """Show each feature: its column, seeds, distinct values, examples and slots in use."""
    with FeatureStore(store, snapshot_id) as opened:
        counted = opened.sql(
            "SELECT feature, count(DISTINCT value) AS values, sum(count) FILTER (lookup = 0) AS examples, "
            "count(DISTINCT slot) AS slots FROM slots GROUP BY feature"
        ).to_pylist()
        facts = {row["feature"]: row for row in counted}
        rows = [
            (
                feature.name, feature.column, list(feature.seeds),
                *(int(facts[feature.name][key]) for key in ("values", "examples", "slots")),
            )
            for feature in opened.spec.features
        ]
        names = ["feature", "column", "seeds", "values", "examples", "slots"]
        _show(names, rows, as_json=as_json)
        if not as_json:
            table = opened.spec.table
            click.echo(f"table: {table.num_slots:,} slots x {table.dim}, fingerprint {opened.spec.fingerprint}")


@click.command()
@store_option
@snapshot_option
@json_option
def splits(store: Path, snapshot_id: str | None, *, as_json: bool) -> None:
    """Show each split: its rows, its first and last event time, and the rule that cuts it."""
    with FeatureStore(store, snapshot_id) as opened:
        times = {split: opened.sql(f"SELECT min(timestamp), max(timestamp) FROM {split}") for split in opened.splits.rows}
        rows = [
            (split, rows, *(_moment(column[0].as_py()) for column in times[split].columns))
            for split, rows in opened.splits.rows.items()
        ]
        _show(["split", "rows", "first", "last"], rows, as_json=as_json)
        if not as_json:
            rule = opened.splits.rule
            click.echo(f"rule: {rule.kind}, fractions {list(rule.fractions)}, boundaries {list(opened.splits.boundaries)}")


def _moment(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


@click.group()
def snapshots() -> None:
    """List, show and verify snapshots."""


@snapshots.command("list")
@store_option
@json_option
def list_command(store: Path, *, as_json: bool) -> None:
    """List the store's snapshots, oldest first."""
    found = list_snapshots(store)
    if not found:
        raise NotFound(f"no snapshot in {store}: make one with `slotstore ingest SOURCE --store {store}`")
    newest = open_snapshot(store).manifest.id
    rows = [_listed(snapshot, newest) for snapshot in found]
    _show(["snapshot", "created", "source", "examples", "rejects", "fingerprint", "newest"], rows, as_json=as_json)


def _listed(snapshot: Snapshot, newest: str) -> tuple[object, ...]:
    manifest = snapshot.manifest
    counts = manifest.counts
    return (
        manifest.id, manifest.created, manifest.source["uri"], counts["examples"], counts["rejects"],
        manifest.fingerprint, "yes" if manifest.id == newest else "",
    )


@snapshots.command()
@click.argument("snapshot_id", metavar="[ID]", required=False)
@store_option
def show(snapshot_id: str | None, store: Path) -> None:
    """Print the manifest of a snapshot, the newest by default, as JSON."""
    click.echo(open_snapshot(store, snapshot_id).manifest.to_json(), nl=False)


@snapshots.command()
@click.argument("snapshot_id", metavar="[ID]", required=False)
@store_option
def verify(snapshot_id: str | None, store: Path) -> None:
    """Check every byte, count and digest of a snapshot against its manifest."""
    snapshot = open_snapshot(store, snapshot_id)
    problems = snapshot.problems(deep=True)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ArtifactError(f"snapshot {snapshot.manifest.id} is damaged:\n{listed}\nIngest the source again to mend it.")
    shards = sum(len(snapshot.manifest.shards[kind]) for kind in KINDS)
    click.echo(f"snapshot {snapshot.manifest.id} is intact: {shards} shards, {snapshot.manifest.counts['examples']:,} examples")
