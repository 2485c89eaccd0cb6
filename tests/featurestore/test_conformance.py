"""Promise 2: a value has the same slot on every path, here and, by the same file, in other packages."""

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.encode import encode
from featurestore.hashing import MAX_SEED, hash_values, slot, slots_of, xxh32
from featurestore.spec import parse_spec
from featurestore.store import FeatureStore

VECTORS = json.loads(Path(__file__).parents[1].joinpath("conformance.json").read_text())
# DuckDB's clients pass every code point but the surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=70)


def vectors_table():
    return pa.table(
        {
            "value": pa.array([vector["value"] for vector in VECTORS], pa.string()),
            "seed": pa.array([vector["seed"] for vector in VECTORS], pa.int64()),
        }
    )


@pytest.fixture(scope="module", params=["store", "catalog"])
def ask(request, tiny_store):
    """A function (SQL, parameters) -> rows, through FeatureStore and through the plain DuckDB client."""
    if request.param == "store":
        with FeatureStore(tiny_store) as opened:
            yield lambda sql, parameters: list(
                zip(*opened.sql(sql, parameters).to_pydict().values(), strict=True)
            )
    else:
        with duckdb.connect(str(tiny_store / "catalog.duckdb"), read_only=True) as plain:
            yield lambda sql, parameters: plain.execute(sql, parameters).fetchall()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: repr(vector["value"])[:20])
def test_python_paths_agree(vector):
    value, seed, num_slots = vector["value"], vector["seed"], vector["num_slots"]
    assert xxh32(value, seed) == vector["hash"]
    assert slot(value, seed, num_slots) == vector["slot"]
    hashes = hash_values(pa.array([value], pa.string()), [seed])
    assert hashes.tolist() == [[vector["hash"]]]
    assert slots_of(hashes, num_slots).tolist() == [[vector["slot"]]]
    feature = {"name": "f", "seeds": [seed]}
    data = {
        "table": {"num_slots": num_slots, "dim": 1},
        "features": [feature],
        "label": {},
        "split": {"kind": "leave_last"},
    }
    encoded = encode(pa.table({"f": pa.array([value], pa.string())}), parse_spec(data, "one", "test"))
    assert encoded.column("f_slot_0").to_pylist() == [vector["slot"]]


def test_sql_xxh32_agrees(ask):
    values = vectors_table().to_pydict()
    rows = ask("SELECT xxh32(v, s) FROM (SELECT unnest($v::VARCHAR[]) AS v, unnest($s::BIGINT[]) AS s)", {
        "v": values["value"], "s": values["seed"],
    })  # fmt: skip
    assert [row[0] for row in rows] == [vector["hash"] for vector in VECTORS]


def test_sql_slot_agrees_with_the_spec(ask, tiny_store):
    with FeatureStore(tiny_store) as opened:
        spec = opened.spec
    for feature in spec.features:
        for lookup, seed in enumerate(feature.seeds):
            rows = ask(
                "SELECT slot($f, v, $l) FROM (SELECT unnest($v::VARCHAR[]) AS v)",
                {"f": feature.name, "l": lookup, "v": [vector["value"] for vector in VECTORS]},
            )
            assert [row[0] for row in rows] == [
                slot(vector["value"], seed, spec.table.num_slots) for vector in VECTORS
            ]


@settings(max_examples=15)
@given(st.lists(st.tuples(texts, st.integers(0, MAX_SEED)), min_size=1, max_size=60))
def test_sql_xxh32_equals_the_library(ask, pairs):
    rows = ask(
        "SELECT xxh32(v, s) FROM (SELECT unnest($v::VARCHAR[]) AS v, unnest($s::BIGINT[]) AS s)",
        {"v": [text for text, _ in pairs], "s": [seed for _, seed in pairs]},
    )
    assert [row[0] for row in rows] == [xxh32(text, seed) for text, seed in pairs]


@pytest.mark.parametrize(
    "column", ["s", "i", "x", "h", "n", "hx", "acc", "step", "value", "seed", "r", "lane", "start"]
)
def test_sql_xxh32_of_a_column_named_like_one_of_its_own_variables(ask, column):
    text = "0123456789abcdef, and more"
    rows = ask(f"SELECT xxh32({column}, 7) FROM (SELECT $t AS {column})", {"t": text})
    assert rows == [(xxh32(text, 7),)]


def test_sql_slot_of_columns_named_like_the_lookups(ask):
    """The most natural check, ``slot(feature, value, lookup) = slot``, must not see other columns."""
    assert (
        ask("SELECT count(*), count(*) FILTER (slot(feature, value, lookup) != slot) FROM slots", {})[0][1]
        == 0
    )


def test_sql_hash_is_an_unsigned_32_bit_number(ask):
    assert ask("SELECT typeof(xxh32('a', 0)), typeof(slot('user_id', 'a', 0))", {}) == [
        ("UINTEGER", "INTEGER")
    ]
    assert ask("SELECT xxh32(1193, 0), xxh32(NULL, 0)", {}) == [(xxh32("1193", 0), xxh32("", 0))]
