"""New and vanished values, how far the traffic moved, and what it does to collisions."""

import dataclasses
import json
import math
import tempfile
from collections import Counter

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.collisions import Shape, shapes
from featurestore.drift import RISE, SHOWN, drift, expected_shares
from featurestore.errors import NotFound
from featurestore.hashing import slot
from featurestore.snapshot import MANIFEST
from featurestore.snapshots_command import snapshots
from featurestore.spec import Table
from featurestore.store import FeatureStore


def ratings(pairs):
    """A table of ratings by (user, movie)."""
    users, movies = zip(*pairs, strict=True)
    count = len(users)
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()).dictionary_encode(),
            "movie_id": pa.array(movies, pa.string()).dictionary_encode(),
            "rating": pa.array([3.0] * count, pa.float32()),
            "timestamp": pa.array(range(count), pa.int64()),
        }
    )


def drifted(store, publish, old, new, specs=(None, None)):
    """The drift between snapshots of two tables."""
    published = [publish(store, ratings(some), spec) for some, spec in zip((old, new), specs, strict=True)]
    first, second = (FeatureStore(store, snapshot.manifest.id) for snapshot in published)
    with first, second:
        return drift(first, second)


OLD = [("1", "a"), ("1", "b"), ("1", "c"), ("2", "a")]
NEW = [("1", "a"), ("3", "a"), ("3", "b"), ("3", "d"), ("4", "e")]


def test_by_hand(tmp_path, publish):
    """Users 3/4, 1/4 become 1/5, 0, 3/5, 1/5; movies 1/2, 1/4, 1/4 become 2/5, 1/5, 0, 1/5, 1/5."""
    user, movie = drifted(tmp_path, publish, OLD, NEW).features
    assert (user.feature, user.added, user.shown_added, user.added_traffic) == ("user_id", 2, ["3", "4"], 0.8)
    assert (user.gone, user.shown_gone, user.gone_traffic) == (1, ["2"], 0.25)
    assert user.total_variation == pytest.approx(0.8)
    assert (movie.added, movie.shown_added, movie.added_traffic) == (2, ["d", "e"], 0.4)
    assert (movie.gone, movie.shown_gone, movie.gone_traffic) == (1, ["c"], 0.25)
    assert movie.total_variation == pytest.approx((0.1 + 0.05 + 0.25 + 0.4) / 2)
    # bits: a value that only one has gives half its share
    shared = 0.75 * math.log2(1.5 / 0.95) + 0.2 * math.log2(0.4 / 0.95)
    assert user.jensen_shannon == pytest.approx((shared + 0.25 + 0.8) / 2)


def test_nothing_moved(tmp_path, publish):
    found = drifted(tmp_path, publish, OLD, OLD[::-1])
    for one in found.features:
        assert (one.added, one.gone, one.total_variation, one.jensen_shannon) == (0, 0, 0, 0)
    assert found.resize is None


def test_no_value_in_common(tmp_path, publish):
    new = [("x", "p"), ("y", "q"), ("y", "p")]
    for one in drifted(tmp_path, publish, OLD, new).features:
        assert (one.added, one.added_traffic, one.gone_traffic) == (2, 1, 1)
        assert (one.total_variation, one.jensen_shannon) == (1, 1)


def test_the_hottest_are_shown(tmp_path, publish):
    movies = "abcdefgh"
    new = [(str(user), movie) for number, movie in enumerate(movies) for user in range(number + 1)]
    movie = drifted(tmp_path, publish, [("0", "z")], new).features[1]
    assert movie.added == 8
    assert movie.shown_added == list("hgfed")[:SHOWN]


pairs = st.sets(st.tuples(st.sampled_from("1234"), st.sampled_from("abcdef")), min_size=1).map(sorted)


@settings(max_examples=15)
@given(old=pairs, new=pairs)
def test_any_two_tables(old, new, publish):
    with tempfile.TemporaryDirectory() as store:
        found = drifted(store, publish, old, new)
    for place, one in enumerate(found.features):
        before, after = (Counter(pair[place] for pair in some) for some in (old, new))
        shares = [(before[value] / len(old), after[value] / len(new)) for value in before | after]
        assert one.total_variation == pytest.approx(sum(abs(p - q) for p, q in shares) / 2)
        bits = [x * math.log2(2 * x / (p + q)) for p, q in shares for x in (p, q) if x]
        assert one.jensen_shannon == pytest.approx(sum(bits) / 2, abs=1e-9)
        assert (one.added, one.gone) == (len(after.keys() - before), len(before.keys() - after))
        assert one.added_traffic == pytest.approx(sum(after[v] for v in after.keys() - before) / len(new))


