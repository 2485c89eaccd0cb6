import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.encode import TEXT, as_text, encode
from featurestore.hashing import slot
from featurestore.spec import parse_spec

VALUES = ["1193", "", None, "98107-2117", "1193", "é", "007"]


def spec(*features, num_slots=1000):
    data = {
        "table": {"num_slots": num_slots, "dim": 2},
        "features": list(features),
        "label": {},
        "split": {"kind": "leave_last"},
    }
    return parse_spec(data, "test", "test")


ONE = spec({"name": "f", "seeds": [3, 9]})


def expected(values, seeds=(3, 9)):
    return [[slot(value, seed, 1000) for value in values] for seed in seeds]


def slots(table, a_spec=ONE):
    encoded = encode(table, a_spec)
    return [encoded.column(name).to_pylist() for name in a_spec.slot_columns]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(VALUES, pa.string()),
        pa.array(VALUES, pa.large_string()),
        pa.array(VALUES, pa.string()).dictionary_encode(),
        pa.array(VALUES, pa.large_string()).dictionary_encode(),
        pa.array(VALUES, pa.string()).dictionary_encode(null_encoding="encode"),
        pa.array(VALUES, pa.string()).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        pa.chunked_array([VALUES[:2], [], VALUES[2:]], pa.string()),
        pa.chunked_array([pa.array(part).dictionary_encode() for part in (VALUES[:3], VALUES[3:])]),
        pa.array([None, *VALUES], pa.string()).slice(1),
        pa.array([None, *VALUES], pa.string()).dictionary_encode().slice(1),
    ],
    ids=[
        "plain", "large", "dictionary", "large dictionary", "null in the dictionary", "small indices",
        "chunked", "chunked dictionary", "slice", "dictionary slice",
    ],
)  # fmt: skip
def test_every_layout_of_text_has_the_same_slots(column):
    assert slots(pa.table({"f": column})) == expected(VALUES)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint64()], ids=str)
def test_whole_numbers_are_their_digits(kind):
    table = pa.table({"f": pa.array([0, 7, None, 119], kind)})
    assert slots(table) == expected(["0", "7", None, "119"])


def test_a_column_of_nulls_is_the_empty_text():
    assert slots(pa.table({"f": pa.nulls(2)})) == expected(["", ""])


@given(st.lists(st.none() | st.text(max_size=8)), st.integers(1, 2**31 - 1), st.booleans())
def test_encode_equals_slot_row_by_row(values, num_slots, encoded):
    a_spec = spec({"name": "f", "lookups": 2}, num_slots=num_slots)
    column = pa.array(values, pa.string())
    table = pa.table({"f": column.dictionary_encode() if encoded else column})
    assert slots(table, a_spec) == [
        [slot(value, seed, num_slots) for value in values] for seed in a_spec.features[0].seeds
    ]


def test_slots_are_appended_as_int32_in_the_order_of_the_spec():
    a_spec = spec({"name": "b", "lookups": 2}, {"name": "z", "column": "a", "lookups": 1})
    table = encode(pa.table({"a": ["1"], "other": [1.5], "b": ["2"]}), a_spec)
    assert table.column_names == ["a", "other", "b", "b_slot_0", "b_slot_1", "z_slot_0"]
    assert {table.schema.field(name).type for name in a_spec.slot_columns} == {pa.int32()}
    assert table.column("z_slot_0").to_pylist() == [slot("1", a_spec.features[1].seeds[0], 1000)]


@pytest.mark.parametrize(
    "column", [pa.array([], pa.string()), pa.array([], TEXT), pa.chunked_array([], TEXT)]
)
def test_an_empty_table(column):
    assert slots(pa.table({"f": column})) == [[], []]


@pytest.mark.parametrize("column", [[1.0, 2.0], [True], [b"1"], [["1"]], [{"a": "1"}]], ids=str)
def test_other_types_are_refused(column):
    with pytest.raises(ValueError, match="feature 'f': a feature's values are text or whole numbers, got "):
        encode(pa.table({"f": column}), ONE)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"feature 'f': no column 'f' in \['g'\]"):
        encode(pa.table({"g": ["1"]}), ONE)


def test_encoding_twice_is_refused():
    once = encode(pa.table({"f": ["1"]}), ONE)
    with pytest.raises(ValueError, match=r"slot columns already: .*f_slot_0"):
        encode(once, ONE)


def test_other_features_move_no_slot():
    """Promise 1: adding, removing or reordering features."""
    a, b, c = ({"name": name, "lookups": 2} for name in "abc")
    table = pa.table({name: [f"{name}{row}" for row in range(50)] for name in "abc"})
    before = encode(table, spec(a, b))
    for other in (spec(b), spec(b, a), spec(c, a, b), spec(a, c, b)):
        after = encode(table, other)
        assert after.column("b_slot_0").equals(before.column("b_slot_0"))
        assert after.column("b_slot_1").equals(before.column("b_slot_1"))
    assert not before.column("b_slot_1").equals(before.column("b_slot_0"))


def test_text_without_nulls_is_not_copied():
    column = pa.array(["a", "b"], pa.string()).dictionary_encode()
    assert as_text(column) is column


def test_unused_values_of_a_dictionary_take_no_part():
    column = pa.DictionaryArray.from_arrays(
        pa.array(np.array([1, 1], np.int32)), pa.array(["unused", "1193"])
    )
    assert slots(pa.table({"f": column})) == expected(["1193", "1193"])
