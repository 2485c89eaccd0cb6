"""FeatureStore: one snapshot, asked through SQL, read as Arrow."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import pyarrow as pa

from featurestore.database import Database, Parameters, define_views, identifier, parquet
from featurestore.errors import ArtifactError, NotFound, did_you_mean
from featurestore.paths import AnyPath, as_path, typed
from featurestore.snapshot import Snapshot, open_snapshot
from featurestore.spec import SPLITS, FeatureSpec
from featurestore.splits import Splits

_FILE, _ROW = identifier(" file"), identifier(" row")
"""Columns that no spec can name: where a row comes from, to bring rows back into order."""


class FeatureStore:
    """A snapshot of a store, the newest unless ``snapshot`` says which.

    Use it as a context manager, or `close` it. Views: ``examples``, ``train``, ``validation``,
    ``test``, ``vocabulary``, ``slots``, ``lookups``, ``rejects`` and ``hash_collisions``; functions:
    ``slot(feature, value, lookup)`` and ``xxh32(value, seed)``; and, for any number of slots n, the tables
    of `collisions.sql`, such as ``collisions(n)``.

    Raises:
        NotFound: no such store or snapshot.
        ArtifactError: the snapshot is damaged or of another format version.
    """

    def __init__(self, path: str | AnyPath, snapshot: str | None = None) -> None:
        self.path = as_path(path)
        self.snapshot: Snapshot = open_snapshot(self.path, snapshot)
        self.spec: FeatureSpec = self.snapshot.manifest.load_spec()
        self.splits: Splits = self.snapshot.manifest.load_splits()
        self._database = Database(explain=self._blame_shards)
        try:
            self._database.mount(self.path)
            define_views(self._database, self.snapshot)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, snapshot={self.snapshot.manifest.id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database connection; open streams can be read on."""
        self._database.close()

    def sql(self, query: str, parameters: Parameters | None = None) -> pa.Table:
        """Return the result of a query; QueryError where the engine refuses it."""
        return self.read(query, parameters).read_all()

    def read(
        self, query: str, parameters: Parameters | None = None, batch_rows: int = 1 << 17
    ) -> pa.RecordBatchReader:
        """Stream the result of a query in batches of at most ``batch_rows``."""
        return self._database.read(query, parameters, batch_rows)

    def stream(
        self,
        split: str,
        columns: Sequence[str],
        *,
        batch_rows: int = 1 << 17,
        shards: Sequence[int] | None = None,
        splits: Splits | None = None,
    ) -> pa.RecordBatchReader:
        """Stream columns of a split, always in the same order: that of the shards, then of their rows.

        Args:
            split: ``train``, ``validation`` or ``test``.
            columns: names of columns of ``examples``.
            batch_rows: rows of a batch at most.
            shards: numbers of the shards to read, in this order; all by default.
            splits: other splits than the snapshot's own.

        Raises:
            NotFound: no such split, column or shard.
        """
        files = self.snapshot.files("examples")
        order = self._known_shards(range(len(files)) if shards is None else shards)
        listed = ", ".join(identifier(name) for name in self._known_columns(columns))
        cut = splits or self.splits
        where = cut.clause(_known_split(split))
        if not order:
            query = f"SELECT {listed} FROM {parquet(files)} LIMIT 0"
        elif cut.rule.kind == "leave_last":
            query = _ranked(listed, files, order, where)
        else:
            query = f"SELECT {listed} FROM {parquet([files[number] for number in order])} {where}"
        return self.read(query, batch_rows=batch_rows)

    def time_range(self, split: str) -> tuple[int, int] | None:
        """Return the first and the last event time of a split, None if it is empty."""
        rows = self._database.execute(f"SELECT min(timestamp), max(timestamp) FROM {_known_split(split)}")
        first, last = rows[0]
        return None if first is None else (first, last)

    def _known_columns(self, columns: Sequence[str]) -> Sequence[str]:
        known = list(self.snapshot.manifest.columns)
        if not columns:
            raise NotFound(f"no columns asked for (known: {', '.join(known)})")
        for name in columns:
            if name not in known:
                raise NotFound(f"no column {name!r} in the examples{did_you_mean(name, known)}")
        return columns

    def _known_shards(self, shards: Sequence[int]) -> list[int]:
        known = len(self.snapshot.manifest.shards["examples"])
        for number in shards:
            if not 0 <= number < known:
                raise NotFound(f"no shard {number}: the snapshot has shards 0 to {known - 1}")
        if len(set(shards)) < len(shards):
            raise ValueError(f"a shard is asked for twice: {list(shards)}")
        return list(shards)

    def _blame_shards(self, message: str) -> None:
        """Raise ArtifactError if the engine's ``message`` comes from a missing or damaged shard."""
        self.snapshot.check()
        if str(self.snapshot.folder.parent.absolute()) in message:
            raise ArtifactError(
                f"snapshot {self.snapshot.manifest.id} cannot be read: {message}\n"
                f"`slotstore snapshots verify --store {typed(self.path)}` says what is damaged."
            )


def _ranked(listed: str, files: Sequence[AnyPath], order: Sequence[int], where: str) -> str:
    """Return SQL for the rows of the shards in ``order`` whose rank among all shards is in the split."""
    rest = [number for number in range(len(files)) if number not in order]
    source = parquet([files[number] for number in [*order, *rest]])
    return (
        f"SELECT {listed} FROM "
        f"(SELECT *, file_index AS {_FILE}, file_row_number AS {_ROW} FROM {source} {where}) "
        f"WHERE {_FILE} < {len(order)} ORDER BY {_FILE}, {_ROW}"
    )


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise NotFound(f"no split {split!r}{did_you_mean(split, SPLITS)}")
    return split