def test_a_feature_that_only_one_snapshot_has(tmp_path, publish, make_spec):
    features = [{"name": "movie_id", "lookups": 1}, {"name": "film", "column": "movie_id", "lookups": 1}]
    found = drifted(tmp_path, publish, OLD, NEW, (make_spec(), make_spec(features=features)))
    found = {one.feature: one for one in found.features}
    assert list(found) == ["user_id", "movie_id", "film"]
    gone, added = found["user_id"], found["film"]
    assert (gone.gone, gone.gone_traffic, gone.added_traffic, gone.total_variation) == (2, 1, None, None)
    assert (added.added, added.added_traffic, added.gone_traffic) == (4, 1, None)
    assert (gone.jensen_shannon, added.jensen_shannon) == (None, None)
    assert found["movie_id"].total_variation == pytest.approx(0.4)


# Collisions


def test_crowding_is_counted_and_expected(tmp_path, publish, make_spec):
    """One lookup, counted here."""
    spec = make_spec(features=[{"name": "movie_id", "lookups": 1}])
    old = [("1", f"m{number}") for number in range(60)]
    new = [("1", f"m{number}") for number in range(40, 200)]
    found = drifted(tmp_path, publish, old, new, (spec, spec))
    seed = spec.features[0].seeds[0]
    assert [(one.num_slots, one.values) for one in found.crowding] == [(97, 60), (97, 160)]
    for one, some in zip(found.crowding, (old, new), strict=True):
        taken = Counter(slot(movie, seed, 97) for _, movie in some)
        shared = sum(number for number in taken.values() if number > 1) / len(some)
        assert one.shared == one.shared_traffic == pytest.approx(shared)
        expected = 1 - (1 - 1 / 97) ** (len(some) - 1)
        assert one.expected_shared == one.expected_shared_traffic == pytest.approx(expected)
    assert found.resize is not None
    assert (
        f"Re-size: {found.resize:,} slots bring them back (slotstore reslot --num-slots {found.resize}, "
        in found.advice
    )
    # 60 of 97 is 160 of about 97 * 159 / 59
    assert found.resize == pytest.approx(97 * 159 / 59, abs=2)


def test_each_table_is_tried_on_both(tmp_path, publish, make_spec):
    made = make_spec()
    specs = [dataclasses.replace(made, table=Table(number, 4)) for number in (50, 5_000)]
    ids = [publish(tmp_path, ratings(OLD), spec).manifest.id for spec in specs]
    with FeatureStore(tmp_path, ids[0]) as first, FeatureStore(tmp_path, ids[1]) as second:
        found = drift(first, second)
        backwards = drift(second, first)
    assert [(one.snapshot, one.num_slots) for one in found.crowding] == [
        (ids[0], 50), (ids[0], 5_000), (ids[1], 50), (ids[1], 5_000),
    ]  # fmt: skip
    assert found.crowding[0].expected_shared > 10 * found.crowding[1].expected_shared
    assert found.resize is None
    assert found.advice.endswith("No need to re-size.")
    assert backwards.resize == 5_000


@pytest.mark.parametrize("change", ["vector", "dim", "lookups"])
def test_rows_that_are_read_otherwise_are_not_told_to_be_re_sized(tmp_path, publish, make_spec, change):
    """Of several narrow rows a value may share each with another one, and be told apart by the rest."""
    made, table = make_spec(), Table(50, 1, 30) if change == "vector" else Table(50, 9)
    if change == "lookups":
        first = made.features[0].with_lookups(6)
        made, table = dataclasses.replace(made, features=(first, *made.features[1:])), Table(50, 4)
    specs = [dataclasses.replace(make_spec(), table=Table(5_000, 4)), dataclasses.replace(made, table=table)]
    ids = [publish(tmp_path, ratings(OLD), spec).manifest.id for spec in specs]
    with FeatureStore(tmp_path, ids[0]) as old, FeatureStore(tmp_path, ids[1]) as new:
        found = drift(old, new)
    assert found.resize is None
    assert "with 5,000 slots, now " in found.advice
    assert found.advice.endswith(
        "Lookups or rows are others, which that does not tell: `slotstore advise` does."
    )


