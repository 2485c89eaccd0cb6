"""The rows of a comparison: a snapshot's splits, every value replaced by its number."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.encode import as_text
from featurestore.errors import TrainingError
from featurestore.plans import Field
from featurestore.spec import SPLITS, SplitRule
from featurestore.splits import Splits, bucket_boundaries
from featurestore.store import FeatureStore
from training.comparison.setup import Setup
from training.objective import targets


@dataclass(frozen=True)
class Coded:
    """A snapshot's splits with every value replaced by its number in the vocabulary.

    codes: of each split int32 (n, F). labels: float32 (n,).
    """

    fields: tuple[Field, ...]
    codes: Mapping[str, npt.NDArray[np.int32]]
    labels: Mapping[str, npt.NDArray[np.float32]]

    @property
    def values(self) -> int:
        """The number of values of all features: rows of the collision-free table."""
        return sum(map(len, self.fields))


def load_coded(store: FeatureStore, setup: Setup) -> Coded:
    """Read the splits of a comparison: by row hash, whatever the store's own splits are.

    Raises:
        TrainingError: a split is empty.
    """
    rule = SplitRule("random", setup.fractions, seed=setup.split_seed)
    splits = Splits(rule, setup.label, bucket_boundaries(rule), {})
    fields = tuple(_field(store, feature.name) for feature in store.spec.features)
    columns = list(dict.fromkeys(feature.column for feature in store.spec.features))
    codes, labels = {}, {}
    for split in SPLITS:
        table = store.stream(split, [*columns, setup.label.column], splits=splits).read_all()
        if not table.num_rows:
            raise TrainingError(
                f"the {split} split of the comparison is empty: it is cut by row hash into {setup.fractions} "
                f"of {store.snapshot.manifest.counts['examples']:,} examples, some of which the label drops"
            )
        used = zip(store.spec.features, fields, strict=True)
        codes[split] = np.stack([_codes(table[feature.column], field) for feature, field in used], 1)
        labels[split] = targets(table[setup.label.column].to_numpy(), setup.label)
    return Coded(_counted(fields, codes["train"]), codes, labels)


def _field(store: FeatureStore, feature: str) -> Field:
    query = "SELECT value FROM vocabulary WHERE feature = $1 ORDER BY count DESC, value"
    return Field(feature, tuple(store.sql(query, [feature])["value"].to_pylist()))


def _counted(fields: Sequence[Field], codes: npt.NDArray[np.int32]) -> tuple[Field, ...]:
    """Return the fields with their values' counts in train: no layout may know how many others there are."""
    counts = [np.bincount(codes[:, f], minlength=len(field)) for f, field in enumerate(fields)]
    pairs = zip(fields, counts, strict=True)
    return tuple(dataclasses.replace(field, counts=tuple(each.tolist())) for field, each in pairs)


def _codes(column: pa.ChunkedArray, field: Field) -> npt.NDArray[np.int32]:
    text = as_text(column)
    known = pc.index_in(text.dictionary, pa.array(field.values)).to_numpy()
    codes: npt.NDArray[np.int32] = known.take(text.indices.to_numpy()).astype(np.int32)
    return codes
