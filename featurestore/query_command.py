"""The commands that ask: `slotstore query`, `features` and `splits`."""

import sys
from pathlib import Path

import click
import pyarrow as pa

from featurestore.errors import QueryError
from featurestore.options import OUTPUT_FILE, json_option, show_rows, snapshot_option, store_option
from featurestore.output import TABLE_ROWS, WRITERS, moment, whole_file
from featurestore.paths import AnyPath
from featurestore.store import FeatureStore
from featurestore.wording import dropped_text, rule_text

QUERY_EPILOG = """\b
Views: examples, train, validation, test, vocabulary, slots, lookups, rejects, hash_collisions.
Functions: slot(feature, value, lookup), xxh32(value, seed), num_slots().

\b
Tables for any number of slots n; without it, for the snapshot's own num_slots():
  slots(n)              a row for each value and lookup, as the view has them
  collisions(n)         by feature: values, and their traffic, that share slots: with the same, others, any
  value_collisions(n)   by value: how many of its slots are shared
  lookup_collisions(n)  by lookup: slots used, values that share one, pairs
  feature_pairs(n)      by pair of features: slots of both, pairs, values, traffic
  inseparable(n)        groups of values that no lookup separates
  slot_load(n)          by slot: uses, values, features, traffic; slot_histogram(n) counts slots by uses
  feature_load(n), taken_slots(n), value_slots(n)   what these are made of

\b
Examples:
  slotstore query "SELECT * FROM examples LIMIT 5" --store store
  slotstore query "SELECT slot('user_id', '1193', 0)" --store store
  slotstore query "SELECT title, count(*) n FROM train GROUP BY ALL ORDER BY n DESC LIMIT 10" --store store
  slotstore query "FROM slots WHERE slot = 17" --store store --format csv
  slotstore query "FROM value_collisions(65536) WHERE with_any = taken ORDER BY count DESC" --store store
  slotstore query "FROM train" --store store --format parquet --output train.parquet"""


@click.command(epilog=QUERY_EPILOG)
@click.argument("sql")
@store_option
@snapshot_option
@click.option(
    "--format",
    "form",
    type=click.Choice(list(WRITERS)),
    default="table",
    show_default=True,
    help=f"table shows the first {TABLE_ROWS} rows to a person, the others stream all.",
)
@click.option(
    "--output",
    "-o",
    type=OUTPUT_FILE,
    help="Write to a file, which appears when it is whole, instead of stdout.",
)
def query(sql: str, store: AnyPath, snapshot_id: str | None, form: str, output: Path | None) -> None:
    """Ask a snapshot in DuckDB's SQL."""
    with FeatureStore(store, snapshot_id) as features:
        reader = features.read(sql)
        try:
            if output is None:
                WRITERS[form](reader, sys.stdout.buffer)
            else:
                _write_file(reader, form, output)
        except pa.ArrowException as error:
            raise QueryError(
                f"the result cannot be written as {form}: {error}\nCast the column, for example to VARCHAR."
            ) from error


def _write_file(reader: pa.RecordBatchReader, form: str, output: Path) -> None:
    try:
        with whole_file(output) as sink:
            WRITERS[form](reader, sink)
    except OSError as error:
        raise click.FileError(str(output), hint=error.strerror or str(error)) from error


@click.command()
@store_option
@snapshot_option
@json_option
def features(store: AnyPath, snapshot_id: str | None, *, as_json: bool) -> None:
    """Show each feature: its column, seeds, distinct values, examples and slots in use."""
    names = ["feature", "column", "seeds", "values", "examples", "slots"]
    with FeatureStore(store, snapshot_id) as opened:
        counted = opened.sql(
            "SELECT feature, count(DISTINCT value), coalesce(sum(count) FILTER (lookup = 0), 0)::BIGINT, "
            "count(DISTINCT slot) FROM lookups LEFT JOIN slots USING (feature, lookup) GROUP BY feature"
        )
        facts = {feature: counts for feature, *counts in zip(*counted.to_pydict().values(), strict=True)}
        spec = opened.spec
    rows = [
        (feature.name, feature.column, list(feature.seeds), *facts[feature.name]) for feature in spec.features
    ]
    show_rows(names, rows, as_json=as_json)
    if not as_json:
        click.echo(f"table: {spec.table}, fingerprint {spec.fingerprint}")


@click.command()
@store_option
@snapshot_option
@json_option
def splits(store: AnyPath, snapshot_id: str | None, *, as_json: bool) -> None:
    """Show each split: its rows, its first and last event time, and the rule that cuts it.

    Examples that the label drops are counted as left out: no split has them.
    """
    with FeatureStore(store, snapshot_id) as opened:
        ranges = {split: opened.time_range(split) or (None, None) for split in opened.splits.rows}
        cut = opened.splits
    rows = [(split, cut.rows[split], *map(moment, times)) for split, times in ranges.items()]
    if cut.label.drop:
        rows.append(("(left out)", cut.dropped, None, None))
    show_rows(["split", "rows", "first", "last"], rows, as_json=as_json)
    if not as_json:
        click.echo(f"rule: {rule_text(cut)}")
        if cut.label.drop:
            click.echo(f"left out: examples whose {cut.label.column} is {dropped_text(cut.label)}")
