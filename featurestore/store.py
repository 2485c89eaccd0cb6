"""FeatureStore: one snapshot, asked through SQL, read as Arrow."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from featurestore.database import Database, Parameters, define_views, identifier, parquet
from featurestore.errors import NotFound, did_you_mean
from featurestore.snapshot import Snapshot, open_snapshot
from featurestore.spec import SPLITS, FeatureSpec
from featurestore.splits import Splits, clause


class FeatureStore:
    """A snapshot of a store, the newest unless ``snapshot`` says which.

    Use it as a context manager, or `close` it. Views: ``examples``, ``train``, ``validation``,
    ``test``, ``vocabulary``, ``slots``, ``lookups`` and ``rejects``; functions: ``slot(feature,
    value, lookup)`` and ``xxh32(value, seed)``.

    Raises:
        NotFound: no such store or snapshot.
        ArtifactError: the snapshot is damaged or of another format version.
    """

    def __init__(self, path: str | Path, snapshot: str | None = None) -> None:
        self.path = Path(path)
        self.snapshot: Snapshot = open_snapshot(self.path, snapshot)
        self.spec: FeatureSpec = self.snapshot.manifest.load_spec()
        self.splits: Splits = self.snapshot.manifest.load_splits()
        self._database = Database()
        define_views(self._database, self.snapshot)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, snapshot={self.snapshot.manifest.id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database connection."""
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
    ) -> pa.RecordBatchReader:
        """Stream columns of a split, always in the same order: that of the shards, then of their rows.

        Args:
            split: ``train``, ``validation`` or ``test``.
            columns: names of columns of ``examples``.
            batch_rows: rows of a batch at most.
            shards: which shards, in which order; all by default. A leave-last split needs every
                shard to rank a user's examples, so there it only says the order.
        """
        files = self.snapshot.files("examples")
        order = list(range(len(files)) if shards is None else shards)
        listed = ", ".join(identifier(name) for name in self._known_columns(columns))
        where = clause(self.splits.rule, self.splits.boundaries, _known_split(split))
        query = f"SELECT {listed} FROM {parquet([files[index] for index in order])} {where}"
        if where.startswith("QUALIFY"):  # a window function loses the order of the files
            query = f"{query} ORDER BY file_index, file_row_number"
        return self.read(query, batch_rows=batch_rows)

    def _known_columns(self, columns: Sequence[str]) -> Sequence[str]:
        known = list(self.snapshot.manifest.columns)
        for name in columns:
            if name not in known:
                raise NotFound(f"no column {name!r} in the examples{did_you_mean(name, known)}")
        return columns


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise NotFound(f"no split {split!r}{did_you_mean(split, SPLITS)}")
    return split
