"""DuckDB: connections, the views over a snapshot, the catalog. The only file that imports duckdb."""

import contextlib
import itertools
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from featurestore.errors import ArtifactError, QueryError
from featurestore.snapshot import REJECTS_SCHEMA, Snapshot
from featurestore.spec import SPLITS, FeatureSpec, SplitRule
from featurestore.splits import Splits, bucket_boundaries, clause

_XXH32 = (Path(__file__).parent / "xxh32.sql").read_text(encoding="utf-8")
_BINS = 65_536

Parameters = Mapping[str, Any] | Sequence[Any]


class Database:
    """A DuckDB connection that never reaches for the network and raises slotstore's errors."""

    def __init__(self, path: Path | None = None) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": str(Path(tempfile.gettempdir()) / f"slotstore-{uuid.uuid4().hex}"),
        }
        self._connection = duckdb.connect(str(path or ":memory:"), config=config)

    def close(self) -> None:
        """Close the connection and remove what it spilled to disk."""
        self._connection.close()

    def execute(self, sql: str, parameters: Parameters | None = None) -> list[tuple[Any, ...]]:
        """Run a statement and return all its rows."""
        with _engine_errors():
            return self._connection.execute(sql, parameters).fetchall()

    def read(
        self, sql: str, parameters: Parameters | None = None, batch_rows: int = 1 << 17
    ) -> pa.RecordBatchReader:
        """Stream the rows of a query; each stream has a cursor of its own, so several can be open.

        Statements that return nothing give an empty stream.
        """
        with _engine_errors():
            relation = self._connection.cursor().sql(sql, params=parameters)
            if relation is None:
                return pa.RecordBatchReader.from_batches(pa.schema([]), [])
            return relation.to_arrow_reader(batch_rows)


@contextlib.contextmanager
def _engine_errors() -> Iterator[None]:
    """Give the engine's errors slotstore's types."""
    try:
        yield
    except duckdb.IOException as error:
        raise ArtifactError(
            f"{error}\nIs a file of the snapshot gone? `slotstore snapshots verify` says."
        ) from error
    except duckdb.Error as error:
        raise QueryError(str(error)) from error


