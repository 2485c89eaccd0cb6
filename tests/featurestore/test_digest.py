import functools

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from featurestore.digest import _CHUNK_ROWS, add_sums, content_digest, file_digest, row_sums, row_words

rows = st.lists(
    st.tuples(
        st.none() | st.text(max_size=5),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(width=32, allow_nan=False),
    ),
    max_size=20,
)
SCHEMA = pa.schema([("user_id", pa.string()), ("timestamp", pa.int64()), ("rating", pa.float32())])


def table(some_rows):
    columns = list(zip(*some_rows, strict=True)) or [[], [], []]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def reference(some_rows):
    """The docstring of featurestore.digest, a row at a time, in Python's whole numbers."""

    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    sums = [0, 0]
    for text, number, real in some_rows:
        words = (
            xxhash.xxh3_64_intdigest((text or "").encode()),
            number % 2**64,
            int(np.float32(real).view(np.uint32)),
        )
        weights = (xxhash.xxh3_64_intdigest(name.encode()) | 1 for name in SCHEMA.names)
        x = sum(word * weight for word, weight in zip(words, weights, strict=True)) % 2**64
        sums = [sums[0] + mix(x), sums[1] + mix(x ^ 0x9E3779B97F4A7C15)]
    return sums[0] % 2**64, sums[1] % 2**64


@given(rows)
def test_sums_are_what_the_docstring_says(some_rows):
    assert row_sums(table(some_rows)) == reference(some_rows)


@given(rows, st.randoms(use_true_random=False), st.integers(0, 20))
def test_sums_add_up_and_do_not_depend_on_order(some_rows, random, cut):
    shuffled = random.sample(some_rows, len(some_rows))
    parts = [row_sums(table(shuffled[:cut])), row_sums(table(shuffled[cut:]))]
    assert functools.reduce(add_sums, parts) == row_sums(table(some_rows))


@given(rows.filter(bool), st.data())
def test_one_changed_cell_changes_both_sums(some_rows, data):
    row = data.draw(st.integers(0, len(some_rows) - 1))
    text, number, real = some_rows[row]
    change = data.draw(
        st.sampled_from(
            [((text or "") + "x", number, real), (text, number ^ 1, real), (text, number, real + 1 or 1)]
        )
    )
    changed = [*some_rows[:row], change, *some_rows[row + 1 :]]
    before, after = table(some_rows), table(changed)
    if before.equals(after):  # adding 1 to a large float changes nothing
        return
    assert all(one != other for one, other in zip(row_sums(before), row_sums(after), strict=True))


def test_cells_swapped_between_columns_or_rows_are_found():
    plain = pa.table({"a": ["1", "2"], "b": ["2", "3"]})
    assert row_sums(plain) != row_sums(pa.table({"a": ["2", "3"], "b": ["1", "2"]}))
    assert row_sums(plain) != row_sums(pa.table({"a": ["2", "1"], "b": ["2", "3"]}))
    assert row_sums(plain) != row_sums(plain.rename_columns(["b", "a"]))
    assert row_sums(plain) == row_sums(plain.select(["b", "a"]))


@given(rows)
def test_text_counts_not_its_encoding(some_rows):
    plain = table(some_rows)
    column = plain.column("user_id").combine_chunks()
    for other in (
        column.dictionary_encode(),
        column.cast(pa.large_string()),
        pa.chunked_array([column[:3], column[3:]]),
    ):
        assert row_sums(plain.set_column(0, "user_id", other)) == row_sums(plain)


def test_tables_longer_than_a_chunk():
    count = 2 * _CHUNK_ROWS + 3
    long = pa.table({"a": pa.array(np.arange(count)), "b": pa.array([str(row % 10) for row in range(count)])})
    whole = row_words(long)
    assert len(whole) == len(np.unique(whole)) == count
    assert np.array_equal(whole[_CHUNK_ROWS - 1 :][:3], row_words(long.slice(_CHUNK_ROWS - 1, 3)))
    parts = [row_sums(long.slice(0, 1000)), row_sums(long.slice(1000))]
    assert functools.reduce(add_sums, parts) == row_sums(long)


def test_digests_never_change():
    made = table([("1", 1, 1.5), ("é", -2, -0.0), (None, 3, 3.0)])
    assert row_sums(made) == (8931763905869260241, 11171415807783146869)
    assert content_digest("0123456789abcdef", 3, row_sums(made)) == "5b42f4847572d5c6b098623109ab41f3"
    assert content_digest("0123456789abcdef", 4, row_sums(made)) != "5b42f4847572d5c6b098623109ab41f3"
    assert content_digest("1123456789abcdef", 3, row_sums(made)) != "5b42f4847572d5c6b098623109ab41f3"


def test_nulls_in_numbers_are_a_bug_of_ours():
    with pytest.raises(AssertionError, match="'a' has nulls"):
        row_sums(pa.table({"a": pa.array([1, None])}))


def test_file_digest(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert file_digest(path) == f"xxh3_128:{xxhash.xxh3_128_hexdigest(b'x' * 3_000_000)}"
