"""One split of a store, read from its shards as packed rows."""

from collections.abc import Generator

import numpy as np
import pyarrow as pa

from featurestore.database import identifier
from featurestore.errors import ArtifactError, NotFound, QueryError, did_you_mean
from featurestore.store import FeatureStore
from training.order import BaseOrder, Shuffle
from training.packing import RowFormat, Rows, SlotRangeError

_REMEDY = "\n`slotstore snapshots verify` says which shards are damaged; ingest the source again."


class SplitReader:
    """Reads one split of a store as packed rows, in the store's order.

    Raises:
        NotFound: there is no such split.
        ArtifactError: while reading, where the shards cannot be read, hold too few or many rows, or a slot
            that the table does not have.
    """

    def __init__(self, store: FeatureStore, split: str) -> None:
        if split not in store.splits.rows:
            raise NotFound(f"no split {split!r}{did_you_mean(split, store.splits.rows)}")
        self.store, self.split = store, split
        self.rows: int = store.splits.rows[split]
        self.format = RowFormat.of(store.spec)

    def blocks(self, block_rows: int) -> Generator[Rows, None, None]:
        """Yield the rows in blocks of ``block_rows``, the last of which may be shorter."""
        rows = 0
        try:
            for block in self.format.pack_blocks(
                self.store.stream(self.split, self.format.columns), max(1, min(block_rows, self.rows))
            ):
                rows += len(block)
                yield block
        except SlotRangeError as error:
            raise self._explained(error) from error
        except (QueryError, pa.ArrowException) as error:  # no one asked a query: the shards are at fault
            raise ArtifactError(f"cannot read {self._place()}: {error}{_REMEDY}") from error
        if rows != self.rows:
            raise ArtifactError(f"{self._place()}: {rows:,} rows, the manifest says {self.rows:,}{_REMEDY}")

    def base(self, shuffle: Shuffle) -> Rows:
        """Return all rows in the base order of their shuffle."""
        if shuffle.whole:
            blocks = [*self.blocks(self.rows)]  # all there are, which counts them
            return blocks[0] if blocks else self.format.empty(0)
        places = BaseOrder(self.rows, shuffle.window_rows).places()
        rows, start = np.empty((self.rows, self.format.words), np.int32), 0
        for block in self.blocks(shuffle.window_rows):
            rows[places[start : start + len(block)]] = block
            start += len(block)
        return rows

    def _place(self) -> str:
        return f"{self.split} of snapshot {self.store.snapshot.manifest.id} in {self.store.path}"

    def _explained(self, error: SlotRangeError) -> ArtifactError:
        """Name the feature and the value whose slot is not in the table."""
        spec = self.store.spec
        feature = next(one for one in spec.features if error.column in one.slot_columns)
        value, column = identifier(feature.column), identifier(error.column)
        found = self.store.sql(
            f"SELECT {value} AS value FROM examples WHERE {column} = ? LIMIT 1",  # noqa: S608 - quoted
            [error.slot],
        )["value"]
        return ArtifactError(
            f"{self._place()}: {error.column} of feature {feature.name}, value {found[0].as_py()!r}, is "
            f"{error.slot}; the table has {spec.table.num_slots:,} slots, 0 to {spec.table.num_slots - 1}"
            f"{_REMEDY}"
        )