def test_when_to_re_size():
    """The share may rise by RISE before it is said."""
    base = {"a": Shape(1_000, 5_000, 1)}
    small, large = ({"a": Shape(number, 5_000, 1)} for number in (1_010, 1_100))
    was = expected_shares(base, 5_000)[0]
    assert expected_shares(small, 5_000)[0] - was < RISE / 2 < expected_shares(large, 5_000)[0] - was
    assert expected_shares({}, 10) == (0, 0)
    assert expected_shares({"a": Shape(0, 0, 2)}, 10) == (0, 0)


def test_expected_shares_weigh_features_by_values_and_by_traffic():
    known = {"a": Shape(10, 100, 1), "b": Shape(30, 100, 2)}
    a, b = (1 - 0.99**69), (1 - (0.01 * 0.99**68 + 0.99 * 0.98**68))
    values, traffic = expected_shares(known, 100)
    assert values == pytest.approx((10 * a + 30 * b) / 40)
    assert traffic == pytest.approx((a + b) / 2)


def test_shapes_are_the_vocabularys(tiny_store):
    with FeatureStore(tiny_store) as opened:
        known = shapes(opened)
        counted = opened.sql("SELECT count(DISTINCT user_id), count(*) FROM examples").to_pylist()[0].values()
    assert list(known) == [feature.name for feature in opened.spec.features]
    assert known["user_id"] == Shape(*counted, 2)
    assert known["user_id"].uses == 2 * known["user_id"].values


# Who may ask, and the command


def without_vocabulary(store, snapshot_id):
    path = store / "snapshots" / snapshot_id / MANIFEST
    data = json.loads(path.read_text())
    data["shards"]["vocabulary"] = []
    path.write_text(json.dumps(data))


def command(*args):
    return CliRunner().invoke(snapshots, [str(arg) for arg in args], catch_exceptions=False)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_snapshot_without_a_vocabulary(tmp_path, publish, lost):
    ids = [publish(tmp_path, ratings(pairs)).manifest.id for pairs in (OLD, NEW)]
    without_vocabulary(tmp_path, ids[lost])
    first, second = (FeatureStore(tmp_path, one) for one in ids)
    with first, second, pytest.raises(NotFound, match=f"snapshot {ids[lost]} has no vocabulary"):
        drift(first, second)
    done = command("diff", *ids, "--store", tmp_path, "--json")
    assert done.exit_code == 0
    assert f"traffic and collisions are left out: snapshot {ids[lost]} has no vocabulary" in done.stderr
    assert "Ingest the source again" in done.stderr
    data = json.loads(done.stdout)
    assert data["drift"] is None
    assert data["rows"]["added"] == 4


def test_what_a_person_and_a_machine_read(tmp_path, publish):
    ids = [publish(tmp_path, ratings(pairs)).manifest.id for pairs in (OLD, NEW)]
    data = json.loads(command("diff", *ids, "--store", tmp_path, "--json").stdout)
    found = data["drift"]
    assert list(found) == ["features", "crowding", "resize", "advice"]
    assert found["features"][0]["total_variation"] == pytest.approx(0.8)
    told = command("diff", *ids, "--store", tmp_path).stdout
    words = [line.split() for line in told.splitlines()]
    assert ["user_id", "2", "80.0%", "3,", "4", "1", "25.0%", "2", "0.8000"] in [row[:9] for row in words]
    assert found["advice"] in told.splitlines()
    assert [ids[0], "97", "5"] in [row[:3] for row in words]


@pytest.mark.real_data
def test_real_values_by_halves(tmp_path, publish, real_data, make_spec):
    """The first 50,000 ratings of ml-100k by time, and all: users come in time, most movies early."""
    lines = [line.split() for line in (real_data / "ml-100k" / "u.data").read_text().splitlines()]
    lines.sort(key=lambda line: (int(line[3]), line))
    every = [(user, movie) for user, movie, *_ in lines]
    user, movie = drifted(tmp_path, publish, every[:50_000], every).features
    assert user.gone == movie.gone == 0
    assert user.total_variation > 0.3 > 0.1 > movie.total_variation
    assert user.total_variation >= user.added_traffic
