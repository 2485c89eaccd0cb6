"""Digests: of a file's bytes, and of what a table says.

The content digest does not depend on the Parquet writer, the size of shards or the order of rows,
and it adds up: the sums of a concatenation are the sums of its parts. It is made of 64-bit words:

    v[c] = xxh3_64(UTF-8 of the text) | the integer | the bits of the float
    x    = sum over columns c of v[c] * (xxh3_64(name of c) | 1)      mod 2**64
    sums = (sum over rows of mix(x), sum over rows of mix(x ^ K))     mod 2**64

where mix is the finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014). It finds damage and
tells contents apart; it is no defence against someone who forges data.
"""

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from featurestore.encode import as_text
from featurestore.paths import AnyPath

_SECOND_SUM = np.uint64(0x9E3779B97F4A7C15)
_CHUNK_ROWS = 1 << 15
"""Rows summed at a time, so that the intermediate words stay in the processor's cache."""

Words = npt.NDArray[np.uint64]
Sums = tuple[int, int]


def file_digest(path: AnyPath) -> str:
    """Return ``xxh3_128:<hex>`` of a file's bytes."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        for block in iter(functools.partial(file.read, 1 << 20), b""):
            state.update(block)
    return f"xxh3_128:{state.hexdigest()}"


def bytes_digest(data: bytes | pa.Buffer) -> str:
    """Return what `file_digest` does, of bytes in memory."""
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}"


def row_words(table: pa.Table) -> Words:
    """Return x of each row (n,): text, integer and 32-bit float columns, no nulls but in text."""
    columns = [_column_words(table.column(name), name) for name in table.column_names]
    words = np.zeros(table.num_rows, np.uint64)
    for start in range(0, table.num_rows, _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        for column in columns:
            words[chunk] += column(chunk)
    return words


def row_sums(table: pa.Table) -> Sums:
    """Return the two sums of a table's rows; columns as in `row_words`."""
    words = row_words(table)
    return int(_mix(words.copy()).sum()), int(_mix(words ^ _SECOND_SUM).sum())


def add_sums(one: Sums, other: Sums) -> Sums:
    """Return the sums of the concatenation of two tables."""
    return (one[0] + other[0]) % 2**64, (one[1] + other[1]) % 2**64


def content_digest(fingerprint: str, rows: int, sums: Sums) -> str:
    """Return the hex digest of a snapshot: of its spec, its number of rows and their sums."""
    text = f"{fingerprint} {rows} {sums[0]:016x} {sums[1]:016x}"
    return str(xxhash.xxh3_128_hexdigest(text.encode()))


def _column_words(column: pa.ChunkedArray, name: str) -> Callable[[slice], Words]:
    """Return a function from rows to ``v[c]`` times the column's weight."""
    weight = np.uint64(xxhash.xxh3_64_intdigest(name.encode()) | 1)
    if pa.types.is_integer(column.type) or pa.types.is_float32(column.type):
        assert not column.null_count, f"column {name!r} has nulls"
        numbers = column.to_numpy()
        bits = numbers.view(np.uint32) if pa.types.is_float32(column.type) else numbers
        return lambda rows: bits[rows].astype(np.uint64) * weight
    text = as_text(column)
    values = text.dictionary.cast(pa.binary()).to_pylist()
    words = (
        np.fromiter((xxhash.xxh3_64_intdigest(value) for value in values), np.uint64, len(values)) * weight
    )
    codes = text.indices.to_numpy()
    return lambda rows: words.take(codes[rows])


def _mix(x: Words) -> Words:
    """Mix in place and return ``x``."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x
