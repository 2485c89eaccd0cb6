"""Text to hashes to slots: the pure functions every slot in the system comes from.

``hash = xxh32(canonical bytes, seed)`` and ``slot = hash % num_slots``, with xxh32 as defined in
the xxHash specification, "XXH32 Algorithm Description". The canonical bytes of a value are the
UTF-8 of its text. A null is the empty text, so both have the slots of ``b""``.

`xxh32` and `slot` hash one value and are the reference; `hash_values` hashes an Arrow array of
distinct values. `featurestore/xxh32.sql` says the same in SQL and is tested against this file.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

MAX_SEED = 2**32 - 1
MAX_SLOTS = 2**31 - 1
"""Slots are stored as int32, so that torch and SQL read them without widening."""


def canonical_bytes(value: str | None) -> bytes:
    """Return the bytes that are hashed for ``value``: its UTF-8, a null being the empty text."""
    return b"" if value is None else value.encode()


def xxh32(value: str | None, seed: int) -> int:
    """Return the 32-bit hash of one value."""
    return xxhash.xxh32_intdigest(canonical_bytes(value), seed)


def slot(value: str | None, seed: int, num_slots: int) -> int:
    """Return the row of a table of ``num_slots`` rows that ``value`` takes under ``seed``."""
    return xxh32(value, seed) % num_slots


def default_seed(feature: str, lookup: int) -> int:
    """Return the seed of a feature's lookup where the spec lists none.

    It depends on the feature's name and the lookup's number alone, so adding, removing or
    reordering features moves no other feature's slots.
    """
    return xxh32(f"{feature}/{lookup}", 0)


def hash_values(values: pa.Array, seeds: Sequence[int]) -> npt.NDArray[np.uint32]:
    """Hash each value under each seed.

    Args:
        values: string array of n values, best distinct ones; nulls hash as the empty text.
        seeds: k seeds in 0..2**32-1.

    Returns:
        uint32 array ``(k, n)``.
    """
    raw = [value or b"" for value in values.cast(pa.binary()).to_pylist()]
    digest = xxhash.xxh32_intdigest
    rows = [np.fromiter((digest(value, seed) for value in raw), np.uint32, len(raw)) for seed in seeds]
    return np.stack(rows) if rows else np.empty((0, len(raw)), np.uint32)


def slots_of(hashes: npt.NDArray[np.uint32], num_slots: int) -> npt.NDArray[np.int32]:
    """Return ``hashes % num_slots`` as int32, same shape."""
    return (hashes % np.uint32(num_slots)).astype(np.int32)
