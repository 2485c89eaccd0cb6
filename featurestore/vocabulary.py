"""The vocabulary of a feature: its distinct values with their counts and full hashes."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import NotFound
from featurestore.hashing import hash_values
from featurestore.manifest import VOCABULARY_SCHEMA
from featurestore.paths import typed
from featurestore.snapshot import Snapshot
from featurestore.spec import Feature

Hashes = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Vocabulary:
    """The n distinct values of a feature, most frequent first.

    values: string array (n,). counts: int64 array (n,). hashes: uint32 (k, n), a row for each seed.
    """

    feature: Feature
    values: pa.Array
    counts: pa.Array
    hashes: Hashes

    @classmethod
    def of(cls, feature: Feature, values: pa.Array, counts: pa.Array) -> Self:
        """Hash the values under the feature's seeds."""
        return cls(feature, values, counts, hash_values(values, feature.seeds))

    @classmethod
    def from_table(cls, feature: Feature, table: pa.Table) -> Self:
        """Take what `to_table` gave; ValueError where it is not of this feature and its seeds."""
        names, lookups = table["feature"].unique().to_pylist(), len(feature.seeds)
        if names != [feature.name]:
            raise ValueError(f"it is of {', '.join(names) or 'no feature'}, expected {feature.name}")
        values, counts, hashes = (table[name].combine_chunks() for name in ("value", "count", "hashes"))
        lengths = pc.list_value_length(hashes).unique().to_pylist()
        if lengths != [lookups]:
            raise ValueError(f"values of {feature.name} have {lengths} hashes, the spec has {lookups} seeds")
        return cls(feature, values, counts, hashes.flatten().to_numpy().reshape(-1, lookups).T)

    def to_table(self) -> pa.Table:
        """Return rows as `VOCABULARY_SCHEMA`."""
        offsets = np.arange(0, self.hashes.size + 1, len(self.feature.seeds), dtype=np.int32)
        flat = pa.array(np.ascontiguousarray(self.hashes.T).reshape(-1))
        columns = [
            pa.array([self.feature.name] * len(self.values), pa.string()),
            self.values,
            self.counts,
            pa.ListArray.from_arrays(pa.array(offsets), flat),
        ]
        return pa.table(columns, schema=VOCABULARY_SCHEMA)

    def under(self, feature: Feature) -> Self:
        """Return the vocabulary of the feature with other seeds: only under new ones values are hashed."""
        stored = dict(zip(self.feature.seeds, self.hashes, strict=True))
        new = [seed for seed in feature.seeds if seed not in stored]
        stored |= zip(new, hash_values(self.values, new), strict=True)
        rows = [stored[seed] for seed in feature.seeds]
        return type(self)(feature, self.values, self.counts, np.stack(rows))

    def hashes_of(self, text: pa.DictionaryArray) -> Hashes:
        """Return the hashes (k, d) of the d values in a dictionary; any for one that no row has.

        Raises:
            ValueError: a row has a value that is not in the vocabulary.
        """
        places = pc.index_in(text.dictionary, value_set=self.values)
        if places.null_count:  # an append may leave a value in the dictionary whose last row it took away
            used = np.zeros(len(places), bool)
            used[text.indices.to_numpy()] = True
            missing = text.dictionary.filter(pa.array(used)).filter(places.filter(pa.array(used)).is_null())
            if len(missing):
                raise ValueError(
                    f"the vocabulary of {self.feature.name} lacks {len(missing):,} of its values, such as "
                    f"{missing[0].as_py()!r}"
                )
        hashes: Hashes = self.hashes.take(places.fill_null(0).to_numpy(), axis=1)
        return hashes


def read_vocabulary(snapshot: Snapshot) -> dict[str, Vocabulary]:
    """Return the vocabulary of each feature, by its name, in the order of the spec.

    Raises:
        NotFound: the snapshot has none.
        ArtifactError: its files are not what the manifest says.
    """
    manifest = snapshot.manifest
    shards, features = manifest.shards["vocabulary"], manifest.load_spec().features
    if not shards:
        raise NotFound(
            f"snapshot {manifest.id} has no vocabulary, and so no stored hashes. An ingestion builds it: "
            f"slotstore ingest {typed(manifest.source.get('uri'))} "
            f"--store {typed(snapshot.folder.parent.parent)}"
        )
    if len(shards) != len(features):
        raise snapshot.damaged([f"{len(shards)} shards of the vocabulary for {len(features)} features"])
    found = {}
    for shard, feature in zip(shards, features, strict=True):
        try:
            found[feature.name] = Vocabulary.from_table(feature, snapshot.read(shard))
        except (ValueError, KeyError) as error:
            raise snapshot.damaged([f"{shard.path}: {error}"]) from error
    return found