def quoted(text: str) -> str:
    """Return ``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return ``name`` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def parquet(files: Sequence[Path]) -> str:
    """Return the table function that reads ``files``, in the order given."""
    return f"read_parquet([{', '.join(quoted(str(file)) for file in files)}])"


def define_views(database: Database, snapshot: Snapshot) -> None:
    """Create the views, tables and macros through which a snapshot is asked."""
    spec, splits = snapshot.manifest.load_spec(), snapshot.manifest.load_splits()
    statements = [
        _XXH32,
        f"CREATE OR REPLACE VIEW examples AS SELECT * FROM {parquet(snapshot.files('examples'))}",
        f"CREATE OR REPLACE VIEW vocabulary AS SELECT * FROM {parquet(snapshot.files('vocabulary'))}",
        f"CREATE OR REPLACE VIEW rejects AS {_rejects(snapshot.files('rejects'))}",
        *(
            f"CREATE OR REPLACE VIEW {split} AS SELECT * FROM examples {clause(splits.rule, splits.boundaries, split)}"
            for split in SPLITS
        ),
        *_lookup_statements(spec),
    ]
    for statement in statements:
        database.execute(statement)


def _rejects(files: Sequence[Path]) -> str:
    if files:
        return f"SELECT * FROM {parquet(files)}"
    types = {pa.string(): "VARCHAR", pa.int64(): "BIGINT"}
    columns = ", ".join(f'NULL::{types[field.type]} AS "{field.name}"' for field in REJECTS_SCHEMA)
    return f"SELECT {columns} WHERE false"


def _lookup_statements(spec: FeatureSpec) -> list[str]:
    rows = ", ".join(
        f"({quoted(feature.name)}, {quoted(feature.column)}, {lookup}, {seed}::UBIGINT, {quoted(column)})"
        for feature in spec.features
        for lookup, (seed, column) in enumerate(zip(feature.seeds, feature.slot_columns, strict=True))
    )
    slots = spec.table.num_slots
    return [
        f'CREATE OR REPLACE VIEW lookups AS SELECT * FROM (VALUES {rows}) AS t(feature, source_column, lookup, seed, slot_column)',
        "CREATE OR REPLACE VIEW slots AS SELECT feature, value, lookup, seed, hashes[lookup + 1] AS hash, "
        f"(hashes[lookup + 1] % {slots})::INTEGER AS slot, count FROM vocabulary JOIN lookups USING (feature)",
        "CREATE OR REPLACE MACRO seed_of(f, l) AS coalesce((SELECT any_value(seed) FROM lookups WHERE feature = f AND lookup = l), "
        "error('no lookup ' || l || ' of feature ' || f || ': the view lookups lists them'))",
        f"CREATE OR REPLACE MACRO slot(feature_name, value, lookup_number) AS "
        f"(xxh32(value, seed_of(feature_name, lookup_number)) % {slots})::INTEGER",
    ]


def write_catalog(store: Path, snapshot: Snapshot) -> Path:
    """Write ``catalog.duckdb``: the snapshot's views for any DuckDB client. Replaced atomically.

    The views name the shards by absolute path, for a client may be started anywhere.
    """
    temporary = store / f".catalog.{uuid.uuid4().hex}.duckdb"
    absolute = Snapshot(snapshot.folder.resolve(), snapshot.manifest)
    with contextlib.closing(Database(temporary)) as database:
        define_views(database, absolute)
    return temporary.replace(store / "catalog.duckdb")


def resolve_splits(files: Sequence[Path], rule: SplitRule) -> Splits:
    """Find a rule's boundaries on the examples in ``files``, and count each split's rows."""
    with contextlib.closing(Database()) as database:
        database.execute(f"CREATE VIEW examples AS SELECT * FROM {parquet(files)}")
        if rule.kind == "time":
            boundaries = rule.boundaries or _time_boundaries(database, rule.fractions)
        else:
            boundaries = bucket_boundaries(rule) if rule.kind == "random" else ()
        clauses = [clause(rule, boundaries, split) for split in SPLITS]
        if rule.kind == "leave_last":
            counts = [database.execute(f"SELECT count(*) FROM (FROM examples {text})")[0][0] for text in clauses]
        else:
            counted = ", ".join(f"count(*) FILTER ({text})" for text in clauses)
            counts = list(database.execute(f"SELECT {counted} FROM examples")[0])
    return Splits(rule, boundaries, dict(zip(SPLITS, counts, strict=True)))


def _time_boundaries(database: Database, fractions: Sequence[float]) -> tuple[int, ...]:
    """Return the times before which each leading fraction of the examples lies."""
    rows, low, high = database.execute("SELECT count(*), min(timestamp), max(timestamp) FROM examples")[0]
    ranks = [round(rows * part) for part in itertools.accumulate(fractions[:-1])]
    return tuple(_timestamp_at(database, rank, low, high) if rank < rows else high + 1 for rank in ranks)


def _timestamp_at(database: Database, rank: int, low: int, high: int) -> int:
    """Return the event time of the example with ``rank`` others before it, in bounded memory.

    A histogram of at most 65,536 bins narrows the range to one bin, and again, down to one second:
    two scans of one column for any real range, where a sort would have to hold all of it.
    """
    while low < high:
        width = -(-(high - low + 1) // _BINS)
        bins = database.execute(
            "SELECT (timestamp - $low) // $width AS bin, count(*) FROM examples "
            "WHERE timestamp BETWEEN $low AND $high GROUP BY bin ORDER BY bin",
            {"low": low, "high": high, "width": width},
        )
        for number, count in bins:
            if rank < count:
                low, high = low + number * width, min(high, low + (number + 1) * width - 1)
                break
            rank -= count
    return low


def duplicate_rows(files: Sequence[Path], keys: Sequence[str], newest: str) -> list[tuple[int, int]]:
    """Return (file index, row) of every row that another with the same ``keys`` supersedes.

    The row with the highest ``newest`` stays, at a tie the last one.
    """
    columns = ", ".join(identifier(key) for key in keys)
    latest = f"{identifier(newest)} DESC, file_index DESC, file_row_number DESC"
    with contextlib.closing(Database()) as database:
        return database.execute(
            f"SELECT file_index, file_row_number FROM {parquet(files)} "
            f"QUALIFY row_number() OVER (PARTITION BY {columns} ORDER BY {latest}) > 1 ORDER BY ALL"
        )
