"""DuckDB: connections, the views over a snapshot, the catalog. The only file that imports duckdb."""

import contextlib
import itertools
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from featurestore.errors import ArtifactError, QueryError
from featurestore.manifest import REJECTS_SCHEMA, VOCABULARY_SCHEMA
from featurestore.paths import AnyPath, RemotePath
from featurestore.snapshot import Snapshot
from featurestore.spec import SPLITS, FeatureSpec, Label, SplitRule
from featurestore.splits import Splits, bucket_boundaries, condition, kept, place, quoted

_XXH32, _COLLISIONS = (
    (Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("xxh32.sql", "collisions.sql")
)
_BIN_BITS = 14
"""Bins of 2**14 seconds: at most 200,000 from 1995 to 2100, which is when examples may be from."""

Parameters = Mapping[str, Any] | Sequence[Any]


class Database:
    """A DuckDB connection that never reaches for the network and raises slotstore's errors.

    ``explain`` is called with the message of a failed statement before QueryError is raised: it
    raises another error where it knows what lies behind.
    """

    def __init__(self, path: Path | None = None, explain: Callable[[str], None] | None = None) -> None:
        self._explain = explain
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": True,  # streams promise the order of the shards
            "python_enable_replacements": False,  # a table's name never means a Python variable
            "temp_directory": str(Path(tempfile.gettempdir()) / f"slotstore-{uuid.uuid4().hex}"),
        }
        try:
            self._connection = duckdb.connect(str(path or ":memory:"), config=config)
        except duckdb.Error as error:
            raise ArtifactError(f"cannot open the database {path}: {error}") from error

    def mount(self, path: AnyPath) -> None:
        """Let statements read from the object store that ``path`` lies on, if it is a URL."""
        if not isinstance(path, RemotePath):
            return
        from fsspec.implementations.arrow import ArrowFSWrapper

        scheme = path.scheme  # Arrow calls gs another name

        class Mounted(ArrowFSWrapper):  # type: ignore[misc]  # fsspec has no types
            protocol = scheme

        self._connection.register_filesystem(Mounted(path.filesystem, skip_instance_cache=True))

    def close(self) -> None:
        """Close the connection and remove what it spilled to disk; open streams can be read on."""
        self._connection.close()

    def execute(self, sql: str, parameters: Parameters | None = None) -> list[tuple[Any, ...]]:
        """Run a statement and return all its rows."""
        with self._errors():
            return self._connection.execute(sql, parameters).fetchall()

    def read(
        self, sql: str, parameters: Parameters | None = None, batch_rows: int = 1 << 17
    ) -> pa.RecordBatchReader:
        """Stream the rows of a query; each stream has a cursor of its own, so several can be open.

        Of columns with the same name the later ones become ``name_1``, ``name_2``. Statements that
        return nothing give an empty stream.
        """
        with self._errors():
            cursor = self._connection.cursor()
            statements = cursor.extract_statements(sql)
            relation = cursor.sql(sql, params=parameters)
            if relation is None or duckdb.ExpectedResultType.NOTHING in statements[-1].expected_result_type:
                return pa.RecordBatchReader.from_batches(pa.schema([]), [])
            reader = relation.to_arrow_reader(batch_rows)
        names = unique_names(reader.schema.names)
        schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
        return pa.RecordBatchReader.from_batches(schema, self._batches(reader, names))

    def _batches(self, reader: pa.RecordBatchReader, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._errors():
            for batch in reader:
                yield batch if batch.schema.names == names else batch.rename_columns(names)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Give the engine's errors, which are OSError where a stream meets them, slotstore's types."""
        try:
            yield
        except (duckdb.Error, OSError) as error:
            if self._explain:
                self._explain(str(error))
            raise QueryError(str(error)) from error


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names with _1, _2, ... after those that occurred before."""
    unique: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        unique.append(next(candidate for candidate in candidates if candidate not in unique))
    return unique


def identifier(name: str) -> str:
    """Return ``name`` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _literal(path: str) -> str:
    """Return ``path`` as a pattern that means it alone: DuckDB takes every path for one."""
    return re.sub(r"[*?\[]", r"[\g<0>]", path)


def parquet(files: Sequence[AnyPath]) -> str:
    """Return the table function that reads ``files``, in the order given."""
    listed = ", ".join(quoted(_literal(str(file.absolute()))) for file in files)
    return f"read_parquet([{listed}], hive_partitioning = false)"  # no columns from folders named a=b


def define_views(database: Database, snapshot: Snapshot) -> None:
    """Create the views and macros through which a snapshot is asked."""
    spec, splits = snapshot.manifest.load_spec(), snapshot.manifest.load_splits()
    vocabulary, rejects = (snapshot.files(kind) for kind in ("vocabulary", "rejects"))
    statements = [
        _XXH32,
        f"CREATE OR REPLACE VIEW examples AS SELECT * FROM {parquet(snapshot.files('examples'))}",
        f"CREATE OR REPLACE VIEW vocabulary AS {_rows(vocabulary, VOCABULARY_SCHEMA)}",
        f"CREATE OR REPLACE VIEW rejects AS {_rows(rejects, REJECTS_SCHEMA)}",
    ]
    views = [
        f"CREATE OR REPLACE VIEW {split} AS SELECT * FROM examples {splits.clause(split)}" for split in SPLITS
    ]
    for statement in [*statements, *views, *_lookup_statements(spec), _COLLISIONS]:
        database.execute(statement)


def _rows(files: Sequence[AnyPath], schema: pa.Schema) -> str:
    """Return SQL for the rows of ``files``; where there are none, for none with the columns of ``schema``."""
    if files:
        return f"SELECT * FROM {parquet(files)}"
    types = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.list_(pa.uint32()): "UINTEGER[]"}
    columns = ", ".join(f"NULL::{types[field.type]} AS {identifier(field.name)}" for field in schema)
    return f"SELECT {columns} WHERE false"


def _lookup_statements(spec: FeatureSpec) -> list[str]:
    lookups = [
        (feature, lookup, seed, column)
        for feature in spec.features
        for lookup, (seed, column) in enumerate(zip(feature.seeds, feature.slot_columns, strict=True))
    ]
    rows = ", ".join(
        f"({quoted(feature.name)}, {quoted(feature.column)}, {lookup}, {seed}::UBIGINT, {quoted(column)})"
        for feature, lookup, seed, column in lookups
    )
    seeds = ", ".join(
        f"{quoted(f'{feature.name}/{lookup}')}: {seed}::UBIGINT" for feature, lookup, seed, _ in lookups
    )
    slots = spec.table.num_slots
    return [
        f"""CREATE OR REPLACE VIEW lookups AS SELECT * FROM (VALUES {rows})
            AS t(feature, source_column, lookup, seed, slot_column)""",
        f"CREATE OR REPLACE MACRO num_slots() AS {slots}",
        # A constant, not a subquery: there, an argument called feature or lookup would mean the inner column.
        f"""CREATE OR REPLACE MACRO seed_of(feature_name, lookup_number) AS coalesce(
            MAP {{{seeds}}}[feature_name || '/' || lookup_number],
            error('no lookup ' || lookup_number || ' of ' || feature_name || ': see the view lookups'))""",
        f"""CREATE OR REPLACE MACRO slot(feature_name, value, lookup_number) AS
            (xxh32(value, seed_of(feature_name, lookup_number)) % {slots})::INTEGER""",
    ]


def write_catalog(store: AnyPath, snapshot: Snapshot) -> None:
    """Write ``catalog.duckdb``: the snapshot's views for any DuckDB client. Replaced atomically.

    The views name the shards by absolute path, for a client may be started anywhere. Tables that a
    client made in the old catalog go with it, and so does its log: it would not fit the new one.
    A store on an object store has no catalog, for DuckDB cannot open one there without its extension.
    """
    if isinstance(store, RemotePath):
        return
    catalog, temporary = store / "catalog.duckdb", store / "staging" / f"catalog-{uuid.uuid4().hex}.duckdb"
    temporary.parent.mkdir(exist_ok=True)
    try:
        with contextlib.closing(Database(temporary)) as database:
            define_views(database, snapshot)
        catalog.with_name(f"{catalog.name}.wal").unlink(missing_ok=True)
        temporary.replace(catalog)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _reading(files: Sequence[AnyPath]) -> Iterator[Database]:
    with contextlib.closing(Database()) as database:
        if files:
            database.mount(files[0])
        yield database


def resolve_splits(files: Sequence[AnyPath], rule: SplitRule, label: Label) -> Splits:
    """Find a rule's boundaries on the examples in ``files``, and count each split's rows.

    Examples that the label drops are counted apart, and by nothing else.
    """
    with _reading(files) as database:
        database.execute(f"CREATE VIEW examples AS SELECT * FROM {parquet(files)} WHERE {kept(label)}")
        boundaries = rule.boundaries
        if rule.kind in ("random", "files"):
            boundaries = bucket_boundaries(rule)
        elif rule.kind == "time" and not boundaries:
            boundaries = _time_boundaries(database, rule.fractions)
        counted = ", ".join(
            f"count(*) FILTER ({condition('place', rule, boundaries, split)})" for split in SPLITS
        )
        counts = database.execute(f"SELECT {counted} FROM (SELECT {place(rule)} AS place FROM examples)")[0]
        lost = database.execute(f"SELECT count(*) FROM {parquet(files)} WHERE NOT ({kept(label)})")[0][0]
    return Splits(rule, label, boundaries, dict(zip(SPLITS, counts, strict=True)), lost)


def _time_boundaries(database: Database, fractions: Sequence[float]) -> tuple[int, ...]:
    """Return the times before which each leading fraction of the examples lies."""
    rows = database.execute("SELECT count(*) FROM examples")[0][0]
    ranks = [round(rows * part) for part in itertools.accumulate(fractions[:-1])]
    if not rows:
        return (0,) * len(ranks)
    times = _timestamps_at(database, [min(rank, rows - 1) for rank in ranks])
    return tuple(time + (rank == rows) for time, rank in zip(times, ranks, strict=True))


def _timestamps_at(database: Database, ranks: Sequence[int]) -> list[int]:
    """Return the event time of the example with so many others before it, for each rank.

    Two scans of one column in bounded memory, where a sort would have to hold all of it: the first
    counts the examples of each few hours, the second those of each second in the few hours sought.
    """
    bins = database.execute(
        f"SELECT timestamp >> {_BIN_BITS} AS bin, count(*) FROM examples GROUP BY bin ORDER BY bin"
    )
    found = [_at_rank(bins, rank) for rank in ranks]
    seconds = database.execute(
        f"SELECT timestamp, count(*) FROM examples WHERE timestamp >> {_BIN_BITS} IN $bins "
        "GROUP BY timestamp ORDER BY timestamp",
        {"bins": [number for number, _ in found]},
    )
    inside = ([each for each in seconds if each[0] >> _BIN_BITS == number] for number, _ in found)
    return [_at_rank(times, left)[0] for times, (_, left) in zip(inside, found, strict=True)]


def _at_rank(counted: Sequence[tuple[int, int]], rank: int) -> tuple[int, int]:
    """Return the value at ``rank`` among ascending (value, count), and its rank among equals."""
    for value, count in counted:
        if rank < count:
            return value, rank
        rank -= count
    raise AssertionError("fewer examples than were counted")


REPEATED, OLDER, SAME, NEWER = range(4)
"""Why a row is superseded: by a later one of its own source; as older than, or the same as, one that an
earlier snapshot has; and of such a snapshot's: by a newer one."""


@contextlib.contextmanager
def superseded_rows(
    new: Sequence[AnyPath],
    old: Sequence[AnyPath],
    keys: Sequence[str],
    newest: str,
    value: str,
    *,
    repeated: bool,
) -> Iterator[tuple[pa.RecordBatchReader, pa.RecordBatchReader]]:
    """Yield the superseded rows of the ``new`` files and of the ``old``, in order: file, row, why (int64).

    Of several new rows with the same ``keys`` (``repeated``: there may be such) the one with the highest
    ``newest`` stays, at a tie the last one. It wins against an old one if its ``newest`` is higher, or as
    high with another ``value``. The engine sorts, and spills to disk what memory does not hold.
    """
    with _reading(new) as database:
        database.execute("CREATE TABLE lost (file BIGINT, row BIGINT, why BIGINT, is_old BOOLEAN)")
        if repeated:
            database.execute(
                f"INSERT INTO lost SELECT file_index, file_row_number, {REPEATED}, false FROM {parquet(new)} "
                f"QUALIFY {_rank(keys, newest)} > 1"
            )
        if old:
            only = f"QUALIFY {_rank(keys, newest)} = 1" if repeated else ""
            _insert_collisions(database, (parquet(old), f"{parquet(new)} {only}"), keys, newest, value)
        select = "SELECT file, row, why FROM lost WHERE is_old = {} ORDER BY file, row"
        yield database.read(select.format("false")), database.read(select.format("true"))


def _insert_collisions(
    database: Database, sources: tuple[str, str], keys: Sequence[str], newest: str, value: str
) -> None:
    """Add to ``lost`` the loser of each pair of an old and a new row with the same keys."""
    listed, time, what = ", ".join(map(identifier, keys)), identifier(newest), identifier(value)
    old, new = (
        f"(SELECT {listed}, {time}, {what}, file_index AS file, file_row_number AS row FROM {source})"
        for source in sources
    )
    database.execute(
        f"""INSERT INTO lost SELECT
            CASE WHEN wins THEN old_file ELSE new_file END, CASE WHEN wins THEN old_row ELSE new_row END,
            CASE WHEN wins THEN {NEWER} WHEN same THEN {SAME} ELSE {OLDER} END, wins
        FROM (SELECT old.file AS old_file, old.row AS old_row, new.file AS new_file, new.row AS new_row,
                new.{time} = old.{time} AND new.{what} = old.{what} AS same,
                new.{time} >= old.{time} AND NOT same AS wins
            FROM {old} AS old JOIN {new} AS new USING ({listed}))"""
    )


def _rank(keys: Sequence[str], newest: str) -> str:
    """Return SQL for a row's place among those with the same ``keys``: 1 for the one that stays."""
    columns = ", ".join(map(identifier, keys))
    latest = f"{identifier(newest)} DESC, file_index DESC, file_row_number DESC"
    return f"row_number() OVER (PARTITION BY {columns} ORDER BY {latest})"
