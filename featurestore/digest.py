"""Digests: of a file's bytes, and of what a table says.

The content digest does not depend on the Parquet writer, the size of shards or the order of rows,
and it adds up: the sum over two tables is that of their concatenation. It is made of 64-bit words:

    v[c] = xxh3_64(UTF-8 of the text) | the integer | the bits of the float
    x    = sum over columns c of v[c] * (xxh3_64(name of c) | 1)      mod 2**64
    sums = (sum over rows of mix(x), sum over rows of mix(x ^ K))     mod 2**64

where mix is the finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014). It finds damage and
tells contents apart; it is no defence against someone who forges data.
"""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from featurestore.encode import as_text

_SECOND_SUM = np.uint64(0x9E3779B97F4A7C15)

Words = npt.NDArray[np.uint64]
Sums = tuple[int, int]


def file_digest(path: Path) -> str:
    """Return ``xxh3_128:<hex>`` of a file's bytes."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        for block in iter(functools.partial(file.read, 1 << 20), b""):
            state.update(block)
    return f"xxh3_128:{state.hexdigest()}"


def row_sums(table: pa.Table) -> Sums:
    """Return the two sums of a table: text, integer and 32-bit float columns, no nulls but in text."""
    total = np.zeros(table.num_rows, np.uint64)
    for name in table.column_names:
        total += column_words(table.column(name), name)
    return int(_mix(total.copy()).sum()), int(_mix(total ^ _SECOND_SUM).sum())


def add_sums(one: Sums, other: Sums) -> Sums:
    """Return the sums of the concatenation of two tables."""
    return (one[0] + other[0]) % 2**64, (one[1] + other[1]) % 2**64


def content_digest(fingerprint: str, rows: int, sums: Sums) -> str:
    """Return the hex digest of a snapshot: of its spec, its number of rows and their sums."""
    text = f"{fingerprint} {rows} {sums[0]:016x} {sums[1]:016x}"
    return str(xxhash.xxh3_128_hexdigest(text.encode()))


def column_words(column: pa.ChunkedArray, name: str) -> Words:
    """Return ``v[c]`` times the column's weight, (n,): what a column adds to the x of its rows."""
    weight = np.uint64(xxhash.xxh3_64_intdigest(name.encode()) | 1)
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy().astype(np.uint64) * weight, np.uint64)
    if pa.types.is_float32(column.type):
        return np.asarray(column.to_numpy().view(np.uint32).astype(np.uint64) * weight, np.uint64)
    text = as_text(column)
    values = text.dictionary.cast(pa.binary()).to_pylist()
    words = np.fromiter((xxhash.xxh3_64_intdigest(value) for value in values), np.uint64, len(values))
    return np.asarray((words * weight)[text.indices.to_numpy()], np.uint64)


def _mix(x: Words) -> Words:
    """Mix in place and return ``x``."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x
