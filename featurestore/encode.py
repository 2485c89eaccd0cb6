"""Raw values to slots: the one path that ingestion, serving and the trainer's tests all call.

Distinct values are hashed once a batch and the slots are then taken by index, so the cost of a row
is one integer gather a lookup, whatever the length of its text.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.hashing import hash_values, slots_of
from featurestore.spec import Feature, FeatureSpec

TEXT = pa.dictionary(pa.int32(), pa.string())

Hasher = Callable[[Feature, pa.DictionaryArray], npt.NDArray[np.uint32]]
"""From a feature and its column, as `as_text` gives it, to the hashes (k, d) of its d dictionary values."""


def as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return ``column`` as dictionary-encoded text without nulls.

    Whole numbers become their decimal digits and nulls the empty text. Raises ValueError for other
    types: 3.0 and "3" would be different values, and no rule for floats suits everyone.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
    ):
        raise ValueError(f"a feature's values are text or whole numbers, got {column.type}")
    if column.type == TEXT and not column.null_count and not column.dictionary.null_count:
        return column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return pc.fill_null(column.cast(pa.string()), "").dictionary_encode()


def hash_dictionary(feature: Feature, text: pa.DictionaryArray) -> npt.NDArray[np.uint32]:
    """Hash the values of a column's dictionary under the feature's seeds: a `Hasher`."""
    return hash_values(text.dictionary, feature.seeds)


def encode(table: pa.Table, spec: FeatureSpec, hashes_of: Hasher = hash_dictionary) -> pa.Table:
    """Append one int32 slot column for each lookup of each feature.

    Args:
        table: n rows with at least the features' source columns, text or whole numbers.
        spec: features, seeds and num_slots.
        hashes_of: where hashes come from; by default they are computed.

    Returns:
        The table with `FeatureSpec.slot_columns` appended, n rows.

    Raises:
        ValueError: a source column is missing or holds neither text nor whole numbers, or the table
            has slot columns already.
    """
    repeated = [name for name in spec.slot_columns if name in table.column_names]
    if repeated:
        raise ValueError(f"the table has slot columns already: {repeated}")
    for feature in spec.features:
        if feature.column not in table.column_names:
            raise ValueError(
                f"feature {feature.name!r}: no column {feature.column!r} in {table.column_names}"
            )
        try:
            text = as_text(table.column(feature.column))
        except ValueError as error:
            raise ValueError(f"feature {feature.name!r}: {error}") from error
        slots = slots_of(hashes_of(feature, text), spec.table.num_slots)  # (k, distinct)
        codes = text.indices.to_numpy()  # (n,)
        for name, row in zip(feature.slot_columns, slots, strict=True):
            table = table.append_column(name, pa.array(row.take(codes)))
    return table
